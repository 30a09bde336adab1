"""What a decode node promises for one prompt's KV, and how the KV gets there."""

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(max_length=200)]

# How the bytes of a transfer are protected, the weakest first: see `transport.seals`.
SealName = Literal["none", "mac", "aead"]
STRENGTH: tuple[SealName, ...] = ("none", "mac", "aead")

# What carries a transfer's rows: its connections, or NIXL over what its name says.
TransportName = Literal["tcp", "nixl-rdma", "nixl-shm", "nixl-tcp"]


class SlotRing(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of a sink, cut in slots, that sources write sealed rows into through NIXL.

    `metadata` is NIXL's own; it says how to reach the agent and its registered memory.
    """

    transport: TransportName
    agent: Name
    metadata: Annotated[bytes, msgspec.Meta(max_length=64 * 2**10)]
    address: Count  # of slot 0
    slot_bytes: Count
    num_slots: Count


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A decode node's promise to hold room for one prompt's KV until the lease runs out.

    Its id is never given out again, and its key is the transfer's alone: what is written under an
    old ticket can't reach another's rows. Travels over control sockets only.
    """

    ticket_id: Name  # begins with the router's id
    address: str  # where the source dials
    num_tokens: Count  # the prompt's length
    # Renewed by every frame and by the router; no longer than a day.
    lease_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)]
    key: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    seal: SealName
    have_tokens: int = 0  # tokens the sink already holds, for suffix-only transfer later
    ring: SlotRing | None = None  # None: rows come over the connections

    def __repr__(self) -> str:  # of messages too: the key must not reach a log
        return f"Ticket({self.ticket_id!r}, {self.address!r}, {self.seal})"
