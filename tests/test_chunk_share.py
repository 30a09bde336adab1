"""How much of prompts a decode node reads between steps of 50 ms, at 5 ms a token."""

import pytest

from hetero.decode.chunk_share import ChunkShare

STEP_S, TOKEN_S = 0.05, 0.005


def timed_share(least_share=0.5, most_tokens=256):
    """It knows a token's time, and owes nothing."""
    share = ChunkShare(least_share, most_tokens)
    share.has_read(most_tokens, most_tokens * TOKEN_S)
    share.next_tokens(num_waiting=1, num_running=0, step_s=STEP_S)
    return share


def read_and_step(share, num_waiting, num_running, seconds):
    """(seconds spent on chunks, on steps, the chunks' tokens), until `seconds` are over."""
    chunks_s = steps_s = 0.0
    sizes = []
    while chunks_s + steps_s < seconds:
        tokens = share.next_tokens(num_waiting=num_waiting, num_running=num_running, step_s=STEP_S)
        if tokens:
            share.has_read(tokens, tokens * TOKEN_S)
            chunks_s += tokens * TOKEN_S
            sizes.append(tokens)
        share.has_stepped(num_waiting=num_waiting, num_running=num_running, seconds=STEP_S)
        steps_s += STEP_S
    return chunks_s, steps_s, sizes


@pytest.mark.parametrize(
    ("num_waiting", "num_running", "share"),
    [
        (1, 8, 1 / 2),  # half of the time at least
        (1, 1, 1 / 2),
        (2, 3, 1 / 2),
        (3, 1, 3 / 4),  # three of four wait for their first token
        (6, 2, 3 / 4),
        (7, 1, 7 / 8),
    ],
)
def test_prompts_get_time_by_how_many_wait_and_half_at_least(num_waiting, num_running, share):
    chunks_s, steps_s, _ = read_and_step(timed_share(), num_waiting, num_running, 60.0)
    assert chunks_s / (chunks_s + steps_s) == pytest.approx(share, abs=0.02)


def test_a_larger_share_that_was_asked_for_holds():
    chunks_s, steps_s, _ = read_and_step(timed_share(least_share=0.8), 1, 8, 60.0)
    assert chunks_s / (chunks_s + steps_s) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("num_waiting", "tokens"),
    [
        (1, 40),  # as long as four steps, so that reading the weights again is a small part
        (5, 50),  # five wait beside one: as long as five
        (200, 256),  # no more than a batch
    ],
)
def test_a_chunk_is_long_enough_to_be_worth_its_reading_of_the_weights(num_waiting, tokens):
    share = timed_share()
    found = share.next_tokens(num_waiting=num_waiting, num_running=1, step_s=STEP_S)
    assert found == tokens


def test_after_a_chunk_the_sequences_have_their_turn():
    share = timed_share()
    share.has_read(40, 0.2)
    turns = []
    for _ in range(5):
        turns.append(share.next_tokens(num_waiting=1, num_running=1, step_s=STEP_S) > 0)
        share.has_stepped(num_waiting=1, num_running=1, seconds=STEP_S)
    assert turns == [False, False, False, False, True]


def test_what_was_not_timed_yet_gets_a_whole_batch():
    untimed = ChunkShare(0.5, 256)
    assert untimed.next_tokens(num_waiting=1, num_running=1, step_s=STEP_S) == 256
    assert timed_share().next_tokens(num_waiting=1, num_running=1, step_s=0.0) == 256


def test_nobody_running_leaves_all_of_the_time_and_forgives_what_is_owed():
    share = timed_share()
    share.has_read(256, 1.28)
    assert share.next_tokens(num_waiting=1, num_running=0, step_s=STEP_S) == 256
    assert share.next_tokens(num_waiting=1, num_running=1, step_s=STEP_S) > 0


def test_a_prompt_goes_on_however_slow():
    share = ChunkShare(0.5, 256)
    share.has_read(1, 10.0)
    share.next_tokens(num_waiting=1, num_running=0, step_s=STEP_S)
    assert share.next_tokens(num_waiting=1, num_running=1, step_s=STEP_S) == 1


def test_one_short_chunk_does_not_shorten_the_next():
    """Its weights were read for few tokens: slower a token, and no measure."""
    share = timed_share()
    share.has_read(4, 0.06)
    share.next_tokens(num_waiting=1, num_running=0, step_s=STEP_S)
    found = share.next_tokens(num_waiting=1, num_running=1, step_s=STEP_S)
    assert found == pytest.approx(40 / 1.05, abs=1)  # the best rate fades by a twentieth
