"""Least squares without negative coefficients.

SciPy has this, but importing it takes 41 MB, and a profiler must not need more memory than the node
that it profiles.
"""

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]

# Of the largest slope there is at zero: what rounding leaves of one that is none.
_FLAT = 1e-12
_MOST_ROUNDS_PER_COLUMN = 10


def nnls(matrix: _Floats, target: _Floats, start: _Floats) -> _Floats:
    """x >= 0, of shape (columns,), for which |matrix @ x - target| is least.

    start: where to begin, nothing of it negative; the nearer, the sooner it is done.

    The coefficient that helps most is freed, and all free ones are solved for; those that would
    turn negative are held at zero again.

    Source: Lawson, Hanson: Solving Least Squares Problems, chapter 23; on products of the matrix
    with itself as Bro, de Jong 1997.
    """
    products, aims = matrix.T @ matrix, matrix.T @ target
    free = start > 0
    solution = _step(products, aims, start, free)
    flat = _FLAT * np.abs(aims).max(initial=0)
    for _ in range(_MOST_ROUNDS_PER_COLUMN * len(aims)):
        slopes = np.where(free, 0, aims - products @ solution)
        steepest = slopes.argmax()
        if slopes[steepest] <= flat:
            break
        free[steepest] = True
        solution = _step(products, aims, solution, free)
    return solution


def _step(products: _Floats, aims: _Floats, start: _Floats, free: _Mask) -> _Floats:
    """From `start` to where all free coefficients are best, holding those that meet zero on the
    way: `free` is changed."""
    while True:
        best = np.zeros(len(aims))
        # Columns may say the same, where samples are few.
        best[free] = np.linalg.lstsq(products[np.ix_(free, free)], aims[free], rcond=None)[0]
        falling = best < 0
        if not falling.any():
            return best
        way = (start[falling] / (start[falling] - best[falling])).min()
        start = start + way * (best - start)
        free &= start > _FLAT * start.max()
        start[~free] = 0
