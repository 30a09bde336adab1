"""What a benchmark yields: a figure, its target, and the samples it was computed from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    relation: Literal[">=", "<="]
    bound: float

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.relation == ">=" else value <= self.bound


def at_least(bound: float) -> Target:
    return Target(relation=">=", bound=bound)


def at_most(bound: float) -> Target:
    return Target(relation="<=", bound=bound)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """arms: every sample behind `value`, by a name that ends in its unit."""

    name: str
    says: str  # what `value` is, in a line
    value: float
    unit: str
    target: Target
    arms: Mapping[str, Sequence[float]]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        return self.target.is_met(self.value)

    def line(self) -> str:
        verdict = "met" if self.is_met else "MISSED"
        return (
            f"{self.name}: {self.value:.4g} {self.unit}, "
            f"need {self.target.relation} {self.target.bound:.4g}: {verdict}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "says": self.says,
            "value": _rounded(self.value),
            "unit": self.unit,
            "target": {"relation": self.target.relation, "bound": _rounded(self.target.bound)},
            "met": self.is_met,
            "arms": {name: _summary(samples) for name, samples in self.arms.items()},
            "parameters": dict(self.parameters),
        }


def _summary(samples: Sequence[float]) -> dict[str, Any]:
    return {
        "median": _rounded(median(samples)),
        "min": _rounded(min(samples)),
        "max": _rounded(max(samples)),
        "samples": [_rounded(sample) for sample in samples],
    }


def _rounded(value: float) -> float:
    """Six digits: more would be noise in the file, and in its diffs."""
    return float(f"{value:.6g}")
