"""What facts are read from besides files: a command's output, NVML, and what psutil knows."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

_COMMAND_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Basics:
    """What psutil sees on any system: taken where files say nothing. 0 or "": not even this."""

    system: str = ""
    cpu_model: str = ""
    cores: int = 0
    logical_cores: int = 0
    max_mhz: float | None = None
    memory_bytes: int = 0
    on_battery: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Probes:
    """run: a command's output; raises OSError or subprocess.SubprocessError.
    nvml: the `pynvml` module; raises ImportError.
    """

    run: Callable[[list[str]], str]
    nvml: Callable[[], Any]
    basics: Basics


def probes_of_this_machine() -> Probes:
    return Probes(run=run_command, nvml=import_nvml, basics=_basics())


def no_probes() -> Probes:
    """For a tree copied from another machine: this one's tools would tell of this one."""
    return Probes(run=_no_command, nvml=_no_nvml, basics=Basics())


def run_command(command: list[str]) -> str:
    """Raises: OSError, subprocess.SubprocessError."""
    # Users' search paths often lack the folders that system tools lie in.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    tool = shutil.which(command[0], path=path)
    if tool is None:
        raise FileNotFoundError(command[0])
    done = subprocess.run(
        [tool, *command[1:]],
        capture_output=True,
        text=True,
        errors="replace",
        check=True,
        timeout=_COMMAND_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"LC_ALL": "C"},
    )
    return done.stdout


def import_nvml() -> Any:
    import pynvml

    return pynvml


def _no_command(command: list[str]) -> str:
    raise FileNotFoundError(command[0])


def _no_nvml() -> Any:
    raise ImportError("not this machine's")


def _basics() -> Basics:
    battery = _or_none(getattr(psutil, "sensors_battery", lambda: None))
    frequency = _or_none(getattr(psutil, "cpu_freq", lambda: None))
    memory = _or_none(psutil.virtual_memory)
    logical_cores = _or_none(psutil.cpu_count) or os.cpu_count() or 1
    return Basics(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu_model=platform.processor(),
        cores=_or_none(lambda: psutil.cpu_count(logical=False)) or logical_cores,
        logical_cores=logical_cores,
        max_mhz=(frequency.max or None) if frequency else None,
        memory_bytes=memory.total if memory else 0,
        on_battery=None
        if battery is None or battery.power_plugged is None
        else not battery.power_plugged,
    )


def _or_none(read: Callable[[], Any]) -> Any:
    """psutil raises many things where a system or a container hides what it reads."""
    try:
        return read()
    except (OSError, RuntimeError, ValueError, LookupError, NotImplementedError, psutil.Error):
        return None
