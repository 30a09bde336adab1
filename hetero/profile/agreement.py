"""Whether two runs on one machine and model come to the same predictions.

A run's seconds are those of its machine undisturbed, and scale with its pilots': predictions are
compared in units of the pilot that resembles the work.
"""

from collections.abc import Callable, Iterator
from statistics import median

import msgspec

from hetero.errors import ConfigError
from hetero.profile.node_profile import PILOT_OF, EngineFit, NodeProfile, Role, Sample
from hetero.profile.rates import fit_name
from hetero.profile.work import Work, chunk_work, step_work

# Lines of the grid along rows, and along cells for each row.
_LINES = 6

# Fewer points say nothing of how well two runs agree.
LEAST_POINTS = 10

# Undisturbed, one machine's pilots differ by less.
_PILOT_DIFFERENCE = 0.2

# Other sequences' cells beside a prompt's, and a batch's shorter contexts over its longest.
_OTHERS = 3
_SHORT = 0.25


class PointRatio(msgspec.Struct, frozen=True, kw_only=True):
    """One step in both runs. ratio: of the second run's normalized seconds over the first's."""

    work: Work
    ratio: float


class FitAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """Deviations are relative, the same whichever run is first: 0.05 for 1.05 and for 1 / 1.05."""

    role: Role
    name: str
    points: list[PointRatio]
    median_deviation: float
    worst_deviation: float


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    fits: list[FitAgreement]
    in_one_only: list[str]  # fits of one run
    apart: list[str]  # of both, without samples in common
    median_deviation: float
    worst_deviation: float

    @property
    def unmatched(self) -> list[str]:
        return self.in_one_only + self.apart

    @property
    def num_points(self) -> int:
        return sum(len(fit.points) for fit in self.fits)


def agreement(a: NodeProfile, b: NodeProfile) -> Agreement:
    """Over a grid inside both runs' samples.

    Raises: ConfigError for two machines or models, without pilots, or with no fit in common.
    """
    for what, ours, theirs in zip(("host", "CPU", "model"), _whose(a), _whose(b), strict=True):
        if ours != theirs:
            raise ConfigError(f"{what}: need two runs on one, have {ours} and {theirs}")
    sampled = [fit for fit in a.fits if fit.samples]  # the others are estimates
    others = {(fit.role, fit_name(fit)): fit for fit in b.fits if fit.samples}
    names = {(fit.role, fit_name(fit)) for fit in sampled}
    in_one_only = [f"{role} {name}" for role, name in others if (role, name) not in names]
    apart = []
    fits = []
    for fit in sampled:
        name = fit_name(fit)
        other = others.get((fit.role, name))
        if other is None:
            in_one_only.append(f"{fit.role} {name}")
            continue
        works = list(_shared_steps(fit, other))
        if not works:
            apart.append(f"{fit.role} {name}")
            continue
        scale = _pilot_s(a, fit) / _pilot_s(b, fit)
        points = [
            PointRatio(work=work, ratio=scale * _seconds(other, work) / _seconds(fit, work))
            for work in works
        ]
        fits.append(
            FitAgreement(
                role=fit.role,
                name=name,
                points=points,
                median_deviation=median(map(_deviation, points)),
                worst_deviation=max(map(_deviation, points)),
            )
        )
    deviations = [_deviation(point) for fit in fits for point in fit.points]
    if not deviations:
        raise ConfigError("fits: need one with samples in common, have none")
    return Agreement(
        fits=fits,
        in_one_only=in_one_only,
        apart=apart,
        median_deviation=median(deviations),
        worst_deviation=max(deviations),
    )


def doubts(a: NodeProfile, b: NodeProfile) -> list[str]:
    """Which run was noisy; of two on one machine and model pilots of another speed."""
    lines = []
    for name, noise in (("A", a.noise), ("B", b.noise)):
        if noise is not None and noise.is_noisy:
            lines.append(f"{name} was noisy: {'; '.join(noise.reasons)}")
    ours, theirs = a.noise, b.noise
    if ours is None or theirs is None or _whose(a) != _whose(b):
        return lines
    for name in ours.pilot_s.keys() & theirs.pilot_s.keys():
        ratio = theirs.pilot_s[name] / ours.pilot_s[name]
        if max(ratio, 1 / ratio) > 1 + _PILOT_DIFFERENCE:
            lines.append(
                f"not one speed: undisturbed, B's {name} pilot took {ratio:.3g} times A's seconds"
            )
    return sorted(lines)


def _whose(profile: NodeProfile) -> tuple[str, str, str]:
    model = profile.model
    digests = model.fingerprint
    weights = f"shape {model.name}" if digests is None else f"tensors {digests.tensors[:16]}"
    return profile.host, profile.facts.cpu.model, weights


def _pilot_s(profile: NodeProfile, fit: EngineFit) -> float:
    """A GPU has a pilot of its own."""
    name = PILOT_OF[fit.role] if fit.device == "cpu" else fit.device
    if profile.noise is None or name not in profile.noise.pilot_s:
        raise ConfigError(f"noise.pilot_s of {profile.host}: need {name}, have none")
    return profile.noise.pilot_s[name]


def _seconds(fit: EngineFit, work: Work) -> float:
    """Of a step; of a prompt in one step, where that is what its user waits for."""
    step_s = fit.cost.seconds(work)
    return step_s + fit.request_s if fit.role == "prefill" else step_s


def _deviation(point: PointRatio) -> float:
    return max(point.ratio, 1 / point.ratio) - 1


def _shared_steps(a: EngineFit, b: EngineFit) -> Iterator[Work]:
    """Steps no further out than both runs' samples: of equal contexts, of one long one among short
    ones, beside other sequences' cells."""
    if not a.samples or not b.samples or a.unified != b.unified:
        return
    low_rows, high_rows = _shared(a, b, lambda sample: sample.work.rows)
    low_cells, high_cells = _shared(a, b, _cells)
    most_masked = _shared(a, b, lambda sample: sample.work.masked)[1]
    for rows in sorted({round(rows) for rows in _geometric(low_rows, high_rows)}):
        for cells in sorted({round(cells) for cells in _geometric(max(1, low_cells), high_cells)}):
            for work in _steps(a, rows, cells):
                if work.masked <= most_masked:
                    yield work


def _steps(fit: EngineFit, rows: int, cells: int) -> set[Work]:
    others = [0, _OTHERS * cells] if fit.unified else [0]
    if fit.role == "prefill":
        return {chunk_work(rows, cells, each, fit.unified) for each in others}
    short = max(1, round(_SHORT * cells))
    batches = [[cells] * rows, [cells, *[short] * (rows - 1)]]
    # What few rows of a pool take beside others' cells, docs/profile.md says under Limits.
    return {step_work(batch, 0, fit.unified) for batch in batches}


def _cells(sample: Sample) -> float:
    """Of each sequence, on average, before the step."""
    work = sample.work
    return max(0.0, work.cells - work.rows) if work.cells else work.visible / work.rows


def _shared(a: EngineFit, b: EngineFit, of: Callable[[Sample], float]) -> tuple[float, float]:
    """The range that both runs' samples have, lowest and highest."""
    ours, theirs = [of(sample) for sample in a.samples], [of(sample) for sample in b.samples]
    return max(min(ours), min(theirs)), min(max(ours), max(theirs))


def _geometric(low: float, high: float) -> list[float]:
    """None of an empty range."""
    if low > high:
        return []
    if low == high or low <= 0:
        return sorted({low, high})
    ratio = high / low
    return [*(low * ratio ** (line / (_LINES - 1)) for line in range(_LINES - 1)), high]
