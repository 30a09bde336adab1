"""What a load consists of: sessions of one request or several, each with its sizes. No I/O.

A schedule is drawn from a workload and a seed, or read from a recorded trace, before anything is
sent; so it can be written down, replayed against another server, and planned with.
"""

import msgspec

from hetero.errors import ConfigError

# What recorded traces use (Mooncake's).
BLOCK_TOKENS = 512


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    blocks: which tokens its prompt consists of, by id, `Schedule.block_tokens` each; the last may
    be cut short. Equal ids stand for equal tokens, so a shared prefix is a shared beginning of ids.
    """

    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    think_s: float = 0.0  # from the end of the turn before; of a first turn 0


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Turns one after the other. at_s: seconds from the beginning of the load to the first turn,
    whatever became of others (open loop); None: when a place is free (closed loop)."""

    turns: tuple[Turn, ...]
    at_s: float | None = None


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """num_clipped: requests cut short to fit a context; num_dropped: left out, as they did not."""

    name: str  # of the workload or the trace
    sessions: tuple[Session, ...]  # in the order they begin
    block_tokens: int = BLOCK_TOKENS
    num_clipped: int = 0
    num_dropped: int = 0

    def __post_init__(self) -> None:
        if not self.sessions:
            raise ConfigError(f"workload {self.name}: need one request or more, have none")

    @property
    def is_open(self) -> bool:
        return self.sessions[0].at_s is not None

    @property
    def num_requests(self) -> int:
        return sum(len(session.turns) for session in self.sessions)


def num_blocks(tokens: int, block_tokens: int) -> int:
    return -(-tokens // block_tokens)
