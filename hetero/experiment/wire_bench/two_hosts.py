"""Two hosts on one cable, in a lab: what runs on them, and `hetero profile link` between them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from hetero.errors import EngineError
from hetero.launch.lab.lab import Lab
from hetero.launch.lab.lab_file import parse_topology
from hetero.messages import SealName, TransportName
from hetero.profile.link.report import LinkProfile

_SOURCE, _SINK = "source", "sink"
_FIRST_PORT = 7000
_SLACK_S = 60.0  # beyond what a program is told to take

_HETERO = (sys.executable, "-P", "-m", "hetero")


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A listening end of `hetero profile link`, and what its dialling end must know."""

    address: str
    key: str = field(repr=False)


@dataclass
class TwoHosts:
    """Data goes from `source` to `sink`."""

    lab: Lab

    @property
    def source_address(self) -> str:
        return self.lab.address(_SOURCE)

    @property
    def sink_address(self) -> str:
        return self.lab.address(_SINK)

    def run(self, argv: Sequence[str], seconds: float, **environment: str) -> str:
        """What a program on the source prints that should take `seconds`.

        Raises: EngineError if it takes far longer, or fails.
        """
        limit_s = seconds + _SLACK_S
        try:
            done = self.lab.run(
                _SOURCE,
                argv,
                capture_output=True,
                text=True,
                env=_environment(**environment),
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"{argv[0]}: need its end within {limit_s:g} s") from None
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise EngineError(f"{argv[0]}: ended with {done.returncode}: {' '.join(last)}")
        return str(done.stdout)

    @contextmanager
    def running(self, argv: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
        """A program on the sink, ended with the block. Options are those of `subprocess.Popen`."""
        options = {"stderr": subprocess.DEVNULL} | options
        with self.lab.popen(_SINK, argv, env=_environment(), **options) as process:
            try:
                yield process
            finally:
                process.terminate()

    @contextmanager
    def listening(
        self,
        *,
        shape: str,
        kv_k: str,
        kv_v: str,
        tokens: int,
        transport: TransportName = "tcp",
        port: int = _FIRST_PORT,
    ) -> Iterator[Listener]:
        argv = [
            *(*_HETERO, "profile", "link", "--listen", f"{self.sink_address}:{port}", "--json"),
            *("--shape", shape, "--tokens", str(tokens)),
            *("--kv-k", kv_k, "--kv-v", kv_v, "--transport", transport),
        ]
        with self.running(argv, stdout=subprocess.PIPE) as process:
            yield msgspec.convert(first_object(process), Listener)

    def measure(
        self,
        listener: Listener,
        *,
        seals: Sequence[SealName],
        seconds: float,
        connections: int | None = None,
        frame_bytes: int | None = None,
    ) -> LinkProfile:
        """One round: each seal, between two halves of a plain TCP stream; with every transfer."""
        options = {"--connections": connections, "--frame-bytes": frame_bytes}
        report = self.run(
            [
                *(*_HETERO, "profile", "link", listener.address.removeprefix("tcp://")),
                *("--json", "--every-transfer", "--rounds", "1"),
                *("--seconds", str(seconds), "--seals", ",".join(seals)),
                *(word for name, value in options.items() if value for word in (name, str(value))),
            ],
            (len(seals) + 1) * seconds,
            HETERO_LINK_KEY=listener.key,
        )
        found = json.loads(report.splitlines()[-1])
        del found["format"]  # of the file it could be written to
        return msgspec.convert(found, LinkProfile)


@contextmanager
def two_hosts(*, rate: str, mtu: int, cpus: tuple[int, int] | None = None) -> Iterator[TwoHosts]:
    """cpus: the source's and the sink's; None: both share all there are.

    Raises: ConfigError or HeteroError for what this machine lacks.
    """
    of_source, of_sink = ("", "") if cpus is None else (f"cpus: {cpu}" for cpu in cpus)
    topology = parse_topology(
        f"name: wire-{os.getpid() % 10**5}\n"
        f"hosts: {{{_SOURCE}: {{{of_source}}}, {_SINK}: {{{of_sink}}}}}\n"
        f"links:\n  - {{between: [{_SOURCE}, {_SINK}], rate: {rate}, mtu: {mtu}}}\n"
    )
    with Lab(topology) as lab:
        yield TwoHosts(lab)


def first_object(process: "subprocess.Popen[Any]") -> dict[str, Any]:
    """The JSON with which a listening end says that it listens; what its libraries say is not."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"{"):
            said: dict[str, Any] = json.loads(line)
            return said
    raise EngineError("a listening end of the benchmark ended before it listened")


def _environment(**more: str) -> dict[str, str]:
    packages = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": packages, **more}
