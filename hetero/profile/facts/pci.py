"""PCI devices: what their link can do, and what the public list of ids calls them."""

import re
from pathlib import Path

from hetero.machine.files import count, read_text, upwards

# Where Debian and Fedora keep the list.
_ID_LISTS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
_GENERATIONS = {"2.5": 1, "5": 2, "5.0": 2, "8.0": 3, "16.0": 4, "32.0": 5, "64.0": 6}


def link_generation(device: Path, root: Path) -> int | None:
    """What every link on the way to the processor can do: an idle one trains down to the first
    generation, and says so. Cards with a bridge of their own have two links, the outer one in the
    slot."""
    speeds = [
        generation
        for folder in upwards(device, root)
        if (
            generation := _generation(folder / "max_link_speed")
            or _generation(folder / "current_link_speed")
        )
    ]
    return min(speeds, default=None)


def link_width(device: Path, root: Path) -> int | None:
    """As negotiated, on the narrowest link of the way."""
    widths = [count(folder / "current_link_width") for folder in upwards(device, root)]
    return min((width for width in widths if width), default=None)


def _generation(path: Path) -> int | None:
    speed, _, _ = (read_text(path) or "").partition(" ")
    return _GENERATIONS.get(speed)


def device_name(root: Path, vendor: str, device: str) -> str | None:
    """vendor, device: as sysfs has them, "0x1002"."""
    for path in _ID_LISTS:
        text = read_text(root / path)
        if text is None:
            continue
        # A vendor's line, then its devices' lines, indented by one tab, up to the next vendor's.
        block = re.search(rf"^{_id(vendor)}  .*\n((?:[\t#].*\n?|\n)*)", text, re.MULTILINE)
        line = block and re.search(rf"^\t{_id(device)}  (.+)$", block[1], re.MULTILINE)
        if line:
            return line[1].strip()
    return None


def _id(number: str) -> str:
    return re.escape(number.lower().removeprefix("0x"))
