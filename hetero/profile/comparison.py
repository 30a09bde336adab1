"""Two profiles side by side: figures by name, each with the second's ratio to the first."""

from pathlib import Path

import msgspec

from hetero.errors import ConfigError
from hetero.profile.document import Profile, require_model
from hetero.profile.link.report import LinkProfile
from hetero.profile.node_profile import NodeProfile
from hetero.profile.rates import fit_name, rates


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One name's values; None where a profile has no such figure."""

    section: str
    name: str
    unit: str
    a: float | None
    b: float | None

    @property
    def ratio(self) -> float | None:
        return None if not self.a or self.b is None else self.b / self.a


# (section, name, unit) -> value, in the order to be shown.
_Values = dict[tuple[str, str, str], float]


def compare(a: Profile, b: Profile) -> list[Figure]:
    """Raises: ConfigError for a node's beside a link's."""
    if isinstance(a, NodeProfile) and isinstance(b, NodeProfile):
        ours, theirs = _node_values(a), _node_values(b)
    elif isinstance(a, LinkProfile) and isinstance(b, LinkProfile):
        ours, theirs = _link_values(a), _link_values(b)
    else:
        raise ConfigError("kind: need two nodes' profiles or two links', have one of each")
    names = [*ours, *(name for name in theirs if name not in ours)]
    # New names of the second profile among those of their section.
    sections = list(dict.fromkeys(section for section, _, _ in names))
    names.sort(key=lambda name: sections.index(name[0]))
    return [
        Figure(
            section=section,
            name=name,
            unit=unit,
            a=ours.get((section, name, unit)),
            b=theirs.get((section, name, unit)),
        )
        for section, name, unit in names
    ]


def require_same_model(a: NodeProfile, a_path: Path, b: NodeProfile, b_path: Path) -> None:
    """Raises: ConfigError if the profiles are of different models."""
    if a.model.fingerprint is not None:
        require_model(b, a.model.fingerprint, b_path)
    elif b.model.fingerprint is not None:
        require_model(a, b.model.fingerprint, a_path)
    elif a.model.name != b.model.name:
        raise ConfigError(
            f"{b_path}: model: need a profile of {a.model.name}, have one of {b.model.name}; "
            "measure the same shape on both, or say --any-model"
        )


def _node_values(profile: NodeProfile) -> _Values:
    values: _Values = {}
    for fit in profile.fits:
        for rate in rates(profile, fit):
            values[fit.role, f"{fit_name(fit)}, {rate.what}", "tok/s"] = rate.tokens_per_s
    ceilings = profile.ceilings
    for name in ("read", "copy", "triad"):
        values["ceilings", f"memory, {name}", "GB/s"] = getattr(ceilings, f"{name}_gb_s")
    for kind, tflops in ceilings.tflops.items():
        values["ceilings", f"{kind} flops", "Tflop/s"] = tflops
    for index, gpu in enumerate(ceilings.gpus):
        values["ceilings", f"cuda:{index}, copy", "GB/s"] = gpu.copy_gb_s
        for kind, tflops in gpu.tflops.items():
            values["ceilings", f"cuda:{index}, {kind} flops", "Tflop/s"] = tflops
    for each in profile.codecs:
        types = f"K {each.kv_k}, V {each.kv_v}"
        values["codecs", f"pack {types}", "GB/s"] = each.pack_gb_s
        values["codecs", f"restore {types}", "GB/s"] = each.restore_gb_s
    for run in profile.co_runs:
        values["co-runs", f"{run.what} beside {run.beside}", "x longer"] = run.slowdown
    if profile.noise is not None:
        for name, seconds in profile.noise.pilot_s.items():
            values["pilots", name, "ms"] = 1000 * seconds
    return values


def _link_values(profile: LinkProfile) -> _Values:
    values: _Values = {("link", "plain TCP", "Gbit/s"): 8e-9 * profile.plain.bytes_per_s.median}
    for row in profile.goodput:
        count = "" if row.connections is None else f", {row.connections} connections"
        values["link", f"KV, {row.seal}{count}", "Gbit/s"] = 8e-9 * row.bytes_per_s.median
    values["link", "round trip", "us"] = 1e6 * profile.rtt_s.median
    values["link", "packing", "GB/s"] = 1e-9 * profile.pack_bytes_per_s.median
    return values
