"""Deadlines for everything a node holds: what nobody renews is given up.

The router renews all its requests on each node several times per lease; if it dies, or forgets a
request, the node frees what it held for it.
"""

from collections.abc import Iterable

# Long enough for a router to restart its event loop or sit out a network hiccup, short enough that
# leaked memory does not matter.
LEASE_S = 30.0


class Leases:
    def __init__(self, lease_s: float = LEASE_S) -> None:
        self.lease_s = lease_s
        self._deadlines: dict[str, float] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._deadlines

    def __len__(self) -> int:
        return len(self._deadlines)

    def start(self, request_id: str, now: float) -> None:
        self._deadlines[request_id] = now + self.lease_s

    def renew(self, request_ids: Iterable[str], now: float) -> list[str]:
        """The ids that hold nothing here: ended, or never heard of."""
        unknown = []
        for request_id in request_ids:
            if request_id in self._deadlines:
                self._deadlines[request_id] = now + self.lease_s
            else:
                unknown.append(request_id)
        return unknown

    def end(self, request_id: str) -> None:
        self._deadlines.pop(request_id, None)

    def expired(self, now: float) -> list[str]:
        return [request_id for request_id, deadline in self._deadlines.items() if deadline <= now]
