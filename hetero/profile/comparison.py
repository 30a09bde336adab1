"""Two profiles side by side: figures by name, each with the second's ratio to the first."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from hetero.errors import ConfigError
from hetero.profile.document import Profile, kind_of, require_model
from hetero.profile.link.report import LinkProfile
from hetero.profile.node_profile import NodeProfile
from hetero.profile.rates import fit_name, rates


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One name's values; None where a profile has no such figure. note: what is not measured."""

    section: str
    name: str
    unit: str
    a: float | None
    b: float | None
    note: str

    @property
    def ratio(self) -> float | None:
        return None if not self.a or self.b is None else self.b / self.a


class _Value(NamedTuple):
    number: float
    note: str = ""


# (section, name, unit) -> value, in the order to be shown.
_Values = dict[tuple[str, str, str], _Value]


def compare(a: Profile, b: Profile) -> list[Figure]:
    """Raises: ConfigError for a node's beside a link's, and for machines'."""
    if isinstance(a, NodeProfile) and isinstance(b, NodeProfile):
        ours, theirs = _node_values(a), _node_values(b)
    elif isinstance(a, LinkProfile) and isinstance(b, LinkProfile):
        ours, theirs = _link_values(a), _link_values(b)
    else:
        raise ConfigError(f"kind: need two nodes' profiles or two links', have {_kinds(a, b)}")
    names = [*ours, *(name for name in theirs if name not in ours)]
    # New names of the second profile among those of their section.
    sections = list(dict.fromkeys(section for section, _, _ in names))
    names.sort(key=lambda name: sections.index(name[0]))
    return [_figure(name, ours.get(name), theirs.get(name)) for name in names]


def _kinds(a: Profile, b: Profile) -> str:
    ours, theirs = kind_of(a), kind_of(b)
    have = f"two {ours}s'" if ours == theirs else f"a {ours}'s and a {theirs}'s"
    if "machine" in (ours, theirs):
        have += "; measure with `hetero profile node -m MODEL`"
    return have


def _figure(key: tuple[str, str, str], a: _Value | None, b: _Value | None) -> Figure:
    section, name, unit = key
    notes = {side: value.note for side, value in (("A", a), ("B", b)) if value is not None}
    note = next(iter(notes.values()))
    if len(set(notes.values())) > 1:
        note = ", ".join(f"{side} {text}" for side, text in notes.items() if text)
    return Figure(
        section=section,
        name=name,
        unit=unit,
        a=None if a is None else a.number,
        b=None if b is None else b.number,
        note=note,
    )


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
            note = "" if rate.is_sampled else "beyond the samples"
            if fit.source == "estimated":
                note = "estimated"
            name = f"{fit_name(fit)}, {rate.what}"
            values[fit.role, name, "tok/s"] = _Value(rate.tokens_per_s, note)
    ceilings = profile.ceilings
    memory = {"read": ceilings.read_gb_s, "copy": ceilings.copy_gb_s, "triad": ceilings.triad_gb_s}
    for name, gb_s in memory.items():
        if gb_s is not None:
            values["ceilings", f"memory, {name}", "GB/s"] = _Value(gb_s)
    for kind, tflops in ceilings.tflops.items():
        values["ceilings", f"{kind} flops", "Tflop/s"] = _Value(tflops)
    for index, gpu in enumerate(ceilings.gpus):
        values["ceilings", f"cuda:{index}, copy", "GB/s"] = _Value(gpu.copy_gb_s)
        for kind, tflops in gpu.tflops.items():
            values["ceilings", f"cuda:{index}, {kind} flops", "Tflop/s"] = _Value(tflops)
    for each in profile.codecs:
        types = f"K {each.kv_k}, V {each.kv_v}"
        values["codecs", f"pack {types}", "GB/s"] = _Value(each.pack_gb_s)
        values["codecs", f"restore {types}", "GB/s"] = _Value(each.restore_gb_s)
    for run in profile.co_runs:
        values["co-runs", f"{run.what} beside {run.beside}", "x longer"] = _Value(run.slowdown)
    if profile.noise is not None:
        for name, seconds in profile.noise.pilot_s.items():
            values["pilots", name, "ms"] = _Value(1000 * seconds)
    return values


def _link_values(profile: LinkProfile) -> _Values:
    plain = _Value(8e-9 * profile.plain.bytes_per_s.median)
    values: _Values = {("link", "plain TCP", "Gbit/s"): plain}
    for row in profile.goodput:
        count = "" if row.connections is None else f", {row.connections} connections"
        gbit_s = 8e-9 * row.bytes_per_s.median
        values["link", f"KV, {row.seal}{count}", "Gbit/s"] = _Value(gbit_s)
    values["link", "round trip", "us"] = _Value(1e6 * profile.rtt_s.median)
    values["link", "packing", "GB/s"] = _Value(1e-9 * profile.pack_bytes_per_s.median)
    return values
