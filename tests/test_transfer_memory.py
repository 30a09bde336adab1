"""What a transfer costs beside its own buffers: memory while it runs, and nothing afterwards.

HETERO_TRANSFER_GB=4 moves more; the default is for a machine with a few GB to spare.
"""

import gc
import multiprocessing
import os
import queue
import re
import select
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from hetero.kv.layout import kv_layout
from hetero.kv.rows import RowFrame
from hetero.kv.staging import StagingBlob, StateLayout
from hetero.messages import Fingerprint, ModelFingerprint, Ticket, Token
from hetero.transport.door import Door
from hetero.transport.tcp_sink import Arrived, TcpSink
from hetero.transport.tcp_source import TcpSource
from hetero.transport.transfer import SinkTransfer, SourceTransfer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MB = 2**20
MAX_EXTRA_BYTES = 64 * MB
TRANSFER_GB = float(os.environ.get("HETERO_TRANSFER_GB", "1"))
CREDIT_BYTES = 64 * MB  # the default of a decode node
WAIT_S = 240

MODEL = ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="w")
LAYOUT = kv_layout(
    num_layers=32, num_kv_heads=8, head_dim_k=128, head_dim_v=128, k_type="q8_0", v_type="q8_0"
)
FINGERPRINT = Fingerprint(model=MODEL, layout=LAYOUT)
FRAME_TOKENS = 2 * MB // LAYOUT.row_bytes("k")
NUM_TOKENS = int(TRANSFER_GB * 1e9 / LAYOUT.token_bytes) // FRAME_TOKENS * FRAME_TOKENS
FIRST = (Token("r", 0, 0, 5),)

pytestmark = [pytestmark, pytest.mark.timeout(2 * WAIT_S)]


def proc_status(field):
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1])


def begin_peak():
    """Resident bytes now; the peak begins anew."""
    with suppress(OSError):  # not allowed in every container: then it was not higher before
        Path("/proc/self/clear_refs").write_text("5")
    return proc_status("VmRSS")


def run_sink(pipe, seal):
    before = begin_peak()
    staging = StagingBlob(LAYOUT, NUM_TOKENS, 1)
    sink = TcpSink(Door("tcp://127.0.0.1:0"))
    ticket = Ticket(
        ticket_id="r.1",
        address=sink.address,
        num_tokens=NUM_TOKENS,
        lease_s=30.0,
        key=bytes(32),
        seal=seal,
    )
    transfer = SinkTransfer(ticket, FINGERPRINT, staging, CREDIT_BYTES)
    sink.expect(transfer)
    pipe.send(ticket)
    assert select.select([sink.events], [], [], WAIT_S)[0]
    outcome = sink.events.take_all()
    extra = proc_status("VmHWM") - before - staging.num_bytes
    state = StateLayout(LAYOUT, NUM_TOKENS, 1)
    rows = one_frame()
    is_right = outcome == [Arrived("r.1")] and all(
        np.array_equal(state.rows(staging.blob, kind, layer)[first : first + FRAME_TOKENS], rows)
        for kind in "kv"
        for layer in range(0, LAYOUT.num_layers, 5)
        for first in range(0, NUM_TOKENS, FRAME_TOKENS)
    )
    pipe.send((extra, is_right, transfer.received_bytes))
    sink.close()


def run_source(pipe, ticket, num_connections):
    rows = one_frame()[None]
    ends = queue.SimpleQueue()
    before = begin_peak()
    source = TcpSource(
        SourceTransfer(ticket, FINGERPRINT),
        num_connections=num_connections,
        on_credit=lambda num_bytes: None,
        on_end=ends.put,
    )
    for first in range(0, NUM_TOKENS, FRAME_TOKENS):
        for layer in range(LAYOUT.num_layers):
            for kind in "kv":
                source.put(
                    RowFrame(
                        kind=kind,
                        first_layer=layer,
                        end_layer=layer + 1,
                        first_token=first,
                        end_token=first + FRAME_TOKENS,
                        rows=rows,
                    )
                )
    source.finish(FIRST)
    error = ends.get(timeout=WAIT_S)
    pipe.send((proc_status("VmHWM") - before, error and str(error)))


def one_frame():
    """Every frame of the transfer has these rows, so that the source's memory suffices."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (FRAME_TOKENS, LAYOUT.row_bytes("k")), np.uint8)


@pytest.mark.parametrize(
    ("seal", "num_connections"), [("aead", None), ("aead", 8), ("none", 8)], ids=str
)
def test_a_transfer_takes_little_beside_its_own_buffers(seal, num_connections):
    spawn = multiprocessing.get_context("spawn")
    to_sink, sinks = spawn.Pipe()
    to_source, sources = spawn.Pipe()
    sink = spawn.Process(target=run_sink, args=(sinks, seal), daemon=True)
    sink.start()
    assert to_sink.poll(WAIT_S)
    ticket = to_sink.recv()
    source = spawn.Process(target=run_source, args=(sources, ticket, num_connections), daemon=True)
    source.start()
    assert to_source.poll(WAIT_S)
    source_extra, error = to_source.recv()
    assert to_sink.poll(WAIT_S)
    sink_extra, is_right, received_bytes = to_sink.recv()
    for process in (sink, source):
        process.join(WAIT_S)
    print(
        f"\n{received_bytes / 1e9:.2f} GB, {seal}, {num_connections or 'as many as needed'} "
        f"connections: source {source_extra / MB:.1f} MB, sink {sink_extra / MB:.1f} MB beside"
    )
    assert error is None
    assert is_right
    assert received_bytes == NUM_TOKENS * LAYOUT.token_bytes
    assert source_extra <= MAX_EXTRA_BYTES
    assert sink_extra <= MAX_EXTRA_BYTES


# Many transfers, one after another.

SMALL = kv_layout(
    num_layers=2, num_kv_heads=2, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="f16"
)
SMALL_FINGERPRINT = Fingerprint(model=MODEL, layout=SMALL)


def move_small(sink, number):
    """Every third is given up by its source, every third by its sink."""
    ticket = Ticket(
        ticket_id=f"r.{number}",
        address=sink.address,
        num_tokens=64,
        lease_s=30.0,
        key=bytes(32),
        seal="aead",
    )
    sink.expect(SinkTransfer(ticket, SMALL_FINGERPRINT, StagingBlob(SMALL, 64, 1), CREDIT_BYTES))
    ends = queue.SimpleQueue()
    source = TcpSource(
        SourceTransfer(ticket, SMALL_FINGERPRINT),
        num_connections=2,
        on_credit=lambda num_bytes: None,
        on_end=ends.put,
    )
    for first in range(0, 64, 16):
        for layer in range(2):
            for kind in "kv":
                rows = np.zeros((1, 16, SMALL.row_bytes(kind)), np.uint8)
                source.put(
                    RowFrame(
                        kind=kind,
                        first_layer=layer,
                        end_layer=layer + 1,
                        first_token=first,
                        end_token=first + 16,
                        rows=rows,
                    )
                )
    if number % 3 == 1:
        source.abort("given up")
        sink.forget(ticket.ticket_id, "given up")
    elif number % 3 == 2:
        sink.forget(ticket.ticket_id, "given up")
        assert ends.get(timeout=WAIT_S) is not None
    else:
        source.finish(FIRST)
        assert ends.get(timeout=WAIT_S) is None
        assert select.select([sink.events], [], [], WAIT_S)[0]
    sink.events.take_all()


def test_two_hundred_transfers_leave_nothing_behind():
    process = psutil.Process()
    sink = TcpSink(Door("tcp://127.0.0.1:0"))
    idle = threading.active_count()

    def settle():
        deadline = time.monotonic() + 10
        while threading.active_count() > idle:
            assert time.monotonic() < deadline, threading.enumerate()
            time.sleep(0.02)
        gc.collect()
        return process.num_fds(), process.memory_info().rss

    for number in range(60):
        move_small(sink, number)
    fds_before, rss_before = settle()
    for number in range(60, 260):
        move_small(sink, number)
    fds_after, rss_after = settle()
    sink.close()
    assert fds_after == fds_before
    assert rss_after - rss_before < 8 * MB
