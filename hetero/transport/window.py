"""How much may be in flight: twice what the path holds, and a little, so that it never runs dry.

Rate and delay are measured on the transfer itself, from the time that each frame's credit takes, as
BBR does for segments (Cardwell et al., 2016): the highest rate and the shortest delay seen lately.
While the window is what limits the rate, it doubles with every delay; once the path does, it stays
at twice the product. A slow wire so holds little, and forgets an aborted transfer quickly; a long
one holds enough.

Frames that fill a queue see its delay, not the path's. So a delay that was not seen again for a
while is measured anew, with one frame alone on the path.
"""

from collections import deque
from dataclasses import dataclass
from math import ceil

# One frame is on its way while the next is made: less would leave the wire idle in between.
_MIN_FRAMES = 2

_GAIN = 2.0

# Beyond what the path holds: the threads at both ends may be off their processors for so long, and
# the wire should not stand still meanwhile. It waits in the kernel's buffers, not on the path.
_PAUSE_S = 0.02

_START_BYTES = 4 * 2**20

# What was measured is forgotten after this, for paths change.
_RATE_MEMORY_S = 2.0
_DELAY_MEMORY_S = 10.0

# Linux keeps up to 4 MiB of a connection's unacknowledged data, and counts its bookkeeping in.
_CONNECTION_BYTES = 2 * 2**20

# A connection is served by one thread at each end, which seals and copies: one for each 10 Gbit/s.
_CONNECTION_BYTES_PER_S = 1.25e9

MAX_CONNECTIONS = 8


@dataclass(frozen=True, kw_only=True)
class Departure:
    """A frame on its way, and what had been delivered when it left."""

    num_bytes: int
    sent_at: float
    delivered: int  # bytes credited by then
    delivered_at: float  # when the last of them was
    delivered_sent_at: float  # when that one had been sent
    is_alone: bool


class Window:
    """Bytes that may be in flight, and connections that they need. Times are the caller's."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.delay = 0.0  # seconds from sending a frame to its credit, the shortest seen lately
        self._delay_at = 0.0
        self._is_probing = False
        # Time and bytes per second, each more than all that came after it: the first is the most.
        self._rates: deque[tuple[float, float]] = deque()
        self._largest_frame = 0
        self._in_flight = 0
        self._delivered = 0
        self._delivered_at = 0.0
        self._delivered_sent_at = 0.0

    @property
    def num_bytes(self) -> int:
        """At 0 one frame may go when none is out."""
        if self._is_probing:
            return 0
        held_s = _GAIN * self.delay + _PAUSE_S
        target = int(self.rate * held_s) if self._rates else _START_BYTES
        return min(self.max_bytes, max(target, _MIN_FRAMES * self._largest_frame))

    @property
    def num_connections(self) -> int:
        for_delay = self.rate * self.delay / _CONNECTION_BYTES
        for_rate = self.rate / _CONNECTION_BYTES_PER_S
        return max(1, min(MAX_CONNECTIONS, ceil(max(for_delay, for_rate))))

    @property
    def rate(self) -> float:
        """Bytes per second: the best that was measured lately."""
        return self._rates[0][1] if self._rates else 0.0

    def sent(self, num_bytes: int, now: float) -> Departure:
        """A frame leaves; give what this returns back when its credit comes."""
        is_alone = not self._in_flight
        if is_alone:  # the time that nothing was on its way says nothing of the path
            self._delivered_at = self._delivered_sent_at = now
        self._in_flight += 1
        self._largest_frame = max(self._largest_frame, num_bytes)
        return Departure(
            num_bytes=num_bytes,
            sent_at=now,
            delivered=self._delivered,
            delivered_at=self._delivered_at,
            delivered_sent_at=self._delivered_sent_at,
            is_alone=is_alone,
        )

    def credited(self, frame: Departure, now: float) -> None:
        """A frame was placed."""
        self._in_flight -= 1
        self._delivered += frame.num_bytes
        self._delivered_at, self._delivered_sent_at = now, frame.sent_at
        # Credits may come in a bunch, or frames leave in one: the slower of both is the path's.
        seconds = max(now - frame.delivered_at, frame.sent_at - frame.delivered_sent_at, 1e-6)
        rate = (self._delivered - frame.delivered) / seconds
        while self._rates and self._rates[-1][1] <= rate:
            self._rates.pop()
        self._rates.append((now, rate))
        while self._rates[0][0] < now - _RATE_MEMORY_S:
            self._rates.popleft()
        self._time(frame, now)

    def _time(self, frame: Departure, now: float) -> None:
        delay = max(now - frame.sent_at, 1e-6)
        if self._is_probing and frame.is_alone:
            self._is_probing = False
            self.delay = 0.0
        if not self.delay or delay <= self.delay:
            self.delay, self._delay_at = delay, now
        elif now - self._delay_at > _DELAY_MEMORY_S:
            self._is_probing = True
