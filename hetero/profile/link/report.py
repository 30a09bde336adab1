"""What a link can do, as measured from its dialling end. Rates are bytes per second of KV rows."""

from statistics import median

import msgspec

from hetero.messages import SealName, TransportName


class Range(msgspec.Struct, frozen=True):
    """Of one figure over the rounds."""

    median: float
    low: float
    high: float


def range_of(samples: list[float]) -> Range:
    return Range(median(samples), min(samples), max(samples))


class PlainStream(msgspec.Struct, frozen=True, kw_only=True):
    """One TCP connection, nothing sealed, nothing kept: what the path itself gives."""

    bytes_per_s: Range
    source_cores: Range
    sink_cores: Range


class Transfers(msgspec.Struct, frozen=True, kw_only=True):
    """Every one of them, in turn. A rate is a transfer's bytes over the time from its ticket to
    its restore, most of which it shares the wire with another: about half of the goodput."""

    bytes_per_s: list[float]
    restore_s: list[float]


class Goodput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """KV from packed rows to restored cells, transfer after transfer."""

    seal: SealName
    connections: int | None  # None: as many as the window asked for
    bytes_per_s: Range
    of_plain: Range  # over the plain stream of the same round
    # Processor seconds per second in each process; what the kernel does in interrupts is not there.
    source_cores: Range
    sink_cores: Range
    restore_s: Range  # of one transfer; the next one arrives meanwhile
    connections_used: Range  # of one transfer; up to two are under way
    window_bytes: int  # at the end of the last transfer
    transfers: Transfers | None = None  # where they were asked for: there may be thousands


class LinkProfile(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="link",
):
    source: str
    sink: str
    date: str
    model: str
    transport: TransportName
    kv_k: str
    kv_v: str
    token_bytes: int
    tokens: int  # of a transfer
    transfer_bytes: int
    frame_bytes: int = 2 * 2**20  # of rows, at most; the only size there was, where it isn't told
    rtt_s: Range  # a sealed message there and back, with both ends' threads waking up
    pack_bytes_per_s: Range  # of packed rows, on one thread here
    plain: PlainStream
    goodput: list[Goodput]
    versions: dict[str, dict[str, str]]
