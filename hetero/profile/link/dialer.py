"""The dialling end of a link's measurement: sends as a prefill node does, and does the arithmetic.

Figures take turns round by round, so that what else happens on the path meets all of them.
"""

import queue
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import mean
from typing import Self

import numpy as np

from hetero import __version__
from hetero.errors import ConfigError, PeerError
from hetero.messages import SealName, Token
from hetero.profile.link.key import session_ticket
from hetero.profile.link.packed_prompt import FRAME_BYTES, check_frame_bytes, packed_prompt
from hetero.profile.link.protocol import (
    AskUsage,
    Await,
    Describe,
    Description,
    Expect,
    Expected,
    ExpectPlain,
    Ping,
    PlainEnded,
    Pong,
    Restored,
    Usage,
    ask,
)
from hetero.profile.link.report import (
    Goodput,
    LinkProfile,
    PlainStream,
    Range,
    Transfers,
    range_of,
)
from hetero.transport.connection import dial, dial_plain, failure
from hetero.transport.nixl_source import SendBuffers, row_sender
from hetero.transport.tcp_source import TcpSource
from hetero.transport.transfer import SourceTransfer

_NUM_PINGS = 200
_PLAIN_BYTES = 2**20

Say = Callable[[str], None]


@dataclass(frozen=True)
class Mode:
    seal: SealName
    connections: int | None = None

    @property
    def name(self) -> str:
        return f"{self.seal}, {self.connections or 'as many connections as needed'}"


@dataclass
class _Samples:
    bytes_per_s: list[float] = field(default_factory=list)  # a sample each round
    transfer_bytes_per_s: list[float] = field(default_factory=list)
    of_plain: list[float] = field(default_factory=list)
    source_cores: list[float] = field(default_factory=list)
    sink_cores: list[float] = field(default_factory=list)
    restore_s: list[float] = field(default_factory=list)
    connections: list[float] = field(default_factory=list)
    window_bytes: int = 0


class LinkDialer:
    """A session with a listener. Raises PeerError from every call when the link or its other end
    fails."""

    def __init__(self, address: str, key: str, frame_bytes: int = FRAME_BYTES) -> None:
        """Raises: ConfigError for a malformed key, frames that can't be, or where this machine
        lacks the listening end's transport; PeerError if nobody with that key is there."""
        try:
            self._session = dial(session_ticket(key, address), 0, timeout_s=10.0)
        except PeerError as error:
            raise PeerError(
                f"{error}; does `hetero profile link --listen` run there, and is this its key?"
            ) from None
        self.description = ask(self._session, Describe(), Description)
        transport = self.description.transport
        try:
            check_frame_bytes(frame_bytes, self.description.layout, transport)
        except ConfigError:
            self._session.close()
            raise
        self._frame_bytes = frame_bytes
        self._buffers = None
        if transport != "tcp":
            self._buffers = SendBuffers(transport, interface_of=self._session.local_host)
        self._prompt = packed_prompt(
            self.description.layout, self.description.num_tokens, frame_bytes
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()
        if self._buffers is not None:
            self._buffers.close()

    def measure(
        self,
        modes: list[Mode],
        *,
        seconds: float,
        num_rounds: int,
        say: Say,
        every_transfer: bool = False,
    ) -> LinkProfile:
        """`seconds` for each mode, and for a plain stream, in each round. every_transfer: report
        each one's figures too."""
        about = self.description
        say(f"{about.host}: {about.model}, {about.num_tokens} tokens a transfer")
        rtt = self._round_trips()
        plain = _Samples()
        samples = {mode: _Samples() for mode in modes}
        for number in range(num_rounds):
            # On both sides of the round, for paths drift.
            self._plain(plain, seconds / 2)
            for mode, sample in samples.items():
                self._goodput(mode, sample, seconds)
            self._plain(plain, seconds / 2)
            beside = mean(plain.bytes_per_s[-2:])
            for mode, sample in samples.items():
                sample.of_plain.append(sample.bytes_per_s[-1] / beside)
                say(
                    f"round {number + 1} of {num_rounds}: {mode.name}: "
                    f"{8e-9 * sample.bytes_per_s[-1]:.2f} Gbit/s, "
                    f"{sample.of_plain[-1]:.3f} of a plain stream"
                )
        return LinkProfile(
            source=socket.gethostname(),
            sink=about.host,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            model=about.model,
            transport=about.transport,
            kv_k=about.layout.k_type,
            kv_v=about.layout.v_type,
            token_bytes=about.layout.token_bytes,
            tokens=about.num_tokens,
            transfer_bytes=about.num_tokens * about.layout.token_bytes,
            frame_bytes=self._frame_bytes,
            rtt_s=rtt,
            pack_bytes_per_s=range_of(self._prompt.pack_bytes_per_s),
            plain=PlainStream(
                bytes_per_s=range_of(plain.bytes_per_s),
                source_cores=range_of(plain.source_cores),
                sink_cores=range_of(plain.sink_cores),
            ),
            goodput=[_goodput(mode, sample, every_transfer) for mode, sample in samples.items()],
            versions={"source": {"hetero": __version__}, "sink": about.versions},
        )

    def _round_trips(self) -> Range:
        seconds = []
        for _ in range(_NUM_PINGS):
            started = time.perf_counter()
            ask(self._session, Ping(), Pong)
            seconds.append(time.perf_counter() - started)
        return range_of(seconds)

    def _usage(self) -> tuple[float, float]:
        """Processor seconds used so far: here, there."""
        there = ask(self._session, AskUsage(), Usage).cpu_s
        return time.process_time(), there

    def _plain(self, samples: _Samples, seconds: float) -> None:
        ticket = ask(self._session, ExpectPlain(), Expected).ticket
        data = np.random.default_rng(0).integers(0, 256, _PLAIN_BYTES, np.uint8).data
        source_s, sink_s = self._usage()
        started = time.perf_counter()
        try:
            with dial_plain(ticket, timeout_s=10.0) as sock:
                while time.perf_counter() < started + seconds:
                    sock.sendall(data)
        except OSError as error:
            raise failure("plain stream", error, 10.0) from None
        ended = ask(self._session, Await(ticket_id=ticket.ticket_id), PlainEnded)
        elapsed = time.perf_counter() - started
        if not ended.seconds:
            raise PeerError("plain stream: need bytes to arrive, have none")
        samples.bytes_per_s.append(ended.num_bytes / ended.seconds)
        self._use(samples, source_s, sink_s, elapsed)

    def _use(self, samples: _Samples, source_s: float, sink_s: float, elapsed: float) -> None:
        source_now, sink_now = self._usage()
        samples.source_cores.append((source_now - source_s) / elapsed)
        samples.sink_cores.append((sink_now - sink_s) / elapsed)

    def _goodput(self, mode: Mode, samples: _Samples, seconds: float) -> None:
        """Transfers back to back, the next one begun before the last is restored: for a while both
        are on the wire, as two prompts' would be, each on its connections. Timed from the first
        ticket to the last restore, so a little is lost at both ends, and none made up."""
        source_s, sink_s = self._usage()
        started = time.perf_counter()
        under_way = [self._send(mode)]
        num_bytes = 0
        while under_way:
            if time.perf_counter() < started + seconds:
                under_way.append(self._send(mode))
            transfer = under_way.pop(0)
            restored = self._finish(transfer)
            transfer_s = time.perf_counter() - transfer.started
            samples.transfer_bytes_per_s.append(restored.num_bytes / transfer_s)
            num_bytes += restored.num_bytes
            samples.restore_s.append(restored.restore_s)
            samples.window_bytes = transfer.source.transfer.window.num_bytes
            samples.connections.append(transfer.source.num_connections)
        elapsed = time.perf_counter() - started
        samples.bytes_per_s.append(num_bytes / elapsed)
        self._use(samples, source_s, sink_s, elapsed)

    def _send(self, mode: Mode) -> "_Transfer":
        started = time.perf_counter()
        ticket = ask(self._session, Expect(seal=mode.seal), Expected).ticket
        ends: queue.SimpleQueue[PeerError | None] = queue.SimpleQueue()
        source = TcpSource(
            SourceTransfer(ticket, self.description.fingerprint),
            num_connections=mode.connections,
            on_credit=lambda num_bytes: None,
            on_end=ends.put,
            carrier=row_sender(ticket, self._buffers),
        )
        for frame in self._prompt.frames:
            source.put(frame)
        source.finish((Token("", 0, 0, 0),))
        return _Transfer(source, ends, started)

    def _finish(self, transfer: "_Transfer") -> Restored:
        ticket_id = transfer.source.transfer.ticket.ticket_id
        restored = ask(self._session, Await(ticket_id=ticket_id), Restored)
        error = transfer.ends.get()
        if error is not None:
            raise error
        return restored


@dataclass(frozen=True)
class _Transfer:
    source: TcpSource
    ends: "queue.SimpleQueue[PeerError | None]"
    started: float


def _goodput(mode: Mode, samples: _Samples, every_transfer: bool) -> Goodput:
    transfers = None
    if every_transfer:
        transfers = Transfers(bytes_per_s=samples.transfer_bytes_per_s, restore_s=samples.restore_s)
    return Goodput(
        seal=mode.seal,
        connections=mode.connections,
        bytes_per_s=range_of(samples.bytes_per_s),
        of_plain=range_of(samples.of_plain),
        source_cores=range_of(samples.source_cores),
        sink_cores=range_of(samples.sink_cores),
        restore_s=range_of(samples.restore_s),
        connections_used=range_of(samples.connections),
        window_bytes=samples.window_bytes,
        transfers=transfers,
    )
