"""What a host may use of this machine: a cgroup for each of its limits, version 1 or 2.

The kernel has each controller (cpuset, cpu, memory) in one version only, mounted where the
distribution chose; `find_controllers` reads where. Groups are made directly below the controller's
root and named like the host's namespace, so that their names say whose they are.
"""

from pathlib import Path

import msgspec

from hetero.errors import ConfigError, HeteroError
from hetero.launch.lab.topology import Host

# How often the kernel refills a quota. The usual 100 ms would let a host with half a CPU run 50 ms
# at full speed and then stand still for 50: a step of 6 ms takes 53 when it meets the pause.
PERIOD_US = 5_000

# The kernel's smallest quota is 1 ms.
MIN_QUOTA = 1_000 / PERIOD_US

# Less does not start an interpreter.
MIN_MEMORY_BYTES = 16 * 2**20


class Controller(msgspec.Struct, frozen=True):
    path: Path  # of the root group
    version: int


def find_controllers(mounts: str) -> dict[str, Controller]:
    """By name, from the text of /proc/self/mounts. Version 1 wins: version 2 can't have both."""
    found: dict[str, Controller] = {}
    for line in mounts.splitlines():
        _, folder, kind, options, *_ = line.split(" ")
        path = Path(folder)
        if kind == "cgroup":
            found |= {name: Controller(path, 1) for name in options.split(",")}
        elif kind == "cgroup2":
            for name in (path / "cgroup.controllers").read_text().split():
                found.setdefault(name, Controller(path, 2))
    return {name: found[name] for name in ("cpuset", "cpu", "memory") if name in found}


def machine_controllers() -> dict[str, Controller]:
    return find_controllers(Path("/proc/self/mounts").read_text())


def check_limits(host: Host, controllers: dict[str, Controller]) -> None:
    """Raises: ConfigError for CPUs, HeteroError for a controller that this machine lacks."""
    for controller, field, _ in _limits(host):
        if controller not in controllers:
            raise HeteroError(
                f"hosts.{host.name}.{field}: need the kernel's cgroup controller {controller!r}, "
                f"have {', '.join(controllers) or 'none'}; leave out {field}, or mount it"
            )
    if host.cpus is not None:
        have = online_cpus()
        lacking = sorted(_numbers(host.cpus) - have)
        if lacking:
            raise ConfigError(
                f"hosts.{host.name}.cpus: need CPUs of this machine "
                f"({', '.join(map(str, sorted(have)))}), have {host.cpus!r}"
            )


def make_groups(group: str, host: Host, controllers: dict[str, Controller]) -> None:
    """Makes the groups that a process of `host` must join. Raises: HeteroError if it can't."""
    for name, field, settings in _limits(host):
        root, version = controllers[name].path, controllers[name].version
        path = root / group
        try:
            if version == 2:
                _delegate(root, name)
            path.mkdir(exist_ok=True)
            if name == "cpuset" and version == 1:
                # Without memory nodes no process can join.
                (path / "cpuset.mems").write_text((root / "cpuset.mems").read_text().strip())
            for file, value in settings[version].items():
                (path / file).write_text(value)
            if name == "memory":
                _forbid_swap(path, version, host)
        except OSError as error:
            raise HeteroError(
                f"hosts.{host.name}.{field}: can't set it in {path}: {error.strerror or error}"
            ) from None


def groups_of_lab(prefix: str, controllers: dict[str, Controller]) -> list[Path]:
    roots = dict.fromkeys(controller.path for controller in controllers.values())
    return [path for root in roots for path in root.glob(f"{prefix}*") if path.is_dir()]


def groups_of_host(group: str, controllers: dict[str, Controller]) -> list[Path]:
    """Those that `make_groups` made; none for a host without limits. Controllers of version 2, or
    mounted together, share one.
    """
    roots = dict.fromkeys(controller.path for controller in controllers.values())
    return [root / group for root in roots if (root / group).is_dir()]


def pids_in_group(path: Path) -> set[int]:
    try:
        return {int(pid) for pid in (path / "cgroup.procs").read_text().split()}
    except FileNotFoundError:
        return set()


def _limits(host: Host) -> list[tuple[str, str, dict[int, dict[str, str]]]]:
    """Controller, field of the YAML, and what to write into which file of each version."""
    limits: list[tuple[str, str, dict[int, dict[str, str]]]] = []
    if host.cpus is not None:
        cpus = {"cpuset.cpus": host.cpus}
        limits.append(("cpuset", "cpus", {1: cpus, 2: cpus}))
    if host.quota is not None:
        quota_us = round(host.quota * PERIOD_US)
        one = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(quota_us)}
        limits.append(("cpu", "quota", {1: one, 2: {"cpu.max": f"{quota_us} {PERIOD_US}"}}))
    if host.memory_bytes is not None:
        size = str(host.memory_bytes)
        settings = {1: {"memory.limit_in_bytes": size}, 2: {"memory.max": size}}
        limits.append(("memory", "memory", settings))
    return limits


def _delegate(root: Path, controller: str) -> None:
    """Version 2: children of the root have a controller when the root says so."""
    file = root / "cgroup.subtree_control"
    if controller not in file.read_text().split():
        file.write_text(f"+{controller}")


def _forbid_swap(path: Path, version: int, host: Host) -> None:
    """A host that swaps instead of running out would hide that a model does not fit."""
    if version == 1:
        file, value = path / "memory.memsw.limit_in_bytes", str(host.memory_bytes)
    else:
        file, value = path / "memory.swap.max", "0"
    if file.exists():  # a kernel may count no swap
        file.write_text(value)


def online_cpus() -> set[int]:
    return _numbers(Path("/sys/devices/system/cpu/online").read_text().strip())


def _numbers(cpus: str) -> set[int]:
    numbers: set[int] = set()
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers
