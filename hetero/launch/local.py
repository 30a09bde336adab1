"""A whole cluster on this machine: a router, prefill and decode nodes, each a supervised process.

`LocalCluster` writes their configs, starts them in order, and waits until the router calls all of
them ready. The router's ports are fixed by its first start: after a restart, nodes and clients
find it where it was.
"""

import errno
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import msgspec

from hetero.errors import ConfigError
from hetero.launch.cluster_keys import ClusterKeys, make_cluster_keys
from hetero.launch.cores import num_usable_cores, share_cpus, split_threads, thread_environment
from hetero.launch.node_processes import (
    NodeConfig,
    NodeProcesses,
    Progress,
    await_hellos,
    await_ready,
    checked_config,
    node_environment,
)
from hetero.launch.router_client import get_status
from hetero.launch.run_directory import (
    ClusterState,
    make_run_directory,
    remove_state,
    started_at,
    write_state,
)
from hetero.messages import TransportName
from hetero.profile.node_profile import Role, RoleSettings
from hetero.serve.config import DEFAULT_CHUNK_TOKENS, DecodeConfig, PrefillConfig, RouterConfig


@dataclass(frozen=True, kw_only=True)
class LocalPlan:
    """What to bring up. Port 0 takes a free one; threads are each node's, None splits the cores."""

    name: str
    model: Path
    context_tokens: int
    host: str = "127.0.0.1"
    port: int = 0
    num_prefill: int = 1
    num_decode: int = 1
    slots: int = 4
    kv_k: str = "q8_0"
    kv_v: str = "q8_0"
    transport: TransportName = "tcp"
    prefill: str = "auto"
    attention: str = "auto"
    chunk_tokens: int | None = None  # the nodes' own choice
    threads: int | None = None
    settings: Mapping[Role, RoleSettings] = field(default_factory=dict)  # as a profile found best
    numa: Sequence[Sequence[int]] = ()  # CPUs by NUMA node, for several nodes to share; empty: any
    record: Path | None = None  # a new file for the router's traffic
    temporary: bool = False  # leaves no directory, unless it fails: then its logs stay for a while


class LocalCluster:
    """Up between `with` and the block's end. Signals are the caller's: they end the block."""

    def __init__(self, plan: LocalPlan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self._processes = NodeProcesses(Path(), progress)
        self._url: str | None = None
        self.run_directory = Path()

    @property
    def url(self) -> str:
        """Where this machine finds the router."""
        assert self._url is not None, "the cluster is not up"
        return self._url

    @property
    def state(self) -> ClusterState:
        return ClusterState(
            name=self._plan.name,
            url=self._url,
            model=str(self._plan.model),
            owner=os.getpid(),
            owner_started=started_at(os.getpid()),
            temporary=self._plan.temporary,
            nodes=tuple(self._processes.nodes.values()),
        )

    def __enter__(self) -> Self:
        plan = self._plan
        _check_port(plan.host, plan.port)
        self.run_directory = make_run_directory(plan.name)
        self._processes = NodeProcesses(self.run_directory, self._say)
        write_state(self.run_directory, self.state)
        try:
            self._start()
        except BaseException as error:
            self._stop(has_failed=isinstance(error, Exception))
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop(has_failed=isinstance(error, Exception))

    def wait(self) -> None:
        """Until a node was given up, for good.

        Raises: EngineError that says which and why.
        """
        for _ in self._processes.reports():
            pass

    def _start(self) -> None:
        plan = self._plan
        prefill = [f"prefill-{index}" for index in range(plan.num_prefill)]
        decode = [f"decode-{index}" for index in range(plan.num_decode)]
        # For this run only: processes that are started again find theirs.
        keys = make_cluster_keys(self.run_directory / "keys", plan.name, prefill + decode)
        router = RouterConfig(
            name=plan.name,
            model=str(plan.model),
            host=plan.host,
            port=plan.port,
            keys=str(keys.router_directory),
            record=None if plan.record is None else str(plan.record.absolute()),
        )
        self._launch("router", router, num_threads=1, shares_cores=False)
        announced = await_ready(self._processes, {"router"})["router"]
        address = urlsplit(announced["http"])
        assert address.port is not None
        self._url = f"http://{_reachable(plan.host)}:{address.port}"
        router = msgspec.structs.replace(router, port=address.port, control=announced["control"])
        self._processes.write_config("router", router)
        self._progress(f"router: listens at {self._url}")
        if announced["record"] is not None:
            self._progress(f"router: records its traffic in {announced['record']}")
        self._launch_engines(prefill, decode, announced["control"], keys)
        names = {*prefill, *decode}
        await_ready(self._processes, names)
        await_hellos(names, lambda: get_status(self.url))
        write_state(self.run_directory, self.state)

    def _launch_engines(
        self, prefill: list[str], decode: list[str], control: str, keys: ClusterKeys
    ) -> None:
        plan = self._plan
        num_nodes = len(prefill) + len(decode)
        num_cores = num_usable_cores()
        named: list[tuple[str, Role]] = [(name, "prefill") for name in prefill]
        named += [(name, "decode") for name in decode]
        found = plan.settings.get(named[0][1]) if num_nodes == 1 else None
        cpus: list[list[int]] = [[] for _ in named]
        interleave: list[int] = []
        if plan.threads is not None:
            threads = [plan.threads] * num_nodes
        elif found is not None:
            threads, cpus, interleave = [found.threads], [found.cpus], found.interleave
            num_cores = found.threads  # measured so, router and all
        elif plan.numa and num_nodes > 1:
            cpus = share_cpus(plan.numa, num_nodes)
            threads = [max(1, len(ours)) for ours in cpus]
        else:
            threads = split_threads(num_cores, num_nodes)
        if plan.settings and num_nodes > 1:
            # What was found best is a node's that is alone.
            how = "a NUMA node each, in turn" if any(cpus) else "shared evenly, and not pinned"
            self._progress(f"{num_nodes} nodes: cores {how}")
        shares_cores = sum(threads) > num_cores
        for (name, role), num_threads, ours in zip(named, threads, cpus, strict=True):
            make = _prefill_config if role == "prefill" else _decode_config
            config = make(plan, name, control, keys, num_threads)
            config = _tuned(config, role, plan, ours, interleave)
            self._launch(name, config, num_threads=num_threads, shares_cores=shares_cores)

    def _launch(
        self, name: str, config: NodeConfig, *, num_threads: int, shares_cores: bool
    ) -> None:
        environment = thread_environment(num_threads, shares_cores=shares_cores)
        # The user's own settings of threads come before ours.
        self._processes.launch(name, config, environment | node_environment())

    def _say(self, line: str) -> None:
        """Of a node's coming up: other commands know it before the user does."""
        write_state(self.run_directory, self.state)
        self._progress(line)

    def _stop(self, *, has_failed: bool) -> None:
        self._processes.stop()
        if not self._plan.temporary:
            remove_state(self.run_directory)
        elif not has_failed:
            shutil.rmtree(self.run_directory)


def _prefill_config(
    plan: LocalPlan, name: str, control: str, keys: ClusterKeys, num_threads: int
) -> PrefillConfig:
    return checked_config(
        PrefillConfig,
        name=name,
        model=str(plan.model),
        router=control,
        router_key=keys.router_key,
        key=str(keys.secret_file(name)),
        kv_k=plan.kv_k,
        kv_v=plan.kv_v,
        transport=plan.transport,
        context_tokens=plan.context_tokens,
        engine=plan.prefill,
        attention=plan.attention,
        threads=num_threads,
        chunk_tokens=plan.chunk_tokens,
    )


def _decode_config(
    plan: LocalPlan, name: str, control: str, keys: ClusterKeys, num_threads: int
) -> DecodeConfig:
    return checked_config(
        DecodeConfig,
        name=name,
        model=str(plan.model),
        router=control,
        router_key=keys.router_key,
        key=str(keys.secret_file(name)),
        kv_k=plan.kv_k,
        kv_v=plan.kv_v,
        transport=plan.transport,
        context_tokens=plan.context_tokens,
        slots=plan.slots,
        threads=num_threads,
        chunk_tokens=plan.chunk_tokens or DEFAULT_CHUNK_TOKENS,
    )


def _tuned(
    config: PrefillConfig | DecodeConfig,
    role: Role,
    plan: LocalPlan,
    cpus: Sequence[int],
    interleave: Sequence[int],
) -> PrefillConfig | DecodeConfig:
    """As the profile found best for a node of this role; what is said in the plan comes first."""
    found = plan.settings.get(role)
    if found is None:
        return config
    config = msgspec.structs.replace(
        config, load=found.load, cpus=tuple(cpus), interleave=tuple(interleave)
    )
    if isinstance(config, DecodeConfig):
        return msgspec.structs.replace(
            config,
            unified=found.unified,
            chunk_tokens=plan.chunk_tokens or found.chunk_tokens,
        )
    return config


def _reachable(host: str) -> str:
    """The part of a URL with which this machine reaches a server that listens on `host`."""
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def _check_port(host: str, port: int) -> None:
    """Before anything is loaded.

    Raises: ConfigError if another process listens there, or the host isn't this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the router does: without it a port counts as taken for a minute after its last use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            reason = "in use" if in_use else (error.strerror or str(error)).lower()
            way_out = "another with --port" if in_use else "one of this machine's with --host"
            raise ConfigError(f"port {port} on {host}: {reason}; choose {way_out}") from None
