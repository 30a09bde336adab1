"""Which labs there are here. The kernel's objects are the truth; a file holds what they can't say.

A lab's file is written when it is complete and removed before it is taken apart, so objects without
one are what a killed `up` or `down` left.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from hetero.errors import ConfigError, HeteroError
from hetero.launch.lab.limits import Controller, groups_of_lab
from hetero.launch.lab.network import NAMESPACE_FILES, NAMESPACES, lab_of_namespace
from hetero.launch.lab.topology import Topology, check_name

STATES = Path("/run/hetero-lab")

# `up` and `down` of a large lab take seconds.
_LOCK_WAIT_S = 30.0


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One at a time makes, changes or removes a lab of this name; the others wait.

    The lock is a bound socket without a file: the kernel frees it with its last holder, a tool that
    a killed command left running included, and nothing stays behind.

    Raises: HeteroError after 30 s, ConfigError for what can't be a lab's name.
    """
    check_name("lab", name)
    deadline = time.monotonic() + _LOCK_WAIT_S
    with socket.socket(socket.AF_UNIX) as lock:
        while True:
            try:
                lock.bind(f"\0hetero-lab.{name}")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise HeteroError(
                        f"lab {name!r}: need it for this command alone, have another that has "
                        f"kept it for {_LOCK_WAIT_S:.0f} s; wait for it, or end it"
                    ) from None
                time.sleep(0.02)
        lock.set_inheritable(True)
        yield


def write_state(topology: Topology) -> None:
    """Replaced in one step: a reader sees the old or the new one."""
    STATES.mkdir(exist_ok=True)
    draft = STATES / f".{topology.name}.new"
    draft.write_bytes(msgspec.json.encode(topology))
    draft.replace(STATES / f"{topology.name}.json")


def read_state(name: str) -> Topology:
    """Raises: HeteroError if that lab is not up, or only half; ConfigError as `locked`."""
    check_name("lab", name)
    try:
        return msgspec.json.decode((STATES / f"{name}.json").read_bytes(), type=Topology)
    except FileNotFoundError:
        raise HeteroError(
            f"lab {name!r}: need it up, have at most what a killed command left; run "
            "`hetero lab up FILE`"
        ) from None
    except msgspec.DecodeError:
        raise HeteroError(
            f"lab {name!r}: it was made by another version of hetero; run "
            f"`hetero lab down --lab {name}`, then `hetero lab up FILE`"
        ) from None


def remove_state(name: str) -> None:
    for file in (STATES / f"{name}.json", STATES / f".{name}.new"):
        file.unlink(missing_ok=True)
    with suppress(OSError):  # other labs have theirs there
        STATES.rmdir()


def complete_labs() -> list[str]:
    return sorted(file.stem for file in STATES.glob("*.json"))


def lab_names(controllers: dict[str, Controller]) -> list[str]:
    """All labs of which anything is here, complete or not."""
    objects = [
        *NAMESPACES.glob("*"),
        *NAMESPACE_FILES.glob("*"),
        *groups_of_lab("", controllers),
    ]
    found = {lab_of_namespace(path.name) for path in objects}
    return sorted({name for name in found if name is not None} | set(complete_labs()))


def choose_lab(name: str | None) -> str:
    """The lab a command means: the named one, or the only one that is up.

    Raises: ConfigError if there are several, HeteroError if there is none.
    """
    labs = complete_labs()
    if name is not None:
        return name
    if len(labs) > 1:
        raise ConfigError(f"lab: need --lab, have several here: {', '.join(labs)}")
    if not labs:
        raise HeteroError("lab: need one, have none here; run `hetero lab up FILE`")
    return labs[0]
