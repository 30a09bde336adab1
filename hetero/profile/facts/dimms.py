"""Memory slots as `dmidecode -t memory` prints them, the empty ones too."""

import re
from dataclasses import dataclass

from hetero.machine.files import colon_fields, to_int

_UNITS = {"kB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
# What firmware writes where it has nothing to say; "RAM" is a virtual machine's.
_NO_TYPE = {None, "", "Unknown", "Other", "RAM", "DRAM", "<OUT OF SPEC>", "Not Specified"}


@dataclass(frozen=True, kw_only=True)
class Module:
    locator: str  # printed on the board: "A1", "PROC 1 DIMM 3", "ChannelA-DIMM0"
    bank: str
    num_bytes: int  # 0: empty
    kind: str | None
    mega_transfers: int | None  # as configured
    data_bits: int | None  # without those for error correction


def modules_of(text: str) -> list[Module]:
    """Table entries of type 17; others are the arrays that the slots belong to."""
    return [
        _module(block)
        for block in colon_fields(text)
        # Flash and caches that boards list as memory devices are no main memory.
        if "Locator" in block and "Size" in block and block.get("Type") != "Flash"
    ]


def _module(block: dict[str, str]) -> Module:
    kind = block.get("Type")
    # Older versions say "Clock Speed" and MHz, and mean transfers all the same.
    configured = block.get("Configured Memory Speed") or block.get("Configured Clock Speed")
    return Module(
        locator=block["Locator"],
        bank=block.get("Bank Locator", ""),
        num_bytes=_bytes(block["Size"]),
        kind=None if kind in _NO_TYPE else kind,
        mega_transfers=_speed(configured) or _speed(block.get("Speed")),
        data_bits=to_int(block.get("Data Width", "").removesuffix(" bits")),
    )


def _bytes(size: str) -> int:
    match = re.fullmatch(r"([0-9]{1,6}) ([kMGT]B)", size)
    return int(match[1]) * _UNITS[match[2]] if match else 0


def _speed(text: str | None) -> int | None:
    match = re.fullmatch(r"([0-9]{1,6}) (MT/s|MHz)", text or "")
    return int(match[1]) or None if match else None
