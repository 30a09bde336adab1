from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetero.serve.prompt_queue import PromptQueue


@dataclass(eq=False)
class Prompt:
    name: str
    num_tokens: int
    num_read: int = 0

    @property
    def num_unread(self):
        return self.num_tokens - self.num_read


class Reader:
    """Reads step by step what the queue says; `room` is in tokens."""

    def __init__(self, budget, room=10**9):
        self.queue = PromptQueue(budget)
        self.room = room
        self.blocked = set()  # names whose rows have nowhere to go

    def push(self, name, num_tokens):
        self.queue.push(Prompt(name, num_tokens))

    def held(self):
        return sum(prompt.num_tokens for prompt in self.queue.reading)

    def step(self):
        """{name: tokens} of one step."""

        def start(prompt):
            assert self.held() <= self.room

        self.queue.admit(lambda num_tokens: self.held() + num_tokens <= self.room, start)
        shares = self.queue.next_step(lambda prompt: prompt.name not in self.blocked)
        for share in shares:
            share.prompt.num_read += share.num_tokens
            if not share.prompt.num_unread:
                self.queue.remove(share.prompt)
        return {share.prompt.name: share.num_tokens for share in shares}


def test_a_long_prompt_alone_is_read_in_full_steps():
    reader = Reader(100)
    reader.push("long", 250)
    assert [reader.step() for _ in range(4)] == [
        {"long": 100},
        {"long": 100},
        {"long": 50},
        {},
    ]


def test_short_prompts_share_a_step_with_each_other():
    reader = Reader(100)
    for name, size in [("a", 30), ("b", 50), ("c", 20), ("d", 10)]:
        reader.push(name, size)
    assert reader.step() == {"a": 30, "b": 50, "c": 20}
    assert reader.step() == {"d": 10}


def test_a_short_prompt_does_not_wait_for_a_long_one_before_it():
    reader = Reader(100)
    reader.push("long", 1000)
    reader.step()
    reader.push("short", 40)
    assert reader.step() == {"short": 40, "long": 60}


def test_long_prompts_go_on_under_a_stream_of_short_ones():
    reader = Reader(100)
    reader.push("long", 100)
    for number in range(12):
        reader.push(f"short{number}", 50)
    steps = [reader.step() for _ in range(2)]
    # A quarter is bulk's; one short prompt of 50 fits beside it, not two.
    assert steps[0] == {"short0": 50, "long": 50}
    assert steps[1] == {"short1": 50, "long": 50}


def test_long_prompts_are_read_one_after_the_other():
    reader = Reader(100)
    reader.push("first", 150)
    reader.push("second", 150)
    assert [reader.step() for _ in range(3)] == [
        {"first": 100},
        {"first": 50, "second": 50},
        {"second": 100},
    ]


def test_a_prompt_whose_rows_have_nowhere_to_go_lets_the_others_on():
    reader = Reader(100)
    reader.push("stuck", 150)
    reader.push("free", 150)
    reader.blocked.add("stuck")
    assert reader.step() == {"free": 100}
    reader.blocked.clear()
    assert reader.step() == {"stuck": 100}


def test_what_finds_no_room_waits():
    reader = Reader(100, room=300)
    reader.push("first", 250)
    reader.push("second", 200)
    assert reader.step() == {"first": 100}
    assert reader.queue.num_waiting == 1
    assert [reader.step() for _ in range(3)] == [{"first": 100}, {"first": 50}, {"second": 100}]


def test_a_long_prompt_without_room_is_not_starved_by_short_ones():
    reader = Reader(100, room=300)
    reader.push("first", 290)
    reader.push("waits", 300)
    for number in range(2000):
        reader.push(f"short{number}", 5)
    names = [name for _ in range(120) for name in reader.step()]
    assert "waits" in names
    assert "short1999" in names[names.index("waits") :]


def test_short_prompts_are_not_starved_by_bulk_that_waits_for_room():
    reader = Reader(512, room=16384)
    for number in range(30):
        reader.push(f"bulk{number}", 7000)
    for _ in range(20):
        reader.step()
    reader.push("short", 50)
    assert "short" in reader.step()


def test_bulk_beside_bulk_leaves_room_for_short_prompts():
    reader = Reader(100, room=600)
    reader.push("first", 300)
    reader.push("second", 300)
    reader.step()
    reader.push("short", 50)
    assert "short" in reader.step()


def test_with_room_for_one_prompt_short_and_bulk_take_turns():
    reader = Reader(100)
    reader.room = 0  # set below: one prompt at a time, as in llama.cpp's engine
    reader.queue = PromptQueue(100)
    for number in range(3):
        reader.push(f"bulk{number}", 100)
        reader.push(f"short{number}", 10)
    names = []
    while list(reader.queue):
        reader.room = reader.held() or 10**9
        reader.queue.admit(lambda _: not reader.queue.reading, lambda prompt: None)
        for share in reader.queue.next_step(lambda prompt: True):
            share.prompt.num_read += share.num_tokens
            names.append(share.prompt.name)
            reader.queue.remove(share.prompt)
    assert names == ["short0", "bulk0", "short1", "bulk1", "short2", "bulk2"]


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    budget=st.integers(4, 200),
    room=st.integers(400, 1200),
)
def test_every_prompt_is_read_once_within_budget_and_room(sizes, budget, room):
    reader = Reader(budget, room)
    for number, size in enumerate(sizes):
        reader.push(str(number), size)
    read = dict.fromkeys(map(str, range(len(sizes))), 0)
    for _ in range(sum(sizes) + len(sizes)):
        step = reader.step()
        assert reader.held() <= room
        assert sum(step.values()) <= budget
        for name, num_tokens in step.items():
            assert num_tokens > 0
            read[name] += num_tokens
        if not step:
            break
    assert list(read.values()) == sizes
    assert list(reader.queue) == []


def test_a_removed_prompt_is_in_no_queue():
    queue = PromptQueue(100)
    prompts = [Prompt("waiting", 10), Prompt("long", 1000)]
    for prompt in prompts:
        queue.push(prompt)
    queue.admit(lambda num_tokens: num_tokens >= 1000, lambda prompt: None)
    assert list(queue) == [prompts[1], prompts[0]]
    for prompt in prompts:
        queue.remove(prompt)
    assert list(queue) == []


@pytest.mark.parametrize("size", [50, 51])
def test_half_a_step_is_the_border_between_short_and_long(size):
    reader = Reader(100)
    reader.push("before", 1000)
    reader.push("after", size)
    assert ("after" in reader.step()) == (size == 50)
