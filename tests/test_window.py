"""The window against a simulated path: a closed form of what it should reach."""

from collections import deque

import pytest

from hetero.transport.window import MAX_CONNECTIONS, Window

FRAME = 2**20


class Path:
    """A link of a rate, a queue in front of it, and a delay there and back. Time is simulated."""

    def __init__(self, rate, delay_s, window):
        self.rate, self.delay_s, self.window = rate, delay_s, window
        self.now = self.is_free_at = 0.0
        self.on_the_way = deque()  # (credited at, departure)

    def send(self):
        self.is_free_at = max(self.is_free_at, self.now) + FRAME / self.rate
        departure = self.window.sent(FRAME, self.now)
        self.on_the_way.append((self.is_free_at + self.delay_s, departure))

    def hear(self):
        at, departure = self.on_the_way.popleft()
        self.now = max(self.now, at)
        self.window.credited(departure, self.now)

    def run(self, num_frames):
        """Send whenever the window allows; bytes credited per second."""
        began = self.now
        for _ in range(num_frames):
            while not self.on_the_way or self.in_flight + FRAME <= self.window.num_bytes:
                self.send()
            self.hear()
        return num_frames * FRAME / (self.now - began)

    @property
    def in_flight(self):
        return FRAME * len(self.on_the_way)

    @property
    def holds(self):
        """What fills it with no queue: a frame goes only when the one before is through."""
        return self.rate * self.delay_s + FRAME

    @property
    def fair(self):
        """Twice that, and 20 ms of the rate for pauses of the threads at its ends."""
        return 2 * self.holds + 0.02 * self.rate


@pytest.mark.parametrize("rate", [6.25e6, 125e6, 1.25e9, 5e9])
@pytest.mark.parametrize("delay_s", [0.0002, 0.005, 0.05])
def test_any_path_is_filled_and_not_flooded(rate, delay_s):
    window = Window(max_bytes=2**40)
    path = Path(rate, delay_s, window)
    path.run(int(20 * path.holds / FRAME) + 20)
    assert path.run(1000) >= 0.95 * rate
    assert window.num_bytes <= 1.05 * path.fair
    assert window.rate == pytest.approx(rate, rel=0.1)


def test_a_standing_queue_is_not_taken_for_a_longer_path():
    window = Window(max_bytes=2**40)
    path = Path(1.25e8, 0.02, window)
    assert path.run(10_000) >= 0.95 * path.rate  # 84 s, eight memories of the delay
    assert window.num_bytes <= 1.05 * path.fair


@pytest.mark.parametrize("factor", [0.1, 10])
def test_it_follows_a_path_whose_rate_changes(factor):
    window = Window(max_bytes=2**40)
    path = Path(1.25e8, 0.01, window)
    path.run(500)
    path.rate *= factor
    path.run(int(4 * path.rate / FRAME))  # 4 s
    assert path.run(200) >= 0.95 * path.rate
    assert window.num_bytes <= 1.25 * path.fair


@pytest.mark.parametrize("delay_s", [0.002, 0.1])
def test_it_follows_a_path_whose_delay_changes(delay_s):
    window = Window(max_bytes=2**40)
    path = Path(1.25e8, 0.01, window)
    path.run(500)
    path.delay_s = delay_s
    path.run(int(20 * path.rate / FRAME))  # 20 s: the old delay is forgotten
    assert path.run(500) >= 0.95 * path.rate
    assert window.num_bytes <= 1.25 * path.fair


def test_the_sinks_credit_is_never_exceeded():
    window = Window(max_bytes=3 * FRAME)
    Path(5e9, 0.1, window).run(100)
    assert window.num_bytes == 3 * FRAME


def test_pauses_and_bunches_of_credit_do_not_inflate_the_rate():
    window = Window(max_bytes=2**40)
    path = Path(1e8, 0.001, window)
    for _ in range(20):
        path.run(10)
        while path.on_the_way:
            path.hear()
        path.now += 1.0
    assert window.rate <= 1.1e8
    departures = [window.sent(FRAME, path.now) for _ in range(4)]
    for departure in departures:  # all credits at once, 40 ms later
        window.credited(departure, path.now + 0.04)
    assert window.rate <= 1.1e8


@pytest.mark.parametrize(
    ("rate", "delay_s", "num_connections"),
    [
        (125e6, 0.0002, 1),
        (1.2e9, 0.0002, 1),
        (3.1e9, 0.0002, 3),
        (1.2e9, 0.02, 8),
        (125e6, 0.03, 3),
    ],
)
def test_connections_follow_the_rate_and_what_the_path_holds(rate, delay_s, num_connections):
    window = Window(max_bytes=2**40)
    Path(rate, delay_s, window).run(500)
    assert abs(window.num_connections - num_connections) <= 1
    assert 1 <= window.num_connections <= MAX_CONNECTIONS
