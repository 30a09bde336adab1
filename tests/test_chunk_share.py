"""How much of a prompt a decode node reads between two steps."""

import math

import pytest

from hetero.decode.chunk_share import next_chunk_tokens

# Steps of 50 ms, prompt tokens of 5 ms: a token is a tenth of a step.
TIMES = {"step_s": 0.05, "token_s": 0.005, "least_share": 0.5, "most": 256}


@pytest.mark.parametrize(
    ("num_waiting", "num_running", "tokens"),
    [
        (1, 8, 10),  # half of the time, as for
        (1, 1, 10),
        (3, 1, 30),  # three of four wait for their first token: three quarters of the time
        (6, 2, 30),
        (2, 3, 10),  # fewer than half wait: half of the time all the same
        (60, 1, 256),  # no more than a batch
    ],
)
def test_prompts_get_time_by_how_many_wait_and_half_at_least(num_waiting, num_running, tokens):
    found = next_chunk_tokens(num_waiting=num_waiting, num_running=num_running, **TIMES)
    assert found == tokens


def test_a_larger_share_that_was_asked_for_holds():
    times = TIMES | {"least_share": 0.8}
    assert next_chunk_tokens(num_waiting=1, num_running=8, **times) == 40


@pytest.mark.parametrize(
    "changed", [{"step_s": 0.0}, {"token_s": math.inf}], ids=["no step yet", "no chunk yet"]
)
def test_what_was_not_timed_yet_gets_a_whole_batch(changed):
    assert next_chunk_tokens(num_waiting=1, num_running=1, **TIMES | changed) == 256


def test_nobody_running_leaves_all_of_the_time():
    assert next_chunk_tokens(num_waiting=1, num_running=0, **TIMES) == 256


def test_a_prompt_goes_on_however_slow():
    times = TIMES | {"token_s": 10.0}
    assert next_chunk_tokens(num_waiting=1, num_running=1, **times) == 1
