"""Small files below a root, as /proc and /sys have them: what can't be read is None.

The root is "/", or a tree that was copied from another machine.
"""

import re
from pathlib import Path

# Bytes of a petabyte. Beyond it lie rubbish and version 1 control groups' way to write "no limit";
# below it sizes in KiB still fit into 64 bits as bytes.
_MAX_DIGITS = 15
# More CPUs than any kernel is built for: a list beyond it is damaged, and would fill the memory.
_MAX_CPUS = 8192


def read_text(path: Path) -> str | None:
    """Stripped; None if empty too."""
    try:
        return path.read_text(errors="replace").strip("\0 \t\n") or None
    except (OSError, ValueError):
        return None


def read_int(path: Path) -> int | None:
    return to_int(read_text(path))


def to_int(text: str | None) -> int | None:
    """Of plain digits: None for "max", "-1 kB" and the like."""
    if text is None or not re.fullmatch(rf"-?[0-9]{{1,{_MAX_DIGITS}}}", text):
        return None
    return int(text)


def count(path: Path) -> int | None:
    """A number that means something at 0 and above only: sysfs says -1 for "none"."""
    number = read_int(path)
    return number if number is not None and number >= 0 else None


def why_unreadable(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.read(1)
    except PermissionError:
        return "needs root"
    except FileNotFoundError:
        return "is not there"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "says nothing of use"


def is_there(path: Path) -> bool:
    """False also where its folder may not be looked into."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def matching(folder: Path, pattern: str) -> list[Path]:
    """Entries of a folder by glob, cpu2 before cpu10."""
    try:
        return sorted(folder.glob(pattern), key=_natural)
    except OSError:
        return []


def _natural(path: Path) -> list[tuple[int, str]]:
    return [
        (int(piece), "") if piece.isdecimal() else (-1, piece)
        for piece in re.split(r"([0-9]+)", path.as_posix())
    ]


def link_name(path: Path) -> str | None:
    """The name of what a link points at: a device's driver."""
    try:
        return path.readlink().name or None
    except (OSError, ValueError):
        return None


def upwards(path: Path, root: Path) -> list[Path]:
    """A device's folder with all links followed, then those of the buses it hangs on."""
    try:
        real, top = path.resolve(), root.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return []
    return [folder for folder in (real, *real.parents) if top in folder.parents]


def numa_node_of(device: Path, root: Path) -> int | None:
    """Of the nearest device on the way up that has one; None also where the firmware names none."""
    for folder in upwards(device, root):
        node = read_int(folder / "numa_node")
        if node is not None:
            return node if node >= 0 else None
    return None


def to_cpus(text: str | None) -> list[int]:
    """The kernel's lists: "0-3,8" is [0, 1, 2, 3, 8]."""
    cpus: set[int] = set()
    for piece in (text or "").split(","):
        first, dash, last = piece.strip().partition("-")
        low = to_int(first)
        high = to_int(last) if dash else low
        if low is not None and high is not None and 0 <= low <= high < _MAX_CPUS:
            cpus.update(range(low, high + 1))
    return sorted(cpus)


def colon_fields(text: str | None) -> list[dict[str, str]]:
    """Blocks of "name: value" lines between empty lines, as /proc/cpuinfo and dmidecode have them.

    The first line of a name counts.
    """
    blocks = []
    for block in re.split(r"\n\s*\n", text or ""):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip(), value.strip())
        blocks.append(fields)
    return blocks
