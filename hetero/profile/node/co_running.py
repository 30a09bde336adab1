"""What two things cost each other when they run at once: each beside the other, against each alone.

Turns are short and alternate, so that a slow minute of the machine meets both arms.
"""

import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def receive_beside_decode(rig: StepRig, num_sequences: int, cells: int) -> CoRun:
    """Decode steps while sealed KV comes in as fast as a thread takes it, opened as a node does."""
    rig.hold([cells] * num_sequences)

    def step() -> float:
        return rig.time_step(num_sequences)

    step()
    alone, beside, rates = [], [], []
    for _ in range(_NUM_ROUNDS):
        alone.append(step())
        with _receiving() as received:
            step()
            before = received()
            seconds = step()
            rates.append((received() - before) / seconds)
            beside.append(seconds)
    return CoRun(
        source="measured",
        what=f"decode step of {num_sequences}",
        beside=f"sealed KV arriving at {8e-9 * median(rates):.1f} Gbit/s",
        slowdown=median(beside) / median(alone),
        beside_slowdown=None,
        note="its sender ran on this machine, too: a network's would not",
    )


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
