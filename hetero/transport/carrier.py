"""How the rows of a transfer get from one end to the other. Its messages always take a connection.

Here the plain way, after their header on the same connection; the other is in `nixl_source` and
`nixl_sink`.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from hetero.messages import Rows, SlotRing, Ticket, ToSource, encode
from hetero.transport.connection import Connection


class RowSender(Protocol):
    """Of one transfer. `connect` and `send` block; the others are called one at a time."""

    writes_apart: bool  # to memory of the sink, which has to know when it is done with
    min_connections: int  # with fewer, the wire waits

    def connect(self) -> None:
        """Raises: PeerError if the sink can't be reached this way."""

    def take(self, message: ToSource) -> None:
        """Hear what the sink says of it.

        Raises: PeerError if nothing can be sent this way after it.
        """

    def has_room(self) -> bool:
        """Whether another frame may go, as far as this way is concerned."""

    def assign(self, header: Rows) -> Rows:
        """Choose where a frame's rows will go."""

    def send(self, connection: Connection, header: Rows, rows: npt.NDArray[np.uint8]) -> None:
        """Raises: OSError of the connection; PeerError if the rows did not get there."""


class RowReceiver(Protocol):
    """Of a node, for all its transfers. Any thread may call."""

    ring: SlotRing | None

    def lend(self, ticket: Ticket) -> tuple[int, ...]:
        """Slots for a transfer that begins.

        Raises: PeerError if it needs some and there are none.
        """

    def rows(
        self, ticket: Ticket, header: Rows, inline: memoryview | None, connection: Connection
    ) -> memoryview | None:
        """The rows of a header that came with `inline`, opened.

        Raises: PeerError if they did not come as they should.
        """

    def release(self, ticket: Ticket, *, is_written_to: bool) -> None:
        """A transfer is over; `is_written_to`: its source may not know yet."""


class InlineSender:
    writes_apart = False
    min_connections = 1

    def connect(self) -> None:
        pass

    def take(self, message: ToSource) -> None:
        pass

    def has_room(self) -> bool:
        return True

    def assign(self, header: Rows) -> Rows:
        return header

    def send(self, connection: Connection, header: Rows, rows: npt.NDArray[np.uint8]) -> None:
        connection.send(encode(header), rows)


class InlineReceiver:
    ring: SlotRing | None = None

    def lend(self, ticket: Ticket) -> tuple[int, ...]:
        return ()

    def rows(
        self, ticket: Ticket, header: Rows, inline: memoryview | None, connection: Connection
    ) -> memoryview | None:
        return inline

    def release(self, ticket: Ticket, *, is_written_to: bool) -> None:
        pass
