"""A node's profile as lines and tables for people; nothing here is printed."""

from typing import NamedTuple

from hetero.profile.facts.report import CPU, Facts
from hetero.profile.node_profile import (
    Ceilings,
    CodecRates,
    CoRun,
    EngineFit,
    ExpertUnion,
    NodeProfile,
    Noise,
    Role,
    RoleSettings,
    Soak,
)
from hetero.profile.rates import (
    CONTEXT,
    Rate,
    count_text,
    first_choice,
    fit_name,
    is_known,
    measured_first,
    rates,
    roof,
    typical_rate,
)

GIB = 2**30
ROLES: tuple[Role, Role] = ("prefill", "decode")
BEYOND = "*"  # after a rate that no sample reaches


class Table(NamedTuple):
    title: str
    heads: list[str]
    rows: list[list[str]]


def headline(profile: NodeProfile) -> str:
    """What the machine does with the model, in one line."""
    words = []
    for role in ROLES:
        fit = first_choice(profile, role)
        if fit is None:
            continue
        if not is_known(fit):
            words.append(f"{role} not known: {len(fit.samples)} samples are too few")
            continue
        rate = typical_rate(profile, fit)
        above = roof(profile.ceilings, fit.device)
        share = ""
        if rate.share is not None and above is not None:
            of = "read bandwidth" if role == "decode" else f"{above.flops_type} flops"
            share = f"{rate.share:.0%} of {of}, "
        types = fit.kv_k if fit.kv_k == fit.kv_v else f"{fit.kv_k}/{fit.kv_v}"
        words.append(
            f"{role} {rate_text(rate.tokens_per_s)} tok/s at {count_text(CONTEXT)} "
            f"({share}{_rates_interval_text(fit)}, {types}, {fit.source})"
        )
    return "; ".join(words) or "no engine was measured"


def facts_lines(facts: Facts) -> list[str]:
    """Of an estimate little is known, or nothing."""
    if not facts.cpu.cores:
        return []
    product = f"{facts.product}: " if facts.product else ""
    lines = [f"{product}{_cpu_text(facts.cpu)}, {_memory_text(facts)}"]
    usable = facts.usable
    if usable.cpu_quota is not None or len(usable.cpus) < facts.cpu.logical_cores:
        quota = "" if usable.cpu_quota is None else f", {usable.cpu_quota:g} cores' time"
        lines.append(
            f"usable: {len(usable.cpus)} of {facts.cpu.logical_cores} logical cores{quota}, "
            f"{usable.memory_bytes / GIB:.0f} GiB"
        )
    settings = [
        f"{name} {value}"
        for name, value in (
            ("governor", facts.cpu.governor),
            ("huge pages", facts.memory.transparent_huge_pages),
            ("virtual:", facts.virtual),
        )
        if value is not None
    ]
    if facts.power.on_battery:
        settings.append("on battery")
    lines.append(", ".join([facts.system, *settings]))
    for gpu in facts.gpus:
        parts = [gpu.name]
        if gpu.memory_bytes is not None:
            parts.append(f"{gpu.memory_bytes / GIB:.0f} GiB")
        if gpu.compute_capability is not None:
            parts.append(f"compute capability {gpu.compute_capability}")
        if gpu.pcie_generation is not None:
            parts.append(f"PCIe {gpu.pcie_generation} x{gpu.pcie_width}")
        lines.append(f"GPU {gpu.index}: {', '.join(parts)}")
    for nic in facts.nics:
        if nic.is_up and nic.speed_mbit:
            rdma = f", RDMA by {nic.rdma_device}" if nic.rdma_device else ""
            lines.append(f"{nic.name}: {nic.speed_mbit / 1000:g} Gbit/s, MTU {nic.mtu}{rdma}")
    for disk in facts.disks:
        lines.append(f"{disk.name}: {disk.kind}, {disk.num_bytes / 1e9:.0f} GB")
    return lines


def noise_lines(noise: Noise | None) -> list[str]:
    if noise is None:
        return ["estimated: nothing ran on the machine"]
    low, high = noise.speed
    pilots = f"a fixed step ran at {low:.0%} to {high:.0%} of its undisturbed speed"
    if not noise.is_noisy:
        return [f"quiet: {pilots}"]
    return [
        f"NOISY, measure again when it is idle: {pilots}; the intervals allow for it",
        *(f"- {reason}" for reason in noise.reasons),
    ]


def tables(profile: NodeProfile, *, with_estimates: bool) -> list[Table]:
    """Those that have rows, what matters most first. with_estimates: of pairs of types that were
    not measured, where others were."""
    found = [
        _fits_table(profile, "decode", with_estimates),
        _fits_table(profile, "prefill", with_estimates),
        ceilings_table(profile.ceilings),
        _codecs_table(profile.codecs),
        _co_runs_table(profile.co_runs),
        _settings_table(profile.settings),
        _tried_table(profile.settings),
    ]
    if profile.experts is not None:
        found.append(_experts_table(profile.experts))
    if profile.soak is not None:
        found.append(_soak_table(profile.soak))
    return [table for table in found if table.rows]


def rate_text(per_second: float) -> str:
    return f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.3g}"


def _fits_table(profile: NodeProfile, role: Role, with_estimates: bool) -> Table:
    fits = [fit for fit in profile.fits if fit.role == role]
    if not with_estimates:
        fits = measured_first(fits)
    found = [rates(profile, fit) for fit in fits]
    heads = [rate.what for rate in found[0]] if found else []
    of = "bandwidth" if role == "decode" else "flops"
    return Table(
        f"{role}, tokens/s and share of {of}",
        ["", *heads, "9 of 10 within", "error when tested", ""],
        [_fit_row(fit, row) for fit, row in zip(fits, found, strict=True)],
    )


def _fit_row(fit: EngineFit, found: list[Rate]) -> list[str]:
    error = fit.error
    return [
        fit_name(fit),
        *(_rate_cell(rate, has_samples=bool(fit.samples)) for rate in found),
        _rates_interval_text(fit),
        "" if error is None else f"{error.median:.1%}, p90 {error.p90:.1%}",
        fit.source if is_known(fit) else "too few samples",
    ]


def _rate_cell(rate: Rate, *, has_samples: bool) -> str:
    beyond = BEYOND if has_samples and not rate.is_sampled else ""
    share = "" if rate.share is None else f" ({rate.share:.0%})"
    return f"{rate_text(rate.tokens_per_s)}{beyond}{share}"


def _rates_interval_text(fit: EngineFit) -> str:
    """A fit's interval is of seconds: the longest are the lowest rate."""
    low, high = fit.interval
    return f"{1 / high - 1:+.0%} {1 / low - 1:+.0%}"


def ceilings_table(ceilings: Ceilings) -> Table:
    rows = []
    read, copy, triad = ceilings.read_gb_s, ceilings.copy_gb_s, ceilings.triad_gb_s
    if read is not None and copy is not None and triad is not None:
        name = f"memory, {ceilings.cores} cores"
        rows.append(_bandwidth_row(name, read, copy, triad, ceilings.tflops))
    parts = {f"memory, NUMA node {node}": part for node, part in ceilings.numa.items()}
    if len(parts) == 1:
        parts = {}
    if ceilings.one_core is not None:
        parts["memory, one core"] = ceilings.one_core
    for name, part in parts.items():
        rows.append(_bandwidth_row(name, part.read_gb_s, part.copy_gb_s, part.triad_gb_s))
    for index, gpu in enumerate(ceilings.gpus):
        name = f"{gpu.name}, cuda:{index}"
        rows.append([name, "", f"{gpu.copy_gb_s:.0f}", "", _tflops_text(gpu.tflops)])
        moves = [f"{gpu.from_device_gb_s:.1f}", f"{gpu.to_device_gb_s:.1f}"]
        rows.append([f"{name} over PCIe", *moves, "", ""])
    for disk in ceilings.disks:
        cached = "" if disk.is_direct else ", cached"
        moves = [f"{disk.read_gb_s:.2f}", f"{disk.write_gb_s:.2f}"]
        rows.append([f"disk at {disk.path}{cached}", *moves, "", ""])
    title = f"ceilings, GB/s, {ceilings.source}"
    return Table(title, ["", "read", "copy or write", "triad", "Tflop/s"], rows)


def _bandwidth_row(
    name: str, read: float, copy: float, triad: float, tflops: dict[str, float] | None = None
) -> list[str]:
    return [name, f"{read:.1f}", f"{copy:.1f}", f"{triad:.1f}", _tflops_text(tflops or {})]


def _tflops_text(tflops: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in tflops.items())


def _codecs_table(codecs: list[CodecRates]) -> Table:
    rows = [
        [
            f"K {each.kv_k}, V {each.kv_v}",
            f"{each.pack_gb_s:.2f}",
            f"{each.restore_gb_s:.2f}",
            f"{1000 * each.restore_s:.2f} ms",
            each.source,
        ]
        for each in codecs
    ]
    heads = ["", "pack", "restore", "each restore", "source"]
    return Table("KV between cells and wire, GB/s on one thread", heads, rows)


def _co_runs_table(co_runs: list[CoRun]) -> Table:
    rows = [
        [
            f"{each.what} beside {each.beside}",
            f"{each.slowdown:.2f}x",
            "" if each.beside_slowdown is None else f"{each.beside_slowdown:.2f}x",
            each.source,
            each.note,
        ]
        for each in co_runs
    ]
    return Table("two things at once, longer by", ["", "it", "the other", "source", ""], rows)


def _experts_table(found: ExpertUnion) -> Table:
    share = found.num_used / found.num_experts
    evenly = [found.num_experts * (1 - (1 - share) ** rows) for rows in found.rows]
    return Table(
        f"experts of a layer, of {found.num_experts}, that a step wakes",
        ["rows", *map(str, found.rows), "source"],
        [
            ["text", *(f"{experts:.1f}" for experts in found.experts), found.source],
            ["if drawn evenly", *(f"{experts:.1f}" for experts in evenly), ""],
        ],
    )


def _settings_table(settings: dict[Role, RoleSettings]) -> Table:
    rows = [
        [
            role,
            str(found.threads),
            f"{len(found.cpus)} CPUs" if found.cpus else "any",
            _numa_text(found),
            found.load,
            "unified" if found.unified else "streams",
        ]
        for role, found in settings.items()
    ]
    heads = ["", "threads", "run on", "NUMA node", "load", "cache"]
    return Table("settings found best", heads, rows)


def _tried_table(settings: dict[Role, RoleSettings]) -> Table:
    ways = dict.fromkeys(way for found in settings.values() for way in found.tried)
    rows = [
        [way, *(_tried_text(found.tried.get(way)) for found in settings.values())] for way in ways
    ]
    return Table("tried for them, milliseconds of one step", ["", *settings], rows)


def _tried_text(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g}"


def _numa_text(found: RoleSettings) -> str:
    if found.interleave:
        return ", ".join(map(str, found.interleave)) + " in turn"
    return "any" if found.numa_node is None else str(found.numa_node)


def _soak_table(soak: Soak) -> Table:
    rates_ = [f"{rate:.3g}" for rate in (soak.first_rate, soak.last_rate, soak.lowest_rate)]
    mhz = "" if soak.mhz is None else f"{soak.mhz[0]:.0f} to {soak.mhz[1]:.0f}"
    watts = "" if soak.watts is None else f"{soak.watts:.0f} ({soak.meter})"
    return Table(
        f"steps/s, on and on for {soak.seconds:.0f} s",
        ["first", "last", "lowest", "MHz", "watts", "throttled"],
        [[*rates_, mhz, watts, ", ".join(soak.throttled) or "no"]],
    )


def _cpu_text(cpu: CPU) -> str:
    sockets = "" if cpu.sockets == 1 else f"{cpu.sockets} x "
    wide = [name for name in cpu.isa if name.startswith(("avx", "amx"))]
    return f"{sockets}{cpu.model}, {cpu.cores} cores ({' '.join(wide) or 'no AVX'})"


def _memory_text(facts: Facts) -> str:
    memory = facts.memory
    text = f"{memory.num_bytes / GIB:.0f} GiB"
    if memory.kind is not None:
        speed = "" if memory.mega_transfers is None else f"-{memory.mega_transfers}"
        text += f" {memory.kind}{speed}"
    if memory.nominal_gb_s is not None:
        text += f" on {memory.channels} channels ({memory.nominal_gb_s:.0f} GB/s nominal)"
    return text
