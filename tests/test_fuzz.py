"""Any bytes at the door: an error of the peer's or nothing, and no memory that stays.

A small dose of what `make fuzz` does by the million.
"""

import gc
import random
import tracemalloc

import pytest
from fuzz_targets import TARGETS, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = sorted(TARGETS)


@pytest.mark.parametrize("name", NAMES)
@given(raw=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes(name, raw):
    TARGETS[name](raw)


@pytest.mark.parametrize("name", NAMES)
@given(draw=st.data())
@settings(max_examples=300, deadline=None)
def test_honest_bytes_with_a_few_changed(name, draw):
    raw = bytearray(draw.draw(st.sampled_from(seeds(name))))
    for _ in range(draw.draw(st.integers(0, 4))):
        at = draw.draw(st.integers(0, len(raw) - 1))
        raw[at] = draw.draw(st.integers(0, 255))
    end = draw.draw(st.integers(0, len(raw)))
    TARGETS[name](bytes(raw[:end]) if draw.draw(st.booleans()) else bytes(raw))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stays_of_what_was_said(name):
    rng = random.Random(1)
    honest = seeds(name)

    def feed(num_inputs):
        for _ in range(num_inputs):
            raw = bytearray(rng.choice(honest))
            raw[rng.randrange(len(raw))] = rng.randrange(256)
            TARGETS[name](bytes(raw))
        gc.collect()

    feed(300)
    tracemalloc.start()
    try:
        feed(300)
        before, _ = tracemalloc.get_traced_memory()
        feed(1000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 64 * 1024
