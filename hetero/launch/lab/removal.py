"""Takes a lab apart, whole or half made: processes, namespaces, cgroups, files, in this order.

It goes by the names of what is here, not by what should be: a lab that was killed while it was made
has any part of its objects.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from hetero.errors import HeteroError
from hetero.launch.lab.commands import run_ip
from hetero.launch.lab.limits import groups_of_lab, machine_controllers, pids_in_group
from hetero.launch.lab.network import NAMESPACE_FILES, NAMESPACES, lab_prefix
from hetero.launch.lab.state import remove_state

# A killed process is gone in milliseconds, unless it waits for a dead disk.
_PATIENCE_S = 10.0


def remove_lab(name: str) -> bool:
    """Whether there was anything to remove. The caller holds the lab's lock.

    Raises: HeteroError if a process can't be ended.
    """
    remove_state(name)
    prefix = lab_prefix(name)
    controllers = machine_controllers()
    namespaces = list(NAMESPACES.glob(f"{prefix}*"))
    groups = groups_of_lab(prefix, controllers)
    folders = list(NAMESPACE_FILES.glob(f"{prefix}*"))
    _kill_all(name, namespaces, groups)
    run_ip((f"netns del {path.name}" for path in namespaces), force=True)
    for group in groups:
        _remove_group(name, group)
    for folder in folders:
        (folder / "hosts").unlink(missing_ok=True)
        folder.rmdir()
    if folders:
        with suppress(OSError):  # others may have theirs there
            NAMESPACE_FILES.rmdir()
    return bool(namespaces or groups or folders)


def pids_in_namespaces(namespaces: list[Path]) -> dict[Path, set[int]]:
    """Whom `ip netns pids` would list, for all in one walk."""
    by_inode: dict[tuple[int, int], Path] = {}
    for path in namespaces:
        with suppress(FileNotFoundError):
            by_inode[path.stat().st_dev, path.stat().st_ino] = path
    pids: dict[Path, set[int]] = {path: set() for path in namespaces}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            inside = (process / "ns" / "net").stat()
            where = by_inode.get((inside.st_dev, inside.st_ino))
            if where is not None:
                pids[where].add(int(process.name))
    return pids


def _kill_all(name: str, namespaces: list[Path], groups: list[Path]) -> None:
    """Until none is left: one that forks may be a step ahead."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        pids = set().union(*pids_in_namespaces(namespaces).values(), *map(pids_in_group, groups))
        if not pids:
            return
        if time.monotonic() > deadline:
            have = ", ".join(map(str, sorted(pids)))
            raise HeteroError(
                f"lab {name!r}: need its processes to end, have {have}, which don't; "
                "run `hetero lab down` again when what they wait for is over"
            )
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _remove_group(name: str, group: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            # Processes leave their groups a little after they have ended.
            if time.monotonic() > deadline:
                raise HeteroError(
                    f"lab {name!r}: can't remove {group}: {error.strerror or error}"
                ) from None
        time.sleep(0.005)
