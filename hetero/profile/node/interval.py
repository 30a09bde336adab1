"""How far off a prediction may be."""

from hetero.profile.node_profile import FitError, Noise

# No interval is narrower than what two quiet runs of one machine differ by.
_LEAST_ERROR = 0.03

# Beyond it a prediction says nothing, and its inverse would be without end.
_MOST_ERROR = 0.8

# Where nothing was left out of a fit to test it: a guess.
_UNTESTED_ERROR = 0.5


def interval_of(error: FitError | None, noise: Noise) -> tuple[float, float]:
    """Of measured over predicted, 9 of 10: the fit's error on points it had not seen, wider for
    few points, times what a single step strays from an undisturbed one."""
    share = _UNTESTED_ERROR
    if error is not None:
        share = max(_LEAST_ERROR, error.p90 * (1 + 4 / error.num_points))
    slow, quick = noise.speed
    # The error is of predicted over measured, and this is the other way round.
    low = 1 / (1 + share) / max(1.0, quick)
    return low, 1 / (1 - min(share, _MOST_ERROR)) / min(1.0, slow)
