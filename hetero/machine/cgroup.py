"""What control groups leave a process: of processor time and of memory, versions 1 and 2.

Each group on the way up may have a limit, and the tightest counts. In a container the way ends
where its view does, and limits beyond that can't be seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hetero.machine.files import count, read_int, read_text, to_int


@dataclass(frozen=True, kw_only=True)
class Limits:
    cpu_quota: float | None  # cores' worth of time; None: no limit
    memory_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class _Mount:
    controllers: frozenset[str]  # empty: version 2
    top: PurePosixPath  # of the hierarchy, what is mounted
    folder: Path


@dataclass(frozen=True, kw_only=True)
class _Group:
    """A folder of a process's group, or of one above it."""

    folder: Path
    is_v1: bool

    @property
    def memory_bytes(self) -> int | None:
        """The limit; None where there is none."""
        name = "memory.limit_in_bytes" if self.is_v1 else "memory.max"
        return count(self.folder / name) or None


def cgroup_limits(root: Path) -> Limits:
    quotas: list[float] = []
    sizes: list[int] = []
    for group in _groups(root):
        quota = _quota_v1(group.folder) if group.is_v1 else _quota_v2(group.folder)
        size = group.memory_bytes
        quotas += [quota] if quota else []
        sizes += [size] if size else []
    return Limits(cpu_quota=min(quotas, default=None), memory_bytes=min(sizes, default=None))


def cgroup_free_bytes(root: Path) -> int | None:
    """What the tightest group has left, its page cache counting as free; None: no limit."""
    return min(
        (
            max(0, group.memory_bytes - _held_bytes(group))
            for group in _groups(root)
            if group.memory_bytes is not None
        ),
        default=None,
    )


def _held_bytes(group: _Group) -> int:
    """Used, less files' pages, which the kernel takes back when they are needed. Version 1 has
    those of the groups below in fields of their own."""
    used = count(group.folder / ("memory.usage_in_bytes" if group.is_v1 else "memory.current"))
    prefix = "total_" if group.is_v1 else ""
    pages = {f"{prefix}active_file", f"{prefix}inactive_file"}
    stat = (line.split() for line in (read_text(group.folder / "memory.stat") or "").splitlines())
    cached = sum(to_int(line[1]) or 0 for line in stat if len(line) == 2 and line[0] in pages)
    return max(0, (used or 0) - cached)


def _groups(root: Path) -> Iterator[_Group]:
    """Those of this process, each with all above it."""
    mounts = _mounts(root)
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        controllers = frozenset(names.split(",")) - {""}
        for folder in _way_up(mounts, controllers, group):
            yield _Group(folder=folder, is_v1=bool(controllers))


def _way_up(mounts: list[_Mount], controllers: frozenset[str], group: str) -> list[Path]:
    """Folders from the process's group to the top of what is mounted."""
    for mount in mounts:
        if mount.controllers & controllers or mount.controllers == controllers:
            path = PurePosixPath(group)
            # A container without a namespace of its own names its group as the host does, and has
            # only that group mounted; one seen from a namespace beside it starts with "..".
            inside = path.is_relative_to(mount.top) and ".." not in path.parts
            parts = path.relative_to(mount.top).parts if inside else ()
            return [mount.folder.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return []


def _mounts(root: Path) -> list[_Mount]:
    """From mountinfo: id, parent, device, root, mount point, options, tags, "-", type, source, and
    the file system's options, which name a version 1 hierarchy's controllers."""
    mounts = []
    for line in (read_text(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        names = frozenset(kind[2].split(",")) if kind[0] == "cgroup" else frozenset()
        folder = root / fields[4].lstrip("/")
        mounts.append(
            _Mount(controllers=names - {"rw", "ro"}, top=PurePosixPath(fields[3]), folder=folder)
        )
    return mounts


def _quota_v1(folder: Path) -> float | None:
    return _cores(read_int(folder / "cpu.cfs_quota_us"), read_int(folder / "cpu.cfs_period_us"))


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = (read_text(folder / "cpu.max") or "").partition(" ")
    return _cores(to_int(quota), to_int(period))


def _cores(quota_us: int | None, period_us: int | None) -> float | None:
    if quota_us is None or period_us is None or quota_us <= 0 or period_us <= 0:
        return None
    return quota_us / period_us
