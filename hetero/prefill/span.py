"""Which part of which prompt a batch reads, and where that prompt's cells lie."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """New tokens [first, end) of one prompt.

    Token 0 of the prompt lies in cell `cell` of the KV pool, the others consecutively after it.
    """

    cell: int
    first: int
    end: int

    @property
    def num_new(self) -> int:
        return self.end - self.first
