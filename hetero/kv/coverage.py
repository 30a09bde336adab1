"""Which tokens of a layer are there, when ranges of them come in any order."""

from bisect import bisect_right

from hetero.errors import PeerError


class Coverage:
    """Disjoint ranges, joined where they touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def overlap(self, first: int, end: int) -> int | None:
        """The first token of [first, end) that is there already."""
        index = bisect_right(self._starts, first)  # of the first range that begins after `first`
        if index and self._ends[index - 1] > first:
            return first
        if index < len(self._starts) and self._starts[index] < end:
            return self._starts[index]
        return None

    def add(self, first: int, end: int) -> None:
        """Raises: PeerError if one of these tokens is there already."""
        twice = self.overlap(first, end)
        if twice is not None:
            raise PeerError(f"token {twice}: need it once, have it twice")
        index = bisect_right(self._starts, first)
        if index and self._ends[index - 1] == first:
            index -= 1
            self._ends[index] = end
        else:
            self._starts.insert(index, first)
            self._ends.insert(index, end)
        if index + 1 < len(self._starts) and self._starts[index + 1] == end:
            self._ends[index] = self._ends.pop(index + 1)
            del self._starts[index + 1]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return list(zip(self._starts, self._ends, strict=True))
