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

    def to_json(self) -> dict[str, Any]:
        return {"relation": self.relation, "bound": rounded(self.bound)}


def at_least(bound: float) -> Target:
    return Target(relation=">=", bound=bound)


def at_most(bound: float) -> Target:
    return Target(relation="<=", bound=bound)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """arms: every sample behind `value`, by a name that ends in its unit.

    Without a target it is stated, and neither met nor missed.
    """

    name: str
    says: str  # what `value` is, in a line
    value: float
    unit: str
    target: Target | None
    arms: Mapping[str, Sequence[float]]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        return None if self.target is None else self.target.is_met(self.value)

    def line(self) -> str:
        line = f"{self.name}: {self.value:.4g} {self.unit}"
        if self.target is None:
            return line
        verdict = "met" if self.is_met else "MISSED"
        return f"{line}, need {self.target.relation} {self.target.bound:.4g}: {verdict}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "says": self.says,
            "value": rounded(self.value),
            "unit": self.unit,
            "target": None if self.target is None else self.target.to_json(),
            "met": self.is_met,
            "arms": {name: _summary(samples) for name, samples in self.arms.items()},
            "parameters": dict(self.parameters),
        }


def _summary(samples: Sequence[float]) -> dict[str, Any]:
    return {
        "median": rounded(median(samples)),
        "min": rounded(min(samples)),
        "max": rounded(max(samples)),
        "samples": [rounded(sample) for sample in samples],
    }


def rounded(value: float) -> float:
    """Six digits: more would be noise in the file, and in its diffs."""
    return float(f"{value:.6g}")
