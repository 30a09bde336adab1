"""What two things cost each other when they run at once: each beside the other, against each alone.

Turns are short and alternate, so that a slow minute of the machine meets both arms.
"""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from statistics import median

from hetero.profile.node.rig import StepRig
from hetero.profile.node_profile import CoRun
from hetero.transport.seals import KEY_BYTES, TAG_BYTES, make_seal

_NUM_ROUNDS = 7
_CHUNK_TOKENS = 64
_FRAME_BYTES = 2 * 2**20


def prefill_beside_decode(rig: StepRig, num_sequences: int, cells: int) -> CoRun:
    """One engine that reads a prompt's chunk between its decode steps, as a single node does: what
    the chunk does to the caches is all, for the two never run at the same moment."""
    rig.hold([cells] * num_sequences)
    prompt = num_sequences  # the sequence after those that decode
    chunk = min(_CHUNK_TOKENS, rig.chunk_tokens)
    alone, beside, chunks, chunks_beside = [], [], [], []
    for _ in range(_NUM_ROUNDS):
        rig.time_step(num_sequences)
        alone.append(rig.time_step(num_sequences))
        rig.time_chunk(chunk, prompt)
        chunks.append(rig.time_chunk(chunk, prompt))
        beside.append(rig.time_step(num_sequences))
        chunks_beside.append(rig.time_chunk(chunk, prompt))
    return CoRun(
        source="measured",
        what=f"decode step of {num_sequences}",
        beside=f"prefill chunks of {chunk} tokens on the same engine, in turns",
        slowdown=median(beside) / median(alone),
        beside_slowdown=median(chunks_beside) / median(chunks),
    )


def restore_beside_decode(rig: StepRig, num_sequences: int, cells: int) -> CoRun:
    """One engine that restores an arrived state between its decode steps, as a decode node does.

    Again what it does to the caches is all: that running sequences wait meanwhile is the restore's
    own time. rig: of streams, one more of them than decode; a stream's state is restored in full.
    """
    rig.hold([cells] * num_sequences)

    def restore() -> float:
        return rig.restore_s(rig.context_tokens, num_sequences)

    alone, beside, restores, restores_beside = [], [], [], []
    for _ in range(_NUM_ROUNDS):
        rig.time_step(num_sequences)
        alone.append(rig.time_step(num_sequences))
        restore()
        restores.append(restore())
        beside.append(rig.time_step(num_sequences))
        restores_beside.append(restore())
    return CoRun(
        source="measured",
        what=f"decode step of {num_sequences}",
        beside=f"restores of {rig.context_tokens} tokens on the same engine, in turns",
        slowdown=median(beside) / median(alone),
        beside_slowdown=median(restores_beside) / median(restores),
    )


def receive_beside_decode(rig: StepRig, num_sequences: int, cells: int) -> CoRun:
    """Decode steps while sealed KV comes in as fast as a thread takes it, opened as a node does."""
    slowdown, bytes_per_s = _beside(_receiving, rig, num_sequences, cells)
    return CoRun(
        source="measured",
        what=f"decode step of {num_sequences}",
        beside="sealed KV arriving",
        slowdown=slowdown,
        beside_slowdown=None,
        note=f"{8e-9 * bytes_per_s:.1f} Gbit/s; its sender ran on this machine, too: "
        "a network's would not",
    )


def copies_beside_decode(
    rig: StepRig, num_sequences: int, cells: int, copy: Callable[[], int]
) -> CoRun:
    """Decode steps while a thread copies between host and GPU. copy: one round, its bytes."""
    slowdown, bytes_per_s = _beside(lambda: _copying(copy), rig, num_sequences, cells)
    return CoRun(
        source="measured",
        what=f"decode step of {num_sequences}",
        beside="pinned copies to a GPU and back",
        slowdown=slowdown,
        beside_slowdown=None,
        note=f"{1e-9 * bytes_per_s:.1f} GB/s",
    )


def _beside(
    running: Callable[[], AbstractContextManager[Callable[[], int]]],
    rig: StepRig,
    num_sequences: int,
    cells: int,
) -> tuple[float, float]:
    """How many times as long a decode step takes while something runs, and that one's bytes per
    second. running: starts it, ends it, and counts its bytes meanwhile."""
    rig.hold([cells] * num_sequences)
    rig.time_step(num_sequences)
    alone, beside, rates = [], [], []
    for _ in range(_NUM_ROUNDS):
        alone.append(rig.time_step(num_sequences))
        with running() as num_bytes:
            rig.time_step(num_sequences)
            before, started = num_bytes(), time.perf_counter()
            beside.append(rig.time_step(num_sequences))
            rates.append((num_bytes() - before) / (time.perf_counter() - started))
    return median(beside) / median(alone), median(rates)


@contextmanager
def _copying(copy: Callable[[], int]) -> Iterator[Callable[[], int]]:
    """A thread that copies until it is told to stop; how many bytes it has copied so far."""
    ends = threading.Event()
    num_bytes = 0

    def work() -> None:
        nonlocal num_bytes
        while not ends.is_set():
            num_bytes += copy()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield lambda: num_bytes
    finally:
        ends.set()
        thread.join()


@contextmanager
def _receiving() -> Iterator[Callable[[], int]]:
    """Frames between two threads over a socket; how many bytes have been opened so far."""
    key = secrets.token_bytes(KEY_BYTES)
    ours, theirs = socket.socketpair()
    num_bytes = 0

    def send() -> None:
        seal, frame = make_seal("aead", key), memoryview(bytes(_FRAME_BYTES))
        try:
            while True:
                for part in seal.seal(frame):
                    theirs.sendall(part)
        except OSError:
            return  # closed: it is over

    def receive() -> None:
        nonlocal num_bytes
        seal, frame = make_seal("aead", key), memoryview(bytearray(_FRAME_BYTES + TAG_BYTES))
        while True:
            have = 0
            while have < len(frame):
                try:
                    received = ours.recv_into(frame[have:])
                except OSError:
                    return
                if not received:
                    return
                have += received
            seal.open(frame)
            num_bytes += _FRAME_BYTES

    threads = [threading.Thread(target=work, daemon=True) for work in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: num_bytes
    finally:
        for end in (ours, theirs):
            end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for end in (ours, theirs):
            end.close()
