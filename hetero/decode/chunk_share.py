"""How much of a local prompt is read between two decode steps."""

import math


def next_chunk_tokens(
    *,
    num_waiting: int,
    num_running: int,
    least_share: float,
    step_s: float,
    token_s: float,
    most: int,
) -> int:
    """As many tokens as take their share of the time, one at least.

    Those who wait for their first token have as good a right to the processor as those who wait for
    their next one, head by head; but a single prompt beside many sequences gets `least_share`. By
    a fixed share, a burst of prompts would be read one by one beside a nearly empty batch.

    num_waiting: prompts that have their slot. step_s: of a decode step; token_s: of a prompt's token
    at best. most: a whole batch, which is read while nobody runs or nothing was timed.
    """
    if not num_running or not step_s or math.isinf(token_s):
        return most
    share = max(least_share, num_waiting / (num_waiting + num_running))
    return min(most, max(1, int(share / (1 - share) * step_s / token_s)))
