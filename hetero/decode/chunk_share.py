"""How much of local prompts is read between decode steps, and how often."""

import math

# A chunk reads all weights once, and so does a step: a chunk that takes as long as four steps
# spends about a fifth of its time on that, one that takes as long as a step spends half.
_CHUNK_STEPS = 4


class ChunkShare:
    """Chunks of a size that is worth reading, and after each the steps that it owes.

    Those who wait for their first token have as good a right to the processor as those who wait for
    their next one, head by head; but a single prompt beside many sequences gets `least_share` of
    the time. By a fixed share, a burst of prompts is read one by one beside a nearly empty batch.
    """

    def __init__(self, least_share: float, most_tokens: int) -> None:
        """most_tokens: a whole batch, which is read while nobody runs or nothing was timed."""
        self._least_share = least_share
        self._most_tokens = most_tokens
        self._token_s = math.inf  # the best of late
        self._owed_s = 0.0  # of chunks, that steps have not made up for yet

    def next_tokens(self, num_waiting: int, num_running: int, step_s: float) -> int:
        """0: the sequences' turn. num_waiting: prompts that have their slot. step_s: of a step."""
        if not num_running:
            self._owed_s = 0.0
            return self._most_tokens
        if not step_s or math.isinf(self._token_s):
            return self._most_tokens
        if self._owed_s > step_s / 2:  # another step would not bring it nearer to 0
            return 0
        steps = max(_CHUNK_STEPS, self._chunks_over_steps(num_waiting, num_running))
        return min(self._most_tokens, max(1, int(steps * step_s / self._token_s)))

    def has_read(self, num_tokens: int, seconds: float) -> None:
        # The best, not the mean: a short chunk reads all weights for few tokens, and sizing the
        # next one by its rate would shorten it again and again. It fades, for machines slow down.
        self._token_s = min(seconds / num_tokens, 1.05 * self._token_s)
        self._owed_s += seconds

    def has_stepped(self, num_waiting: int, num_running: int, seconds: float) -> None:
        """num_waiting: 0 forgives what is owed."""
        made_up_s = seconds * self._chunks_over_steps(num_waiting, num_running)
        self._owed_s = self._owed_s - made_up_s if num_waiting else 0.0

    def _chunks_over_steps(self, num_waiting: int, num_running: int) -> float:
        """Seconds of chunks for each second of steps."""
        share = max(self._least_share, num_waiting / (num_waiting + num_running))
        return share / (1 - share)
