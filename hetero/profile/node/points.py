"""What to measure: first the corners of what a node may meet, then points drawn at random.

Lengthening a sequence's context costs a restore, shortening it nothing. So points come in tours:
each sequence's context only shrinks along a tour, at a pace of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hetero.profile.node_profile import Role
from hetero.profile.work import TILE_ROWS, Work, chunk_work, step_work

# A step appends a cell, and a context is never quite empty.
_LEAST_CELLS = 16
_TOUR_POINTS = 6


@dataclass(frozen=True)
class Point:
    """One step. decode: a row each for the first `rows` sequences; prefill: `rows` tokens of
    sequence 0. cells: of every sequence, those not in the step too."""

    role: Role
    rows: int
    cells: tuple[int, ...]

    def work(self, unified: bool) -> Work:
        if self.role == "prefill":
            return chunk_work(self.rows, self.cells[0], sum(self.cells[1:]), unified)
        return step_work(self.cells[: self.rows], sum(self.cells[self.rows :]), unified)


@dataclass(frozen=True)
class Domain:
    """What a node may meet. In a unified cache sequences share `cells`; a stream is one's own."""

    max_sequences: int
    context_tokens: int
    chunk_tokens: int

    def most_rows(self, role: Role) -> int:
        return self.max_sequences if role == "decode" else self.chunk_tokens

    def knots(self, role: Role) -> list[int]:
        """Of batches every size up to 8, then a quarter more each; of chunks powers of two."""
        if role == "decode":
            return _batch_knots(self.max_sequences)
        powers = (2**power for power in range(self.chunk_tokens.bit_length()))
        return sorted({*powers, self.chunk_tokens})


def corners(role: Role, domain: Domain) -> list[Point]:
    """Every knot with next to no context, and some of them with as much as there can be."""
    short = _LEAST_CELLS if role == "decode" else 0
    knots = domain.knots(role)
    near = [Point(role, rows, _cells(role, rows, short)) for rows in knots]
    return near + [_far(role, rows, domain) for rows in knots if _is_cheap(role, rows, knots)]


def few_corners(role: Role, domain: Domain, *, with_tiles: bool) -> list[Point]:
    """Of a cache whose rows cost what another's do: what tells its attention, cheaply.

    with_tiles: more than one tile of rows, too, for types whose attention is not known yet.
    """
    most = (4 if with_tiles else 1) * TILE_ROWS
    knots = [rows for rows in domain.knots(role) if rows <= most]
    short = _LEAST_CELLS if role == "decode" else 0
    some = sorted({knots[0], knots[len(knots) // 2], min(TILE_ROWS, knots[-1]), knots[-1]})
    return [Point(role, rows, _cells(role, rows, short)) for rows in some] + [
        _far(role, rows, domain) for rows in some
    ]


def _far(role: Role, rows: int, domain: Domain) -> Point:
    """With as long a context as there can be."""
    appended = rows if role == "prefill" else 1
    return Point(role, rows, _cells(role, rows, domain.context_tokens - appended))


def _is_cheap(role: Role, rows: int, knots: list[int]) -> bool:
    """Long contexts with large chunks take longest of all: one of them is enough."""
    return role == "decode" or rows <= TILE_ROWS or rows == knots[-1]


def tour(role: Role, domain: Domain, unified: bool, random: np.random.Generator) -> Iterator[Point]:
    """A few points of random rows, contexts shrinking."""
    num_sequences = domain.max_sequences
    if role == "prefill" and not unified:
        num_sequences = 1  # others' streams are not scanned
    cells = _lengths(random, domain.context_tokens, num_sequences)
    if role == "prefill":
        # Others' cells beside the prompt's: none in half of the tours, as on a node of its own.
        cells[1:] *= random.random() < 0.5
    for _ in range(_TOUR_POINTS):
        rows = round(float(np.exp(random.uniform(0, np.log(domain.most_rows(role))))))
        appended = rows if role == "prefill" else 1
        room = max(0, domain.context_tokens - appended)
        yield Point(role, rows, tuple(min(int(have), room) for have in cells))
        shorter = cells * random.uniform(0.4, 1, num_sequences)
        cells = np.where(random.random(num_sequences) < 0.5, cells, shorter)
        cells = np.where(cells > 0, np.maximum(cells, _LEAST_CELLS), 0)


def _cells(role: Role, rows: int, each: int) -> tuple[int, ...]:
    return (each,) * (rows if role == "decode" else 1)


def _lengths(
    random: np.random.Generator, context_tokens: int, count: int
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Any length as likely as any other in half of the cases, any order of magnitude in the
    others."""
    least = min(_LEAST_CELLS, context_tokens)
    even = random.uniform(least, context_tokens, count)
    if random.random() < 0.5:
        return even
    return np.exp(random.uniform(np.log(least), np.log(context_tokens), count))


def _batch_knots(largest: int) -> list[int]:
    knots = list(range(1, min(8, largest) + 1))
    while knots[-1] < largest:
        knots.append(min(largest, round(knots[-1] * 1.25)))
    return knots
