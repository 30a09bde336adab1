"""When sessions begin: times in seconds, the first at 0, at a mean rate.

constant      equal gaps
poisson       independent of one another
gamma:0.5     burstiness as vLLM's: the shape of the gaps' gamma distribution, of which 1 is
              Poisson, below it is bursty, above it regular. The gaps' coefficient of variation
              is 1 / sqrt(shape).
"""

import math

import numpy as np

from hetero.errors import ConfigError


def burstiness(arrivals: str) -> float:
    """The shape of the gaps' gamma distribution; infinite if they are constant.

    Raises: ConfigError
    """
    kind, _, shape = arrivals.partition(":")
    if arrivals == "constant":
        return math.inf
    if arrivals == "poisson":
        return 1.0
    if kind == "gamma":
        try:
            number = float(shape)
        except ValueError:
            number = 0.0
        if 0 < number < math.inf:
            return number
    raise ConfigError(
        f"arrivals: need constant, poisson, or gamma:SHAPE with a shape above 0, have {arrivals!r}"
    )


def arrival_times(
    arrivals: str, rate: float, count: int, random: np.random.Generator
) -> list[float]:
    """rate: per second. The same draws are behind every rate, so only the scale differs.

    Raises: ConfigError
    """
    if not 0 < rate < math.inf:
        raise ConfigError(f"rate: need sessions per second above 0, have {rate:g}")
    shape = burstiness(arrivals)
    gaps = np.ones(count) if math.isinf(shape) else random.standard_gamma(shape, count) / shape
    gaps[:1] = 0.0
    return [float(at_s) for at_s in np.cumsum(gaps) / rate]
