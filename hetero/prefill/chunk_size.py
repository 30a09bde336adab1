"""How many tokens a step should read, from what this GPU was measured to do.

A step of more tokens shares each weight's way into the chip among more of them, up to where
arithmetic is all that counts. A step of fewer lets short prompts in sooner, and the first rows
leave earlier. So: the fewest tokens that read at nearly the best rate.
"""

import logging
import time
from collections.abc import Iterator, Mapping

from hetero.errors import EngineError
from hetero.prefill.engine import PrefillEngine, Slice

logger = logging.getLogger(__name__)

# Of the best rate. The last percents cost twice the tokens.
_GOOD_SHARE = 0.95

# A short prompt waits for a step: beyond this, longer ones are tried only while each token still
# gets much cheaper, as where a step's time is that of bringing in the weights.
_LONG_STEP_S = 1.0
_MUCH_CHEAPER = 1.2

_SMALLEST = 256


def smallest_good_chunk(tokens_per_s: Mapping[int, float]) -> int:
    """The smallest chunk within 5% of the best rate."""
    good_rate = _GOOD_SHARE * max(tokens_per_s.values())
    return min(chunk for chunk, rate in tokens_per_s.items() if rate >= good_rate)


def measure_chunk(engine: PrefillEngine, largest: int) -> int:
    """Read made-up prompts of 256, 512 ... tokens, up to `largest`, and choose.

    The first reading of each size is not timed: it compiles kernels and fills the allocator.
    """
    tokens_per_s: dict[int, float] = {}
    best = 0.0
    for num_tokens in _doubling(_SMALLEST, largest):
        try:
            _read_seconds(engine, num_tokens)
            seconds = _read_seconds(engine, num_tokens)
        except EngineError as error:
            if not tokens_per_s:
                raise
            logger.warning("chunks of %d tokens are too many: %s", num_tokens, error)
            break
        rate = tokens_per_s[num_tokens] = num_tokens / seconds
        if seconds > _LONG_STEP_S and rate < _MUCH_CHEAPER * best:
            break
        best = max(best, rate)
    chunk = smallest_good_chunk(tokens_per_s)
    rates = ", ".join(f"{size}: {rate:.0f}" for size, rate in tokens_per_s.items())
    logger.info("chunks of %d tokens (tokens/s by chunk: %s)", chunk, rates)
    return chunk


def warm_up(engine: PrefillEngine, chunk_tokens: int) -> None:
    """Compile kernels and fill the allocator before the first request would."""
    for num_tokens in (1, chunk_tokens):
        _read_seconds(engine, num_tokens)


def _doubling(smallest: int, largest: int) -> Iterator[int]:
    size = min(smallest, largest)
    while size <= largest:
        yield size
        size *= 2


def _read_seconds(engine: PrefillEngine, num_tokens: int) -> float:
    run = engine.start([0] * num_tokens)
    try:
        started = time.perf_counter()
        for _ in engine.read([Slice(run, num_tokens)]):
            pass
        seconds = time.perf_counter() - started
    finally:
        engine.end(run)
    if run.error is not None:
        raise run.error
    return seconds
