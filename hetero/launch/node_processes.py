"""A router and nodes, each a supervised process: started from their configs, heard, and ended.

What they are, where they run and in which order they come up is the caller's.
"""

import os
import queue
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from hetero.errors import ConfigError, EngineError
from hetero.launch.run_directory import NodeState
from hetero.launch.supervisor import Command, GaveUp, Ready, RestartPolicy, Supervisor
from hetero.serve.config import DecodeConfig, PrefillConfig, RouterConfig

# A node between two steps of a long prompt answers its signal within seconds.
GRACE_S = 10.0

# From a node's own "ready" to the router's: a hello and its answer.
_HELLO_WAIT_S = 30.0

Progress = Callable[[str], None]
NodeConfig = RouterConfig | PrefillConfig | DecodeConfig
Config = TypeVar("Config", RouterConfig, PrefillConfig, DecodeConfig)


class NodeProcesses:
    """In `directory` lie each one's NAME.json and NAME.log."""

    def __init__(
        self, directory: Path, progress: Progress, policy: RestartPolicy | None = None
    ) -> None:
        self.nodes: dict[str, NodeState] = {}  # process id 0: not ready yet
        self.supervisors: dict[str, Supervisor] = {}
        self._directory = directory
        self._progress = progress
        self._policy = policy
        self._reports: queue.SimpleQueue[Ready | GaveUp] = queue.SimpleQueue()

    def launch(
        self,
        name: str,
        config: NodeConfig,
        environment: Mapping[str, str],
        place: Callable[[Sequence[str]], Sequence[str]] = tuple,
    ) -> None:
        """`place` gives the command line that runs one somewhere else."""
        role = _role(config)
        file = str(self.write_config(name, config))
        argv = place((sys.executable, "-P", "-m", "hetero", "node", role, "--config", file))
        self.supervise(name, role, argv, environment)

    def supervise(
        self,
        name: str,
        role: Literal["router", "prefill", "decode"],
        argv: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:
        log = self._directory / f"{name}.log"
        command = Command(name=name, argv=tuple(argv), log=log, environment=environment)
        self.nodes[name] = NodeState(name=name, role=role, pid=0, log=str(log))
        self.supervisors[name] = Supervisor(command, self._reports.put, self._policy)
        self.supervisors[name].start()

    def write_config(self, name: str, config: NodeConfig) -> Path:
        path = self._directory / f"{name}.json"
        path.write_bytes(msgspec.json.encode(config))
        return path

    def reports(self, wait_s: float | None = None) -> Iterator[Ready]:
        """As they come, until none has for `wait_s`. 0: those that are there; None: for ever.

        Raises: the error of one that won't be started again, now and whenever it is asked.
        """
        while True:
            try:
                report = self._reports.get(block=wait_s != 0, timeout=wait_s)
            except queue.Empty:
                return
            if isinstance(report, GaveUp):
                self._reports.put(report)
                raise report.error
            is_back = self.nodes[report.name].pid != 0
            self.nodes[report.name] = msgspec.structs.replace(
                self.nodes[report.name], pid=report.pid
            )
            self._progress(f"{report.name}: {'is back' if is_back else 'ready'}")
            yield report

    def stop(self) -> None:
        # Nodes first: they say goodbye to a router that is still there.
        for name in sorted(self.supervisors, key=lambda name: name == "router"):
            self.supervisors[name].ask_to_stop()
        deadline = time.monotonic() + GRACE_S
        for supervisor in self.supervisors.values():
            supervisor.stop(max(0.1, deadline - time.monotonic()))


def await_ready(
    processes: NodeProcesses, names: set[str], wait_s: float | None = None
) -> dict[str, dict[str, Any]]:
    """What each of them announced.

    Raises: EngineError when none came for `wait_s`; those that are missing are aborted, so that
    their logs can say where they hang (PYTHONFAULTHANDLER).
    """
    announced: dict[str, dict[str, Any]] = {}
    for ready in processes.reports(wait_s):
        announced[ready.name] = ready.announced
        if names <= announced.keys():
            return announced
    missing = sorted(names - announced.keys())
    for name in missing:
        processes.supervisors[name].abort(GRACE_S)
    raise EngineError(
        f"{', '.join(missing)}: need it ready within {wait_s:g} s, have it start still (its log: "
        f"{processes.nodes[missing[0]].log})"
    )


def await_hellos(names: set[str], get_status: Callable[[], dict[str, Any]]) -> None:
    """Until the router, whose status object `get_status` gets, calls these nodes ready.

    Raises: EngineError with the router's reason to refuse one.
    """
    deadline = time.monotonic() + _HELLO_WAIT_S
    while True:
        nodes = {node["name"]: node for node in get_status()["nodes"]}
        health = {name: nodes.get(name, {}).get("health", "unknown") for name in names}
        if all(word == "ready" for word in health.values()):
            return
        for name, word in health.items():
            if word == "refused":
                raise EngineError(f"{name}: refused by the router: {nodes[name]['error']}")
        if time.monotonic() > deadline:
            raise EngineError(
                f"router: need every node ready within {_HELLO_WAIT_S:g} s, have "
                + ", ".join(f"{name} {word}" for name, word in sorted(health.items()))
            )
        time.sleep(0.05)


def checked_config(kind: type[Config], **fields: object) -> Config:
    """A config whose values were checked as those of a file are. Raises: ConfigError."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"node {fields['name']}: {error}") from None


def node_environment() -> dict[str, str]:
    """Ours, and the packages found here."""
    packages = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "PYTHONPATH": packages}


def _role(config: NodeConfig) -> Literal["router", "prefill", "decode"]:
    match config:
        case RouterConfig():
            return "router"
        case PrefillConfig():
            return "prefill"
        case DecodeConfig():
            return "decode"
