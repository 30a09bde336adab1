"""Rows through NIXL, over shared memory and over UCX's TCP: whole, late, damaged, refused."""

import contextlib
import os
import subprocess
import sys
import time

import msgspec
import numpy as np
import pytest
from test_tcp_link import FINGERPRINT, FIRST, FRAMES, Link, check, wait_for
from wire_ends import HandSource

from hetero.errors import ConfigError, PeerError
from hetero.messages import Ready, encode
from hetero.serve.sender import Sender
from hetero.transport import nixl_agent, nixl_source
from hetero.transport.door import Door
from hetero.transport.mailbox import Mailbox
from hetero.transport.nixl_agent import NixlAgent
from hetero.transport.nixl_sink import SlotReceiver
from hetero.transport.nixl_source import SendBuffers, row_sender
from hetero.transport.tcp_sink import Arrived, Broke, TcpSink
from hetero.transport.tcp_source import TcpSource

pytest.importorskip("nixl_cu12", reason="needs hetero[rdma]", exc_type=ImportError)

NUM_SLOTS = 6


class NixlLink(Link):
    """A sink with slots, and sources with buffers, in one process."""

    def __init__(self, transport, *, allow_tcp=False):
        self.receiver = SlotReceiver(
            transport, NUM_SLOTS, allow_tcp=allow_tcp, interface_of="127.0.0.1"
        )
        self.buffers = SendBuffers(transport, allow_tcp=allow_tcp)
        self.sink = TcpSink(Door("tcp://127.0.0.1:0"), self.receiver)
        self.num_tickets = 0
        self.sources = []

    def expect(self, *args, **options):
        transfer = super().expect(*args, **options)
        transfer.ticket = msgspec.structs.replace(transfer.ticket, ring=self.receiver.ring)
        return transfer

    def carrier(self, ticket):
        return row_sender(ticket, self.buffers)

    def close(self):
        for source in self.sources:
            source.abort("the test is over")
        self.sink.close()
        self.buffers.close()
        self.receiver.close()


@pytest.fixture(scope="module", params=["nixl-shm", "nixl-tcp"])
def shared(request):
    """Agents take a while to start: one pair of them for all tests that leave them whole."""
    link = NixlLink(request.param)
    yield link
    link.close()
