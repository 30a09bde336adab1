"""Runs `ip` and `tc`, and says what to do where they can't run.

Commands go to them in batches: a process each would take longer than all they do.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable

from hetero.errors import HeteroError

# A root shell started with `su` lacks these.
_SYSTEM_PATHS = ("/usr/sbin", "/sbin")

# What the tools say of a kernel without a part, in the words of several releases.
_LACKING = (
    "qdisc kind is unknown",
    "Unknown device type",
    "No such file or directory",
    "Operation not supported",
)
_MODULES = {" tbf ": "sch_tbf", " type veth ": "veth", " type bridge": "bridge"}


def check_machine() -> None:
    """Raises: HeteroError if labs can't be made here, with what to run."""
    if sys.platform != "linux":
        raise HeteroError(
            f"lab: need Linux (its network namespaces), have {sys.platform}; a lab runs in any "
            "Linux virtual machine"
        )
    if os.geteuid() != 0:
        # In full: sudo has a path of its own, without virtual environments.
        hetero = shutil.which("hetero") or "hetero"
        arguments = sys.argv[1:] if sys.argv[1:2] == ["lab"] else ["lab", "..."]
        raise HeteroError(
            f"lab: need root (it makes network namespaces), have user {os.geteuid()}; run: "
            f"sudo {shlex.join([hetero, *arguments])}"
        )
    for tool in ("ip", "tc"):
        tool_path(tool)


def tool_path(tool: str) -> str:
    """Raises: HeteroError saying what to install."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SYSTEM_PATHS])
    path = shutil.which(tool, path=search)
    if path is None:
        raise HeteroError(
            f"lab: need the command `{tool}`, have none; run: sudo apt-get install iproute2"
        )
    return path


def run_ip(lines: Iterable[str], *, namespace: str | None = None, force: bool = False) -> None:
    """Runs `lines` in order. `force` goes on after one that fails, and says nothing of it."""
    _run_batch("ip", lines, namespace, force)


def run_tc(lines: Iterable[str], *, namespace: str) -> None:
    _run_batch("tc", lines, namespace, False)


def read_tc(*arguments: str, namespace: str) -> str:
    return _run([tool_path("tc"), "-n", namespace, *arguments], None, " ".join(arguments))


def _run_batch(tool: str, lines: Iterable[str], namespace: str | None, force: bool) -> None:
    text = "".join(f"{line}\n" for line in lines)
    if not text:
        return
    where = [] if namespace is None else ["-n", namespace]
    how = ["-force"] if force else []
    _run([tool_path(tool), *where, *how, "-batch", "-"], text, text, ignore_status=force)


def _run(
    command: list[str], stdin: str | None, commands: str, *, ignore_status: bool = False
) -> str:
    run = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        # It inherits the lock: the lab stays locked while a tool runs, though we are killed.
        close_fds=False,
    )
    if run.returncode == 0 or ignore_status:
        return run.stdout
    words = " ".join(run.stderr.split())
    tool = command[0].rsplit("/", 1)[-1]
    module = next((module for words, module in _MODULES.items() if words in commands), None)
    if module is not None and any(sign in words for sign in _LACKING):
        raise HeteroError(
            f"lab: need the kernel module {module}, have a kernel without it ({words}); "
            f"run: sudo modprobe {module}"
        )
    if "Operation not permitted" in words:
        words += "; a container needs the capabilities SYS_ADMIN and NET_ADMIN"
    raise HeteroError(f"lab: {tool} failed: {words or f'exit status {run.returncode}'}")
