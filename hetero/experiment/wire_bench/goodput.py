"""Figure `goodput`: KV from packed rows to restored cells, as a share of what iperf3 moves.

Ceiling: one TCP connection that moves bytes from nowhere to nowhere, on the same link.
"""

from dataclasses import dataclass
from importlib.metadata import version
from statistics import mean, median

from hetero.experiment.figures import Figure, Say, Target, at_least
from hetero.experiment.wire_bench.link import Link, shaped_link
from hetero.experiment.wire_bench.settings import Settings
from hetero.messages import TransportName
from hetero.profile.link.report import Goodput, LinkProfile

# The promise is for the default seal, on the links that homelabs have.
_TARGETS: dict[tuple[str, str, str], Target] = {
    ("tcp", "aead", "1gbit"): at_least(0.95),
    ("tcp", "aead", "10gbit"): at_least(0.95),
}


def measure(settings: Settings, rate: str, say: Say) -> list[Figure]:
    with shaped_link(settings, rate) as link:
        rounds = [_round(link, say) for _ in range(settings.num_rounds)]
    figures = [
        _figure(settings, rate, transport, seal, rounds)
        for transport in settings.transports
        for seal in settings.seals_of(transport)
    ]
    if settings.with_mooncake:
        figures.append(_mooncake_figure(settings, rate, rounds))
    return figures


@dataclass(frozen=True)
class _Round:
    """Bytes per second, one after the other."""

    iperf3: float
    hetero: dict[TransportName, LinkProfile]
    mooncake: float | None


def _round(link: Link, say: Say) -> _Round:
    """iperf3 before and after, and what is compared with it between."""
    settings = link.settings
    before = link.iperf3()
    ours = {transport: link.hetero(transport) for transport in settings.transports}
    size = next(iter(ours.values())).transfer_bytes
    mooncake = link.mooncake(size) if settings.with_mooncake else None
    beside = mean([before, link.iperf3()])
    shares = {
        f"{transport} {row.seal}": row.bytes_per_s.median / beside
        for transport, profile in ours.items()
        for row in profile.goodput
    }
    if mooncake is not None:
        shares["mooncake"] = mooncake / beside
    told = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    say(f"iperf3 {8e-9 * beside:.2f} Gbit/s; of it: {told}")
    return _Round(beside, ours, mooncake)


def _mooncake_figure(settings: Settings, rate: str, rounds: list[_Round]) -> Figure:
    moved = [one.mooncake for one in rounds if one.mooncake is not None]
    ratios = [rate_there / one.iperf3 for rate_there, one in zip(moved, rounds, strict=True)]
    return Figure(
        name=f"mooncake_{rate}",
        says="bytes per second of Mooncake's engine over TCP, memory to memory, over iperf3's",
        value=median(ratios),
        unit="ratio",
        target=None,
        arms={
            "round_ratio": ratios,
            "gbit_per_s": [8e-9 * one for one in moved],
            "iperf3_gbit_per_s": [8e-9 * one.iperf3 for one in rounds],
        },
        parameters={"rate": rate, "mtu": settings.mtu, "version": _mooncake_version()},
    )


def _mooncake_version() -> str:
    return version("mooncake-transfer-engine-non-cuda")


def _figure(
    settings: Settings, rate: str, transport: TransportName, seal: str, rounds: list[_Round]
) -> Figure:
    profiles = [one.hetero[transport] for one in rounds]
    rows = [_row(profile, seal) for profile in profiles]
    iperf3 = [one.iperf3 for one in rounds]
    ratios = [row.bytes_per_s.median / beside for row, beside in zip(rows, iperf3, strict=True)]
    plain = [profile.plain for profile in profiles]
    return Figure(
        name=f"{transport}_{seal}_{rate}",
        says=f"KV bytes per second by {transport}, seal {seal}, over iperf3's, one connection",
        value=median(ratios),
        unit="ratio",
        target=_TARGETS.get((transport, seal, rate)),
        arms={
            "round_ratio": ratios,
            "kv_gbit_per_s": [8e-9 * row.bytes_per_s.median for row in rows],
            "iperf3_gbit_per_s": [8e-9 * beside for beside in iperf3],
            "plain_stream_gbit_per_s": [8e-9 * one.bytes_per_s.median for one in plain],
            "source_cores": [row.source_cores.median for row in rows],
            "sink_cores": [row.sink_cores.median for row in rows],
            "plain_source_cores": [one.source_cores.median for one in plain],
            "plain_sink_cores": [one.sink_cores.median for one in plain],
            "restore_s": [row.restore_s.median for row in rows],
            "connections_used": [row.connections_used.median for row in rows],
            "rtt_s": [profile.rtt_s.median for profile in profiles],
        },
        parameters={
            "rate": rate,
            "mtu": settings.mtu,
            "transport": transport,
            "seal": seal,
            "shape": settings.shape,
            "kv_type": settings.kv_type,
            "transfer_bytes": profiles[0].transfer_bytes,
            "window_bytes": rows[-1].window_bytes,
            "connections": "as the window asks, for each of up to two transfers under way",
        },
    )


def _row(profile: LinkProfile, seal: str) -> Goodput:
    return next(row for row in profile.goodput if row.seal == seal)
