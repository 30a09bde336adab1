"""Either end of Mooncake's transfer engine over TCP, as a process: `sink` or `source`.

From memory to memory, in pieces as large as our frames, a prompt's worth in a batch. It checks and
encrypts nothing, and restores nothing.
"""

import json
import sys
import time

import numpy as np

_SINK_PORT, _SOURCE_PORT = 17001, 17002


def run_sink(host: str, num_bytes: int) -> None:
    engine, memory = _engine(host, _SINK_PORT, num_bytes)
    target = f"{host}:{engine.get_rpc_port()}"
    print(json.dumps({"target": target, "memory": memory.ctypes.data}), flush=True)
    sys.stdin.read()  # until the benchmark closes it


def run_source(
    host: str, target: str, remote: int, num_bytes: int, frame_bytes: int, seconds: float
) -> None:
    engine, memory = _engine(host, _SOURCE_PORT, num_bytes)
    offsets = range(0, num_bytes, frame_bytes)
    ours = [memory.ctypes.data + offset for offset in offsets]
    theirs = [remote + offset for offset in offsets]
    lengths = [min(frame_bytes, num_bytes - offset) for offset in offsets]
    moved, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        status = engine.batch_transfer_sync_write(target, ours, theirs, lengths)
        if status != 0:
            raise SystemExit(f"mooncake: a batch failed with status {status}")
        moved += num_bytes
    print(json.dumps({"bytes_per_s": moved / (time.perf_counter() - started)}), flush=True)


def _engine(host: str, port: int, num_bytes: int):  # type: ignore[no-untyped-def]
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    if engine.initialize(f"{host}:{port}", "P2PHANDSHAKE", "tcp", "") != 0:
        raise SystemExit("mooncake: can't start its engine")
    memory = np.ones(num_bytes, np.uint8)
    if engine.register_memory(memory.ctypes.data, num_bytes) != 0:
        raise SystemExit("mooncake: can't register memory")
    return engine, memory


if __name__ == "__main__":
    role, host, *rest = sys.argv[1:]
    if role == "sink":
        run_sink(host, int(rest[0]))
    else:
        target, remote, num_bytes, frame_bytes, seconds = rest
        run_source(host, target, int(remote), int(num_bytes), int(frame_bytes), float(seconds))
