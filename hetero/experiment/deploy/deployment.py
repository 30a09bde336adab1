"""A candidate of a recipe, up: our router and nodes, or a peer, on the hosts of a site."""

import json
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import psutil

from hetero import __version__
from hetero.errors import ConfigError, EngineError
from hetero.experiment.deploy import llama_server
from hetero.experiment.deploy.node_configs import (
    ROUTER,
    Meeting,
    Node,
    check_engine_host,
    node_config,
    place_nodes,
    router_config,
)
from hetero.experiment.deploy.site import FRONT, Site
from hetero.experiment.recipe.recipe import Candidate, Peer, Settings
from hetero.launch.cluster_keys import make_cluster_keys
from hetero.launch.cores import thread_environment
from hetero.launch.node_processes import (
    NodeProcesses,
    Progress,
    await_hellos,
    await_ready,
    node_environment,
)
from hetero.launch.supervisor import RestartPolicy

# What died in mid-run spoiled it: the run is told, and nothing is started again.
_NO_RESTARTS = RestartPolicy(max_crashes=1)

# For a vocabulary, and for a model from a slow disk: who takes longer hangs, and a run waits for
# nobody through the night.
_ROUTER_WAIT_S, _ENGINE_WAIT_S = 120.0, 1800.0


class Deployment:
    """Up between `with` and the block's end. `settings` are the arm's.

    Below `run_directory`, which is made private, it keeps configs, keys and logs. They go at the
    end; logs stay after an error.
    """

    def __init__(
        self,
        site: Site,
        model_path: Path,
        candidate: Candidate,
        settings: Settings,
        run_directory: Path,
        progress: Progress,
    ) -> None:
        self.versions = {"hetero": __version__}
        self._site = site
        self._model = model_path.absolute()
        self._candidate = candidate
        self._settings = settings
        self._directory = run_directory
        self._processes = NodeProcesses(run_directory, progress, _NO_RESTARTS)
        self._url: str | None = None

    @property
    def url(self) -> str:
        """Where `front` finds the HTTP endpoint."""
        assert self._url is not None, "the deployment is not up"
        return self._url

    def __enter__(self) -> Self:
        """Raises: ConfigError, PlanError, EngineError. Then nothing runs."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self._directory}: can't make it: {error.strerror or error}"
            ) from None
        try:
            if self._candidate.peer is None:
                self._start_nodes(place_nodes(self._candidate))
            else:
                self._start_peer(self._candidate.peer)
        except BaseException as error:
            self._stop(has_failed=isinstance(error, Exception))
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop(has_failed=isinstance(error, Exception))

    def check_alive(self) -> None:
        """Raises: EngineError with what a process that died said last."""
        for _ in self._processes.reports(wait_s=0):
            pass

    def cpu_seconds(self) -> dict[str, float]:
        """Processor seconds of each process since its start, user and system, its children's with
        them. Raises: EngineError if one is gone.
        """
        return {
            name: _cpu_seconds(name, supervisor.pid)
            for name, supervisor in self._processes.supervisors.items()
        }

    def _start_nodes(self, nodes: list[Node]) -> None:
        keys = make_cluster_keys(self._directory / "keys", ROUTER, [node.name for node in nodes])
        self._processes.launch(
            ROUTER,
            router_config(
                self._site,
                self._model,
                keys,
                allow_emulated=any(node.emulated for node in nodes),
            ),
            self._environment(1, len(nodes)),
            partial(self._site.command, FRONT),
        )
        announced = await_ready(self._processes, {ROUTER}, _ROUTER_WAIT_S)[ROUTER]
        self._url = announced["http"]
        meeting = Meeting(control=announced["control"], keys=keys)
        for node in nodes:
            self._processes.launch(
                node.name,
                node_config(node, self._site, self._model, self._settings, meeting),
                self._environment(self._settings.threads, len(nodes)),
                partial(self._site.command, node.host),
            )
        names = {node.name for node in nodes}
        await_ready(self._processes, names, _ENGINE_WAIT_S)
        await_hellos(names, self._status)
        for status in self._status()["nodes"]:
            self.versions |= status["versions"]

    def _start_peer(self, peer: Peer) -> None:
        host = peer.host or (self._site.hosts or ("here",))[0]  # the only one
        check_engine_host("peer.host", host)
        binary = llama_server.find_binary(peer)
        address, port = self._site.address(host), llama_server.free_port()
        self.versions[peer.server] = llama_server.binary_version(binary)
        argv = llama_server.server_argv(binary, self._model, self._settings, address, port)
        argv += peer.options
        self._processes.supervise(
            llama_server.NAME,
            "decode",
            self._site.command(host, argv),
            self._environment(self._settings.threads, 1),
        )
        llama_server.await_healthy(self._site, host, port, self.check_alive)
        self._url = f"http://{address}:{port}"

    def _environment(self, num_threads: int, num_engines: int) -> dict[str, str]:
        """The recipe's threads, whatever the user's environment says."""
        shares = self._site.shares_cores(self._settings.threads * num_engines)
        threads = thread_environment(num_threads, shares_cores=shares)
        return node_environment() | threads | {"PYTHONFAULTHANDLER": "1"}

    def _status(self) -> dict[str, Any]:
        self.check_alive()
        port = urlsplit(self.url).port
        assert port is not None
        answer = self._site.get(FRONT, port, "/status")
        if answer is None or answer[0] != 200:
            raise EngineError(f"router {self.url}: need its status, have {answer or 'no answer'}")
        status: dict[str, Any] = json.loads(answer[1])
        return status

    def _stop(self, *, has_failed: bool) -> None:
        self._processes.stop()
        # Keys are secrets, and configs name them.
        shutil.rmtree(self._directory / "keys", ignore_errors=True)
        for name in self._processes.nodes:
            (self._directory / f"{name}.json").unlink(missing_ok=True)
            if not has_failed:
                (self._directory / f"{name}.log").unlink(missing_ok=True)
        with suppress(OSError):  # there is more in it
            self._directory.rmdir()


def _cpu_seconds(name: str, pid: int | None) -> float:
    try:
        if pid is None:
            raise psutil.NoSuchProcess(0)
        process = psutil.Process(pid)
        children = process.children(recursive=True)
        seconds = _own_seconds(process)
    except psutil.NoSuchProcess:
        raise EngineError(f"{name}: need its processor time, have no process any more") from None
    for child in children:
        with suppress(psutil.NoSuchProcess):  # its parent has its time from now on
            seconds += _own_seconds(child)
    return seconds


def _own_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
