"""Distributions of token counts, turns and seconds, and the text they are written as.

    512                             always this
    uniform:10-200                  both ends included
    lognormal:900:4000              median and 95th percentile; or lognormal:mean=1500:sigma=1.1
    exponential:30                  mean
    geometric:3.5                   mean; 1, 2, 3 ...
    quantiles:0=7:50=129:95=451:100=1000    from data, linear in between

Each takes :min=N and :max=N behind it, to which values beyond are set. Every value is drawn from
one uniform number, its share of the values below it, so equal seeds stay comparable where a
parameter differs.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist

import msgspec
import numpy as np

from hetero.errors import ConfigError

_NORMAL = NormalDist()
_Z95 = _NORMAL.inv_cdf(0.95)

# Numpy draws from [0, 1) in steps of 2**-53; a quantile function wants (0, 1).
_SMALLEST = 2.0**-54


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    low: float = 0.0  # what is drawn beyond these is set to them
    high: float = math.inf

    def quantile(self, share: float) -> float:
        """The value that a share of all values, between 0 and 1, lies below; not clipped."""
        raise NotImplementedError

    def draw(self, random: np.random.Generator) -> float:
        return self.value(max(random.random(), _SMALLEST))

    def value(self, share: float) -> float:
        return min(max(self.quantile(share), self.low), self.high)

    def draw_count(self, random: np.random.Generator) -> int:
        """A whole number, 1 or more."""
        return self.count(max(random.random(), _SMALLEST))

    def count(self, share: float) -> int:
        return max(1, round(self.value(share)))


class Fixed(Distribution, frozen=True, kw_only=True):
    always: float

    def quantile(self, share: float) -> float:
        return self.always


class Uniform(Distribution, frozen=True, kw_only=True):
    begin: float
    end: float

    def quantile(self, share: float) -> float:
        return self.begin + share * (self.end - self.begin)

    def count(self, share: float) -> int:
        # Rounded, the two ends would come half as often as the rest.
        drawn = math.floor(self.begin + share * (self.end - self.begin + 1))
        return max(1, int(min(max(drawn, self.low), self.high)))


class Lognormal(Distribution, frozen=True, kw_only=True):
    median: float
    sigma: float  # of the logarithm

    def quantile(self, share: float) -> float:
        return self.median * math.exp(self.sigma * _NORMAL.inv_cdf(share))


class Exponential(Distribution, frozen=True, kw_only=True):
    mean: float

    def quantile(self, share: float) -> float:
        return -self.mean * math.log1p(-share)


class Geometric(Distribution, frozen=True, kw_only=True):
    mean: float

    def quantile(self, share: float) -> float:
        if self.mean == 1:
            return 1.0
        return math.ceil(math.log1p(-share) / math.log1p(-1 / self.mean))


class Quantiles(Distribution, frozen=True, kw_only=True):
    points: tuple[tuple[float, float], ...]  # share, value; sorted by both, from share 0 to 1

    def quantile(self, share: float) -> float:
        shares, values = zip(*self.points, strict=True)
        return float(np.interp(share, shares, values))


@lru_cache(maxsize=256)
def distribution(text: str | float) -> Distribution:
    """Raises: ConfigError with the text and what is wrong with it."""
    text = str(text).strip()
    name, *rest = text.split(":")
    if not rest:
        return Fixed(always=_number(text, name))
    if name not in _KINDS:
        raise ConfigError(f"{text!r}: need a number or one of {', '.join(_KINDS)}, have {name!r}")
    positions = [part for part in rest if "=" not in part]
    named = dict(part.split("=", 1) for part in rest if "=" in part)
    limits = {
        field: _number(text, named.pop(key))
        for key, field in (("min", "low"), ("max", "high"))
        if key in named
    }
    made = msgspec.structs.replace(_KINDS[name](text, positions, named), **limits)
    if made.low > made.high:
        raise ConfigError(f"{text!r}: need min below max, have {made.low:g} and {made.high:g}")
    return made


def _uniform(text: str, positions: Sequence[str], named: Mapping[str, str]) -> Distribution:
    if len(positions) != 1 or named or positions[0].count("-") != 1:
        raise ConfigError(f"{text!r}: need uniform:LOW-HIGH, as uniform:10-200")
    begin, end = (_number(text, end) for end in positions[0].split("-"))
    if begin > end:
        raise ConfigError(f"{text!r}: need the lower end first, have {begin:g} to {end:g}")
    return Uniform(begin=begin, end=end)


def _lognormal(text: str, positions: Sequence[str], named: Mapping[str, str]) -> Distribution:
    if len(positions) == 2 and not named:
        named = dict(zip(("median", "p95"), positions, strict=True))
        positions = []
    figures = {key: _number(text, figure) for key, figure in named.items()}
    if positions or any(figure <= 0 for figure in figures.values()):
        figures = {}
    match sorted(figures):
        case ["median", "p95"] if figures["median"] <= figures["p95"]:
            sigma = math.log(figures["p95"] / figures["median"]) / _Z95
            return Lognormal(median=figures["median"], sigma=sigma)
        case ["mean", "sigma"]:
            sigma = figures["sigma"]
            return Lognormal(median=figures["mean"] * math.exp(-(sigma**2) / 2), sigma=sigma)
    raise ConfigError(
        f"{text!r}: need lognormal:MEDIAN:P95, the median the smaller one, "
        "or lognormal:mean=M:sigma=S, all above 0"
    )


def _mean(text: str, positions: Sequence[str], named: Mapping[str, str]) -> float:
    if len(positions) != 1 or named:
        raise ConfigError(f"{text!r}: need a mean and nothing else, as exponential:30")
    return _number(text, positions[0])


def _exponential(text: str, positions: Sequence[str], named: Mapping[str, str]) -> Distribution:
    return Exponential(mean=_mean(text, positions, named))


def _geometric(text: str, positions: Sequence[str], named: Mapping[str, str]) -> Distribution:
    mean = _mean(text, positions, named)
    if mean < 1:
        raise ConfigError(f"{text!r}: need a mean of 1 or more, have {mean:g}")
    return Geometric(mean=mean)


def _quantiles(text: str, positions: Sequence[str], named: Mapping[str, str]) -> Distribution:
    points = [(_number(text, share) / 100, _number(text, at)) for share, at in named.items()]
    rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))
    if positions or not rising or len(points) < 2 or (points[0][0], points[-1][0]) != (0, 1):
        raise ConfigError(
            f"{text!r}: need rising values from percentile 0 to 100, as quantiles:0=7:50=90:100=800"
        )
    return Quantiles(points=tuple(points))


_KINDS = {
    "uniform": _uniform,
    "lognormal": _lognormal,
    "exponential": _exponential,
    "geometric": _geometric,
    "quantiles": _quantiles,
}


def _number(text: str, part: str) -> float:
    try:
        number = float(part)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise ConfigError(f"{text!r}: need a number, 0 or more, have {part!r}") from None
    return number
