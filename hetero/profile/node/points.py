"""What to measure: first the corners of what a node may meet, then points drawn at random.

Lengthening a sequence's context costs a restore, shortening it nothing. So points come in tours:
each stream's context only shrinks along a tour, at a pace of its own. In a unified cache what
comes after a sequence that shrinks has to be put back, so only the last one does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hetero.profile.node_profile import Role
from hetero.profile.tiling import TILE_ROWS
from hetero.profile.work import LENGTHS, PACK_ROWS, Work, chunk_work, step_work

# A step appends a cell, and a context is never quite empty.
_LEAST_CELLS = 16
_TOUR_POINTS = 4

# Chunks whose rest rows no knot of rows can take for its own.
_WITH_REST = 2 * PACK_ROWS - 1

# A length is clearly shorter than the longest context if it is no more than this share of it.
_SHORTER = 0.8

# How often cells of sequences that are not in the step lie in the same cache: while a prompt is
# read beside a batch. A prefill node reads one prompt at a time, and a batch is all that decodes.
_WITH_OTHERS = 0.25

# How many prompts begin with their first token: those that are not a conversation's next turn.
_NOTHING_CACHED = 0.4


@dataclass(frozen=True)
class Point:
    """One step. decode: a row each for the first `rows` sequences; prefill: `rows` tokens of the
    last one. cells: of every sequence, those not in the step too."""

    role: Role
    rows: int
    cells: tuple[int, ...]

    def work(self, unified: bool) -> Work:
        if self.role == "prefill":
            return chunk_work(self.rows, self.cells[-1], sum(self.cells[:-1]), unified)
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


def corners(role: Role, domain: Domain, *, in_tiles: bool) -> list[Point]:
    """Every knot with next to no context, some of them with as much as there can be, and a few in
    between.

    in_tiles: whether large chunks of this cache's types are attended to in tiles.
    """
    short = _LEAST_CELLS if role == "decode" else 0
    near = [Point(role, rows, _cells(role, rows, short)) for rows in domain.knots(role)]
    if role == "prefill" and domain.chunk_tokens > _WITH_REST:
        near.append(Point(role, _WITH_REST, _cells(role, _WITH_REST, short)))
    far = [_far(role, rows, domain) for rows in _few_rows(role, domain, in_tiles)]
    points = near + far + _of_lengths(role, domain, in_tiles) + _padded(role, domain)
    return list(dict.fromkeys(points))


def few_corners(
    role: Role, domain: Domain, *, in_tiles: bool, with_lengths: bool, with_others: bool
) -> list[Point]:
    """Of a cache whose rows cost what another's do: what tells its attention, cheaply.

    with_lengths: of contexts in between, too, for types whose attention is not known yet.
    with_others: beside all cells that the other sequences of a unified cache may hold.
    """
    knots = _few_rows(role, domain, in_tiles)
    short = _LEAST_CELLS if role == "decode" else 0
    some = {knots[0], knots[len(knots) // 2], knots[-1]}
    if role == "prefill" and in_tiles:
        some.add(min(TILE_ROWS, knots[-1]))
    points = [Point(role, rows, _cells(role, rows, short)) for rows in sorted(some)]
    points += [_far(role, rows, domain) for rows in sorted(some)]
    points += _padded(role, domain)
    if with_lengths:
        points += _of_lengths(role, domain, in_tiles)
    if with_others and domain.max_sequences > 1:
        others = (domain.context_tokens - 1,) * (domain.max_sequences - 1)
        if role == "prefill":
            points += [Point(role, rows, (*others, short)) for rows in sorted(some)]
        else:
            points.append(Point(role, knots[0], (short, *others)))
    return list(dict.fromkeys(points))


def _few_rows(role: Role, domain: Domain, in_tiles: bool) -> list[int]:
    """Long contexts with large chunks take longest of all: two tiles are enough, or less than one
    where there are none."""
    knots = domain.knots(role)
    most = 2 * TILE_ROWS if in_tiles else TILE_ROWS // 2
    return knots if role == "decode" else [rows for rows in knots if rows <= most]


def _far(role: Role, rows: int, domain: Domain) -> Point:
    """With as long a context as there can be."""
    appended = rows if role == "prefill" else 1
    return Point(role, rows, _cells(role, rows, domain.context_tokens - appended))


def _padded(role: Role, domain: Domain) -> list[Point]:
    """One long context among short ones, which in streams are padded to it."""
    if role == "prefill" or domain.max_sequences == 1:
        return []
    rows = domain.max_sequences
    return [Point(role, rows, (domain.context_tokens - 1, *[_LEAST_CELLS] * (rows - 1)))]


def _of_lengths(role: Role, domain: Domain, in_tiles: bool) -> list[Point]:
    """With about as many cells as each length has that is clearly shorter than the longest context:
    few and many rows at the first, an average at the others. And whole tiles at the longest."""
    knots = [rows for rows in domain.knots(role) if rows < TILE_ROWS]
    average = knots[len(knots) // 2]
    short_of = _SHORTER * domain.context_tokens
    lengths = [length - TILE_ROWS for length in LENGTHS if length <= short_of]
    points = [
        Point(role, rows, _cells(role, rows, cells))
        for cells in lengths[:1]
        for rows in sorted({knots[0], average, knots[-1]})
    ]
    points += [Point(role, average, _cells(role, average, cells)) for cells in lengths[1:]]
    if role == "prefill" and in_tiles:
        points.append(_far(role, domain.chunk_tokens, domain))
    return points


def tour(role: Role, domain: Domain, unified: bool, random: np.random.Generator) -> Iterator[Point]:
    """A few points of random rows, rows and contexts shrinking."""
    logarithms = random.uniform(0, np.log(domain.most_rows(role)), _TOUR_POINTS)
    has_others = unified and random.random() < _WITH_OTHERS
    count = domain.max_sequences if role == "decode" or has_others else 1
    cells = _lengths(random, domain.context_tokens, count)
    if role == "prefill" and random.random() < _NOTHING_CACHED:
        cells[-1] = 0
    for rows in sorted(np.exp(logarithms).round().astype(int).tolist(), reverse=True):
        if role == "decode" and not has_others:
            cells = cells[:rows]
        room = max(0, domain.context_tokens - (rows if role == "prefill" else 1))
        yield Point(role, rows, tuple(min(int(have), room) for have in cells))
        shrinks = random.random(len(cells)) < 0.5
        if unified:
            shrinks[:-1] = False
        shorter = np.maximum(cells * random.uniform(0.4, 1, len(cells)), _LEAST_CELLS)
        cells = np.where(shrinks & (cells > _LEAST_CELLS), shorter, cells)


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
