"""How many memory channels have a module, from the slots' names: each maker has a way of its own.

None where the names do not tell, rather than a guess: bandwidth ceilings are drawn from it.
"""

import re
from collections import Counter

from hetero.profile.facts.dimms import Module

# Channels of one socket, for boards that only number their slots. From the datasheets of these
# families.
_CHANNELS_PER_SOCKET = (
    (r"E5-24\d\d", 3),
    (r"E5-[1246]\d\d\d", 4),
    (r"(Bronze|Silver|Gold|Platinum) [3-9][12]\d\d", 6),
    (r"(Bronze|Silver|Gold|Platinum) [3-9][345]\d\d", 8),
    (r"EPYC 7", 8),
    (r"EPYC 9", 12),
)


def count_channels(slots: list[Module], cpu_model: str) -> int | None:
    """Channels of 64 bits, of all sockets. slots: the empty ones too, as their number tells how
    many share a channel."""
    modules = [slot for slot in slots if slot.num_bytes]
    named = {module.locator + module.bank: _named_channel(module) for module in modules}
    if modules and all(named.values()):
        return _of_64_bits(len(set(named.values())), modules)
    return _numbered_channels(slots, cpu_model) if modules else None


def _of_64_bits(num_channels: int, modules: list[Module]) -> int | None:
    """A laptop's soldered LPDDR has channels of 16 or 32 bits."""
    widths = {module.data_bits for module in modules if (module.kind or "").startswith("LPDDR")}
    bits = widths.pop() if len(widths) == 1 else None
    return num_channels * bits // 64 or None if bits in (16, 32) else num_channels


def _named_channel(module: Module) -> str | None:
    """Everything up to the channel's name. "P0_Node1_Channel2_Dimm0", "P0 CHANNEL A" (AMD),
    "Controller0-ChannelA-DIMM0" say the word; "DIMM_B2", "P1-DIMMA1", "CPU1_DIMM_C1" say a letter
    for the channel and a number for the place in it."""
    for text in (module.bank, module.locator):
        match = re.match(r".*channel[ _-]?[0-9a-z]", text, re.IGNORECASE)
        if match:
            # AMD's bank locator may name the socket, or leave that to the slot's.
            socket = re.search(r"(CPU|PROC|NODE|P) ?_?[0-9]+", module.locator, re.IGNORECASE)
            return match[0] + (socket[0] if socket and text is module.bank else "")
    match = re.fullmatch(r"(.*DIMM[ _-]?[A-P])[0-9]", module.locator, re.IGNORECASE)
    return match[1] if match else None


def _numbered_channels(slots: list[Module], cpu_model: str) -> int | None:
    """Dell's A1 to A12 are socket A's: the first place of every channel, then the second of every
    channel. HPE's PROC 1 DIMM 1 to 12 are the first channel's places, then the second's."""
    per_socket = next((n for name, n in _CHANNELS_PER_SOCKET if re.search(name, cpu_model)), None)
    if per_socket is None:
        return None
    dell = [re.fullmatch(r"([A-H])([0-9]{1,2})", slot.locator) for slot in slots]
    hpe = [re.fullmatch(r"PROC ([0-9]) DIMM ([0-9]{1,2})", slot.locator) for slot in slots]
    for matches, is_by_channel in ((dell, False), (hpe, True)):
        if not all(matches):
            continue
        places = [(match[1], int(match[2]) - 1) for match in matches if match]
        sizes = Counter(socket for socket, _ in places)
        if any(size % per_socket for size in sizes.values()):
            return None
        return len(
            {
                (socket, place // (sizes[socket] // per_socket))
                if is_by_channel
                else (socket, place % per_socket)
                for (socket, place), slot in zip(places, slots, strict=True)
                if slot.num_bytes
            }
        )
    return None
