"""One arm of a kv-wire recipe: `hetero profile link` between two hosts of one core each."""

from collections.abc import Sequence

from hetero.errors import ConfigError
from hetero.experiment.figures import Say
from hetero.experiment.outcome.measured import Measured
from hetero.experiment.recipe.recipe import WireSettings
from hetero.experiment.wire_bench.two_hosts import two_hosts
from hetero.kv.layout import KVLayout, model_layout
from hetero.machine.whole_cores import whole_cores
from hetero.model.shapes import parse_shape
from hetero.profile.link.packed_prompt import check_frame_bytes
from hetero.profile.link.report import Goodput, LinkProfile
from hetero.transport.window import MAX_CONNECTIONS


def end_cores(cores: Sequence[int] | None = None) -> tuple[int, int]:
    """The CPUs of the source and of the sink: whole cores of this machine, or of those given.

    Raises: ConfigError where both ends would share one.
    """
    cores = [core[0] for core in whole_cores()] if cores is None else cores
    if len(cores) < 2:
        raise ConfigError(
            f"kv-wire: need two cores, one for each end of the wire, have {len(cores)}"
        )
    return cores[0], cores[1]


def measure(settings: WireSettings, say: Say) -> Measured:
    """Transfers back to back for the settings' seconds, between two halves of a plain TCP stream.

    scalars: kv_bytes_per_s (of rows, over all transfers: the goodput), source_cores and sink_cores
    (processor seconds per second of each end's process; what the kernel does in interrupts is not
    there), core_s_per_gb (both ends' processor seconds for 1e9 bytes of rows), share_of_plain
    (goodput over the plain stream's rate around it), plain_bytes_per_s and plain_core_s_per_gb of
    that stream, connections_used by a transfer, transfer_bytes and frame_bytes.
    samples, one for each transfer: bytes_per_s, its bytes over the time from its ticket to its
    restore (two are under way at a time, so about half of kv_bytes_per_s); restore, in seconds.

    Raises: ConfigError for settings that can't be; HeteroError for what a lab needs and this
    machine lacks.
    """
    layout = _checked_layout(settings)
    with two_hosts(rate=settings.link_rate, mtu=settings.mtu, cpus=end_cores()) as hosts:
        where = hosts.listening(
            shape=settings.shape,
            kv_k=layout.k_type,
            kv_v=layout.v_type,
            tokens=settings.tokens,
        )
        with where as listener:
            found = hosts.measure(
                listener,
                seals=[settings.seal],
                seconds=settings.seconds,
                connections=settings.connections,
                frame_bytes=settings.frame_bytes,
            )
    (row,) = found.goodput
    say(
        f"{settings.seal}, frames of {found.frame_bytes} bytes, "
        f"{row.connections_used.median:g} connections: "
        f"{8e-9 * row.bytes_per_s.median:.2f} Gbit/s, {row.of_plain.median:.3f} of a plain stream"
    )
    return measured(found, row)


def measured(found: LinkProfile, row: Goodput) -> Measured:
    """From a profile of one round, and its row with every transfer."""
    assert row.transfers is not None
    plain = found.plain
    goodput, plain_rate = row.bytes_per_s.median, plain.bytes_per_s.median
    cores = row.source_cores.median + row.sink_cores.median
    plain_cores = plain.source_cores.median + plain.sink_cores.median
    transfers = row.transfers
    return Measured(
        scalars={
            "kv_bytes_per_s": goodput,
            "source_cores": row.source_cores.median,
            "sink_cores": row.sink_cores.median,
            "core_s_per_gb": cores / goodput * 1e9,
            "share_of_plain": row.of_plain.median,
            "plain_bytes_per_s": plain_rate,
            "plain_core_s_per_gb": plain_cores / plain_rate * 1e9,
            "connections_used": row.connections_used.median,
            "transfer_bytes": float(found.transfer_bytes),
            "frame_bytes": float(found.frame_bytes),
        },
        samples={"bytes_per_s": transfers.bytes_per_s, "restore": transfers.restore_s},
        records=[
            {
                "transfer": number,
                "num_bytes": found.transfer_bytes,
                "bytes_per_s": bytes_per_s,
                "restore_s": restore_s,
            }
            for number, (bytes_per_s, restore_s) in enumerate(
                zip(transfers.bytes_per_s, transfers.restore_s, strict=True)
            )
        ],
    )


def _checked_layout(settings: WireSettings) -> KVLayout:
    """Before a lab is made for nothing. Raises: ConfigError or ModelError naming the setting."""
    shape, _ = parse_shape(settings.shape)
    k_type, _, v_type = settings.kv.partition("/")
    layout = model_layout(shape, k_type, v_type or k_type)
    if settings.frame_bytes is not None:
        check_frame_bytes(settings.frame_bytes, layout, "tcp")
    if settings.connections is not None and settings.connections > MAX_CONNECTIONS:
        raise ConfigError(f"connections: need 1 to {MAX_CONNECTIONS}, have {settings.connections}")
    return layout
