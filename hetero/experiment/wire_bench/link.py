"""The programs that are compared on one cable: ours, iperf3 and Mooncake's engine."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from hetero.errors import ConfigError, EngineError
from hetero.experiment.wire_bench.settings import Settings
from hetero.experiment.wire_bench.two_hosts import Listener, TwoHosts, first_object, two_hosts
from hetero.messages import TransportName
from hetero.profile.link.report import LinkProfile

_FIRST_PORT = 7000
_MOONCAKE = (sys.executable, "-P", "-m", "hetero.experiment.wire_bench.mooncake_peer")
_MOONCAKE_FRAME_BYTES = 2 * 2**20


@dataclass
class Link:
    """A cable of one rate, with listening ends of `hetero profile link` and of iperf3."""

    hosts: TwoHosts
    settings: Settings
    listeners: dict[TransportName, Listener]

    def iperf3(self) -> float:
        """Bytes per second of payload that one TCP connection brings."""
        seconds = self.settings.seconds
        argv = ["iperf3", "-J", "-t", str(seconds), "-c", self.hosts.sink_address]
        report = self.hosts.run(argv, seconds)
        try:
            return float(json.loads(report)["end"]["sum_received"]["bits_per_second"]) / 8
        except (ValueError, KeyError):
            raise EngineError(f"iperf3: need its report, have {report[-300:]!r}") from None

    def hetero(self, transport: TransportName) -> LinkProfile:
        """Every seal, for the settings' time each."""
        settings = self.settings
        return self.hosts.measure(
            self.listeners[transport],
            seals=settings.seals_of(transport),
            seconds=settings.seconds,
        )

    def mooncake(self, num_bytes: int) -> float:
        """Bytes per second of Mooncake's transfer engine, in batches of `num_bytes`."""
        hosts, seconds = self.hosts, self.settings.seconds
        sink = [*_MOONCAKE, "sink", hosts.sink_address, str(num_bytes)]
        with hosts.running(sink, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            said = first_object(process)
            where = [hosts.source_address, said["target"], str(said["memory"])]
            sizes = [str(num_bytes), str(_MOONCAKE_FRAME_BYTES), str(seconds)]
            report = hosts.run([*_MOONCAKE, "source", *where, *sizes], seconds)
        return float(json.loads(report.splitlines()[-1])["bytes_per_s"])


@contextmanager
def shaped_link(settings: Settings, rate: str) -> Iterator[Link]:
    """Raises: ConfigError for what this machine lacks."""
    if shutil.which("iperf3") is None:
        raise ConfigError("bench wire: need iperf3, have none: sudo apt-get install iperf3")
    with two_hosts(rate=rate, mtu=settings.mtu) as hosts, ExitStack() as stack:
        stack.enter_context(hosts.running(["iperf3", "-s"], stdout=subprocess.DEVNULL))
        listeners = {
            transport: stack.enter_context(
                hosts.listening(
                    shape=settings.shape,
                    kv_k=settings.kv_type,
                    kv_v=settings.kv_type,
                    tokens=settings.tokens,
                    transport=transport,
                    port=port,
                )
            )
            for port, transport in enumerate(settings.transports, _FIRST_PORT)
        }
        yield Link(hosts, settings, listeners)
