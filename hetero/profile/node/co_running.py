"""What two things cost each other when they run at once: each beside the other, against each alone.

Turns are short and alternate, so that a slow minute of the machine meets both arms.
"""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from statistics import median

from hetero.errors import EngineError
from hetero.profile.node.foreign_errors import as_engine_errors
from hetero.profile.node.rig import StepRig
from hetero.profile.node_profile import CoRun

_NUM_ROUNDS = 7
_CHUNK_TOKENS = 64
_FRAME_BYTES = 2 * 2**20

# Of what has not moved a byte by then something is wrong.
_LONGEST_WAIT_S = 5.0

_Count = Callable[[], int]  # of bytes so far; raises EngineError if what moves them has failed


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
    """Decode steps while sealed KV comes in as fast as a thread takes it, opened as a node does.

    Raises: EngineError if it stops, or nothing comes in.
    """
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
    """Decode steps while a thread copies between host and GPU. copy: one round, its bytes.

    Raises: EngineError if a copy fails, or moves nothing.
    """
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
    running: Callable[[], AbstractContextManager[_Count]],
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
            seconds, bytes_per_s = _step_beside(num_bytes, lambda: rig.time_step(num_sequences))
            beside.append(seconds)
            rates.append(bytes_per_s)
    return median(beside) / median(alone), median(rates)


def _step_beside(num_bytes: _Count, step: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a step and bytes per second: of as many steps as it takes until some bytes have
    moved, since a small model's are shorter than a frame."""
    before, started = num_bytes(), time.perf_counter()
    steps = [step()]
    while num_bytes() == before:
        waited_s = time.perf_counter() - started
        if waited_s > _LONGEST_WAIT_S:
            raise EngineError(f"need bytes moved beside steps, have none in {waited_s:.1f} s")
        steps.append(step())
    return median(steps), (num_bytes() - before) / (time.perf_counter() - started)


@contextmanager
def _copying(copy: Callable[[], int]) -> Iterator[_Count]:
    """A thread that copies until it is told to stop; how many bytes it has copied so far."""
    is_over = threading.Event()
    num_bytes = 0

    def work() -> None:
        nonlocal num_bytes
        while not is_over.is_set():
            num_bytes += copy()

    with _in_threads(work, stop=is_over.set) as raise_failure:

        def count() -> int:
            raise_failure()
            return num_bytes

        yield count


@contextmanager
def _receiving() -> Iterator[_Count]:
    """Frames between two threads over a socket; how many bytes have been opened so far."""
    # Not before: OpenSSL takes 6 MB, and a survey is to take no more than a node.
    from hetero.transport.seals import KEY_BYTES, TAG_BYTES, make_seal

    key = secrets.token_bytes(KEY_BYTES)
    ours, theirs = socket.socketpair()
    is_over = threading.Event()
    num_bytes = 0

    def send() -> None:
        seal, frame = make_seal("aead", key), memoryview(bytes(_FRAME_BYTES))
        try:
            while True:
                for part in seal.seal(frame):
                    theirs.sendall(part)
        except OSError:
            if not is_over.is_set():
                raise

    def receive() -> None:
        nonlocal num_bytes
        seal, frame = make_seal("aead", key), memoryview(bytearray(_FRAME_BYTES + TAG_BYTES))
        while True:
            have = 0
            while have < len(frame):
                received = ours.recv_into(frame[have:])
                if not received:
                    return
                have += received
            seal.open(frame)
            num_bytes += _FRAME_BYTES

    def stop() -> None:
        is_over.set()
        for end in (ours, theirs):
            end.shutdown(socket.SHUT_RDWR)

    with ours, theirs, _in_threads(send, receive, stop=stop) as raise_failure:

        def count() -> int:
            raise_failure()
            return num_bytes

        yield count


@contextmanager
def _in_threads(
    *works: Callable[[], None], stop: Callable[[], None]
) -> Iterator[Callable[[], None]]:
    """Threads that work until `stop`. What one of them has failed with is raised by what is
    yielded, and at the end: steps beside a dead thread are undisturbed."""
    futures: list[Future[None]] = []

    def raise_failure() -> None:
        for future in futures:
            if future.done():
                with as_engine_errors():
                    future.result()

    with ThreadPoolExecutor(len(works)) as pool:
        try:
            futures += [pool.submit(work) for work in works]
            yield raise_failure
        finally:
            stop()
    raise_failure()
