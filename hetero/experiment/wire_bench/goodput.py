"""Figure `goodput`: KV from packed rows to restored cells, as a share of what iperf3 moves.

Ceiling: one TCP connection that moves bytes from nowhere to nowhere, on the same link.
"""

from statistics import mean, median

from hetero.experiment.figures import Figure, Say, Target, at_least
from hetero.experiment.wire_bench.link import Link, shaped_link
from hetero.experiment.wire_bench.settings import Settings
from hetero.profile.link_report import Goodput, LinkProfile

# The promise is for the default seal, on the links that homelabs have.
_TARGETS: dict[tuple[str, str], Target] = {
    ("aead", "1gbit"): at_least(0.95),
    ("aead", "10gbit"): at_least(0.95),
}


def measure(settings: Settings, rate: str, say: Say) -> list[Figure]:
    with shaped_link(settings, rate) as link:
        rounds = [_round(link, say) for _ in range(settings.num_rounds)]
    return [_figure(settings, rate, seal, rounds) for seal in settings.seals]


def _round(link: Link, say: Say) -> tuple[float, LinkProfile]:
    """iperf3's rate, before and after, and ours between."""
    before = link.iperf3()
    ours = link.hetero()
    beside = mean([before, link.iperf3()])
    shares = [f"{row.seal} {row.bytes_per_s.median / beside:.3f}" for row in ours.goodput]
    say(f"iperf3 {8e-9 * beside:.2f} Gbit/s; of it: {', '.join(shares)}")
    return beside, ours


def _figure(
    settings: Settings, rate: str, seal: str, rounds: list[tuple[float, LinkProfile]]
) -> Figure:
    rows = [_row(profile, seal) for _, profile in rounds]
    iperf3 = [beside for beside, _ in rounds]
    ratios = [row.bytes_per_s.median / beside for row, beside in zip(rows, iperf3, strict=True)]
    plain = [profile.plain for _, profile in rounds]
    first = rounds[0][1]
    return Figure(
        name=f"goodput_{seal}_{rate}",
        says=f"KV bytes per second, seal {seal}, over iperf3's, one connection",
        value=median(ratios),
        unit="ratio",
        target=_TARGETS.get((seal, rate)),
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
            "rtt_s": [profile.rtt_s.median for _, profile in rounds],
        },
        parameters={
            "rate": rate,
            "mtu": settings.mtu,
            "seal": seal,
            "shape": settings.shape,
            "kv_type": settings.kv_type,
            "transfer_bytes": first.transfer_bytes,
            "window_bytes": rows[-1].window_bytes,
            "connections": "as the window asks",
        },
    )


def _row(profile: LinkProfile, seal: str) -> Goodput:
    return next(row for row in profile.goodput if row.seal == seal)
