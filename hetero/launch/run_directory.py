"""Where a cluster's processes on this machine are written down, for other commands to find.

One directory per cluster, private to the user: node configs, logs, and `state.json`, which is there
while the cluster runs. A state file whose owner is dead is stale and counts as none.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from hetero.errors import ConfigError

_STATE = "state.json"


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    role: Literal["router", "prefill", "decode"]
    pid: int
    log: str


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """A running cluster. `owner` is the process that started it and keeps it up."""

    name: str
    url: str | None  # None until the router listens
    model: str
    owner: int
    owner_started: float  # unix seconds: tells the owner from a later process of the same id
    temporary: bool  # its directory goes with it
    nodes: tuple[NodeState, ...]


def runs_root() -> Path:
    """XDG_RUNTIME_DIR where there is one: it is private, and empty after a reboot."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime, "hetero")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "hetero", "run")


def make_run_directory(name: str) -> Path:
    """An empty directory for cluster `name`, after clearing away what dead owners left.

    Raises: ConfigError if that cluster is running, or the directory can't be made.
    """
    if not name or name.startswith(".") or "/" in name:
        raise ConfigError(f"cluster name {name!r}: need one that can name a directory")
    root = runs_root()
    for state in running_clusters():
        if state.name == name:
            raise ConfigError(
                f"cluster {name!r}: is running already at {state.url or 'no address yet'} "
                f"(process {state.owner}); stop it, or choose another --name"
            )
    path = root / name
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(f"{path}: can't make it: {error.strerror or error}") from None
    return path


def write_state(path: Path, state: ClusterState) -> None:
    """Replaced in one step: a reader sees the old or the new one."""
    draft = path / f"{_STATE}.new"
    draft.write_bytes(msgspec.json.encode(state))
    draft.replace(path / _STATE)


def remove_state(path: Path) -> None:
    (path / _STATE).unlink(missing_ok=True)


def running_clusters() -> list[ClusterState]:
    """Those that this user runs here, by name. Stale state files are removed on the way."""
    return sorted(_live_states(runs_root()), key=lambda state: state.name)


def started_at(pid: int) -> float:
    return psutil.Process(pid).create_time()


def _live_states(root: Path) -> Iterator[ClusterState]:
    for file in root.glob(f"*/{_STATE}"):
        try:
            state = msgspec.json.decode(file.read_bytes(), type=ClusterState)
        except FileNotFoundError:
            continue  # its owner has just stopped
        except msgspec.DecodeError:
            file.unlink(missing_ok=True)  # another version's, or damaged
            continue
        if _is_alive(state):
            yield state
        elif state.temporary:
            shutil.rmtree(file.parent, ignore_errors=True)
        else:
            file.unlink(missing_ok=True)


def _is_alive(state: ClusterState) -> bool:
    with suppress(psutil.NoSuchProcess):
        # Computed from clock ticks since boot, so it moves a little when the clock is set.
        return abs(started_at(state.owner) - state.owner_started) < 2.0
    return False
