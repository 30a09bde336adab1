"""Statistics of samples by name: p50, p95, p99.9, mean, max."""

from collections.abc import Sequence

import numpy as np


def statistic(values: Sequence[float], name: str) -> float:
    """Percentiles are interpolated between the two nearest samples (numpy's `linear`)."""
    if name == "mean":
        return float(np.mean(values))
    if name == "max":
        return float(np.max(values))
    return float(np.percentile(values, float(name.removeprefix("p"))))
