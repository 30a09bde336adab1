"""A queue between threads that a socket poller can wait on."""

import socket
from collections import deque
from contextlib import suppress
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Mailbox(Generic[_T]):
    """Any thread puts; one thread polls `fileno()` for input and takes everything."""

    def __init__(self) -> None:
        self._items: deque[_T] = deque()
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def fileno(self) -> int:
        return self._receiver.fileno()

    def put(self, item: _T) -> None:
        self._items.append(item)
        with suppress(OSError):  # the pipe is full of wake-ups already, or nobody listens any more
            self._sender.send(b"!")

    def take_all(self) -> list[_T]:
        with suppress(BlockingIOError):
            while self._receiver.recv(4096):
                pass
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()
