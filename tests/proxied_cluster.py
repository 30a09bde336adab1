"""A cluster of real processes with a proxy on the way that KV takes, and a gate in the proxy."""

import socket
import threading

import msgspec
from wire_proxy import Unit, WireProxy

from hetero.launch.local import LocalCluster
from hetero.launch.supervisor import RestartPolicy
from hetero.messages import Alive, encode
from hetero.serve.config import DecodeConfig, PrefillConfig
from hetero.transport.seals import TAG_BYTES


class ProxiedCluster(LocalCluster):
    """Its prefill nodes dial the proxy, which dials the decode node. Nodes come back at once,
    however often they die."""

    def __init__(self, plan, proxy: WireProxy, **prefill_changes: str) -> None:
        super().__init__(plan, lambda line: None)
        self._proxy = proxy
        self._prefill_changes = prefill_changes

    def _launch(self, name, config, **options):
        if isinstance(config, DecodeConfig):
            self._proxy.sink = f"tcp://127.0.0.1:{free_port()}"
            config = msgspec.structs.replace(
                config, listen=self._proxy.sink, advertise=self._proxy.address
            )
        if isinstance(config, PrefillConfig):
            config = msgspec.structs.replace(config, **self._prefill_changes)
        super()._launch(name, config, **options)
        self._processes.supervisors[name]._policy = RestartPolicy(
            first_wait_s=0.1, longest_wait_s=0.1, max_crashes=10**6
        )


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Gate:
    """A fault that keeps a transfer in a state: what would end the state is not passed on."""

    def __init__(self, state: str) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()
        self._state = state
        self._ticket_bytes = 0

    def open(self) -> None:
        self._opened.set()

    def __call__(self, unit: Unit) -> list[bytes]:
        if self._ends_state(unit) and not self._opened.is_set():
            self.reached.set()
            self._opened.wait()
        return [unit.raw]

    def _ends_state(self, unit: Unit) -> bool:
        if not unit.to_sink:
            return False
        if unit.number == 0:
            self._ticket_bytes = int.from_bytes(unit.raw[28:30], "little")
        match self._state:
            case "ticketed":
                return unit.number == 0
            case "opening":
                return unit.number == 1
            case "moving":
                return unit.number >= 4 and not self._is_alive(unit)
            case "closing":
                has_rows = unit.raw[4:8] != bytes(4)
                return unit.number >= 2 and not has_rows and not self._is_alive(unit)
        return False

    def _is_alive(self, unit: Unit) -> bool:
        sealed = len(encode(Alive(ticket_id="x" * self._ticket_bytes))) + TAG_BYTES
        return unit.number > 0 and len(unit.raw) == 8 + sealed
