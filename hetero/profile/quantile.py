"""Quantiles without interpolation: each is a sample."""

import math
from collections.abc import Sequence


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all are no larger than."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]
