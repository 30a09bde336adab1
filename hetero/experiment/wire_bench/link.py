"""Two hosts on one cable, and the programs that are measured between them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from hetero.errors import ConfigError, EngineError
from hetero.experiment.wire_bench.settings import Settings
from hetero.launch.lab.lab import Lab
from hetero.launch.lab.lab_file import parse_topology
from hetero.messages import TransportName
from hetero.profile.link.report import LinkProfile

_SOURCE, _SINK = "source", "sink"
_FIRST_PORT = 7000
_SLACK_S = 60.0  # beyond what a program is told to take


@dataclass
class Link:
    """A cable of one rate, with listening ends of `hetero profile link` and of iperf3."""

    lab: Lab
    settings: Settings
    listeners: dict[TransportName, dict[str, str]]  # where, and the key

    def iperf3(self) -> float:
        """Bytes per second of payload that one TCP connection brings."""
        seconds = self.settings.seconds
        report = self._run(["iperf3", "-J", "-t", str(seconds), "-c", self._address])
        try:
            return float(json.loads(report)["end"]["sum_received"]["bits_per_second"]) / 8
        except (ValueError, KeyError):
            raise EngineError(f"iperf3: need its report, have {report[-300:]!r}") from None

    def hetero(self, transport: TransportName) -> LinkProfile:
        """Every seal, for the settings' time each."""
        settings = self.settings
        seals = settings.seals_of(transport)
        listener = self.listeners[transport]
        report = self._run(
            [
                *_HETERO,
                *("profile", "link", listener["address"].removeprefix("tcp://")),
                *("--json", "--rounds", "1"),
                *("--seconds", str(settings.seconds), "--seals", ",".join(seals)),
            ],
            num_parts=len(seals) + 1,
            HETERO_LINK_KEY=listener["key"],
        )
        found = json.loads(report.splitlines()[-1])
        del found["format"]  # of the file it could be written to
        return msgspec.convert(found, LinkProfile)

    def mooncake(self, num_bytes: int) -> float:
        """Bytes per second of Mooncake's transfer engine, in batches of `num_bytes`."""
        sink = [*_MOONCAKE, "sink", self._address, str(num_bytes)]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} | _QUIET
        with _running(self.lab, sink, **options) as process:
            said = json.loads(_first_line(process))
            seconds = str(self.settings.seconds)
            where = [self.lab.address(_SOURCE), said["target"], str(said["memory"])]
            sizes = [str(num_bytes), str(_MOONCAKE_FRAME_BYTES), seconds]
            report = self._run([*_MOONCAKE, "source", *where, *sizes])
        return float(json.loads(report.splitlines()[-1])["bytes_per_s"])

    @property
    def _address(self) -> str:
        return self.lab.address(_SINK)

    def _run(self, argv: Sequence[str], num_parts: int = 1, **environment: str) -> str:
        limit_s = num_parts * self.settings.seconds + _SLACK_S
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


_HETERO = (sys.executable, "-P", "-m", "hetero")
_MOONCAKE = (sys.executable, "-P", "-m", "hetero.experiment.wire_bench.mooncake_peer")
_MOONCAKE_FRAME_BYTES = 2 * 2**20
_QUIET = {"stderr": subprocess.DEVNULL}


@contextmanager
def shaped_link(settings: Settings, rate: str) -> Iterator[Link]:
    """Raises: ConfigError for what this machine lacks."""
    if shutil.which("iperf3") is None:
        raise ConfigError("bench wire: need iperf3, have none: sudo apt-get install iperf3")
    topology = parse_topology(
        f"name: wire-{os.getpid() % 10**5}\n"
        f"hosts: {{{_SOURCE}: , {_SINK}: }}\n"
        f"links:\n  - {{between: [{_SOURCE}, {_SINK}], rate: {rate}, mtu: {settings.mtu}}}\n"
    )
    with Lab(topology) as lab, ExitStack() as stack:
        server = _running(lab, ["iperf3", "-s"], stdout=subprocess.DEVNULL, **_QUIET)
        stack.enter_context(server)
        listeners = {}
        for port, transport in enumerate(settings.transports, _FIRST_PORT):
            argv = _listening(settings, f"{lab.address(_SINK)}:{port}", transport)
            process = _running(lab, argv, stdout=subprocess.PIPE, **_QUIET)
            listeners[transport] = json.loads(_first_line(stack.enter_context(process)))
        yield Link(lab, settings, listeners)


def _listening(settings: Settings, address: str, transport: TransportName) -> list[str]:
    return [
        *(*_HETERO, "profile", "link", "--listen", address, "--json"),
        *("--shape", settings.shape, "--tokens", str(settings.tokens)),
        *("--kv-k", settings.kv_type, "--kv-v", settings.kv_type, "--transport", transport),
    ]


def _first_line(process: "subprocess.Popen[Any]") -> bytes:
    """The JSON with which a listening end says that it listens; what its libraries say is not."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"{"):
            return bytes(line)
    raise EngineError("a listening end of the benchmark ended before it listened")


@contextmanager
def _running(lab: Lab, argv: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[Any]"]:
    with lab.popen(_SINK, argv, env=_environment(), **options) as process:
        try:
            yield process
        finally:
            process.terminate()


def _environment(**more: str) -> dict[str, str]:
    packages = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": packages, **more}
