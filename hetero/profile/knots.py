"""Lines through knots: what lies between two of them is shared by distance."""

from collections.abc import Sequence


def hat_weights(knots: Sequence[float], place: float) -> list[float]:
    """How much each knot counts at `place`: linear between knots and beyond the last one, constant
    below the first."""
    weights = [0.0] * len(knots)
    if len(knots) == 1 or place <= knots[0]:
        weights[0] = 1.0
        return weights
    upper = next((i for i, knot in enumerate(knots) if knot >= place), len(knots) - 1)
    span = knots[upper] - knots[upper - 1]
    share = (place - knots[upper - 1]) / span
    weights[upper - 1], weights[upper] = 1 - share, share
    return weights
