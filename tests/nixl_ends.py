"""One end of a link in a process of its own, to be killed.

python nixl_ends.py source TRANSPORT NUM_FRAMES < ticket     sends so many frames, then waits
python nixl_ends.py agent TRANSPORT                          says its ring, then waits
"""

import queue
import sys

import msgspec
from test_tcp_link import FINGERPRINT, FIRST, FRAMES

from hetero.messages import Ticket
from hetero.transport.nixl_agent import NixlAgent
from hetero.transport.nixl_source import SendBuffers, row_sender
from hetero.transport.tcp_source import TcpSource
from hetero.transport.transfer import SourceTransfer


def run_source(transport, num_frames):
    ticket = msgspec.msgpack.decode(bytes.fromhex(sys.stdin.readline()), type=Ticket)
    buffers = SendBuffers(transport)
    ends = queue.SimpleQueue()
    source = TcpSource(
        SourceTransfer(ticket, FINGERPRINT),
        num_connections=2,
        on_credit=lambda _: None,
        on_end=ends.put,
        carrier=row_sender(ticket, buffers),
    )
    for frame in FRAMES[:num_frames]:
        source.put(frame)
    if num_frames == len(FRAMES):
        source.finish(FIRST)
    print(repr(ends.get()), flush=True)
    sys.stdin.readline()


def run_agent(transport):
    agent = NixlAgent(transport, 1)
    print(msgspec.msgpack.encode(agent.ring()).hex(), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    if sys.argv[1] == "source":
        run_source(sys.argv[2], int(sys.argv[3]))
    else:
        run_agent(sys.argv[2])
