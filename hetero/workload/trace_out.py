"""Schedules -> a Mooncake trace, for other tools and for replay."""

from collections.abc import Iterable
from pathlib import Path

from hetero.errors import ConfigError
from hetero.workload.mooncake import TraceLine, line_bytes
from hetero.workload.schedule import BLOCK_TOKENS, Schedule, num_blocks


def write_trace(path: Path, lines: Iterable[TraceLine]) -> None:
    """Sorted by time. Raises: ConfigError if the file can't be written."""
    in_order = sorted(lines, key=lambda line: line.timestamp)
    try:
        path.write_bytes(b"".join(map(line_bytes, in_order)))
    except OSError as error:
        raise ConfigError(f"{path}: need a file to write, have: {error.strerror}") from None


def trace_lines(schedule: Schedule) -> list[TraceLine]:
    """A session's later turns are given the time they would have if answers took none: when they
    do come depends on the server.

    Raises: ConfigError for a closed loop, which has no times.
    """
    ids = _Ids(schedule.block_tokens)
    lines = []
    for session in schedule.sessions:
        if session.at_s is None:
            raise ConfigError(
                f"{schedule.name}: need times for a trace, have a closed loop; draw it with a rate"
            )
        at_s = session.at_s
        for turn in session.turns:
            at_s += turn.think_s
            line = TraceLine(
                timestamp=round(at_s * 1000),
                input_length=turn.prompt_tokens,
                output_length=turn.output_tokens,
                hash_ids=ids.of(turn.blocks, turn.prompt_tokens),
            )
            lines.append(line)
    return lines


class _Ids:
    """Ids of 512 tokens from ids of fewer: equal for an equal beginning up to there."""

    def __init__(self, block_tokens: int) -> None:
        if BLOCK_TOKENS % block_tokens:
            raise ConfigError(
                f"need blocks that {BLOCK_TOKENS} tokens hold a number of, have {block_tokens}"
            )
        self._per_id = BLOCK_TOKENS // block_tokens
        self._known: dict[tuple[int, int, tuple[int, ...]], int] = {}

    def of(self, blocks: tuple[int, ...], tokens: int) -> tuple[int, ...]:
        if self._per_id == 1:
            return blocks
        ids: list[int] = []
        before = -1
        for place in range(num_blocks(tokens, BLOCK_TOKENS)):
            held = min(BLOCK_TOKENS, tokens - place * BLOCK_TOKENS)
            part = blocks[place * self._per_id : (place + 1) * self._per_id]
            before = self._known.setdefault((before, held, part), len(self._known))
            ids.append(before)
        return tuple(ids)
