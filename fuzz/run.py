"""Feed every target of `tests/fuzz_targets.py` with atheris: `run.py NUM_INPUTS`, in all.

Each runs in a process of its own. Fails if anything but PeerError comes out, or memory grows.
Findings are left in `fuzz/findings/`; `run.py --target NAME FILE` tries one again.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

with atheris.instrument_imports(include=["hetero"]):
    from fuzz_targets import TARGETS, seeds

# libFuzzer keeps inputs that reach something new, and its own maps: that much is its own.
MAX_GROWTH_MB = 64


def main() -> None:
    if sys.argv[1] == "--target":
        run_target(sys.argv[2], sys.argv[3:])
        return
    num_inputs = int(sys.argv[1])
    (HERE / "findings").mkdir(exist_ok=True)
    done = 0
    for name in TARGETS:
        done += run_apart(name, -(-num_inputs // len(TARGETS)))
    print(f"{done} inputs for {len(TARGETS)} targets: only PeerError came out")


def run_apart(name: str, num_inputs: int) -> int:
    """How many inputs a target got."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [f"-runs={num_inputs}", "-max_len=600", "-print_final_stats=1", corpus]
        options.append(f"-artifact_prefix={HERE}/findings/{name}-")
        command = [sys.executable, __file__, "--target", name, *options]
        run = subprocess.run(command, capture_output=True, text=True)
    said = run.stdout + run.stderr
    if run.returncode:
        sys.exit(f"{name}: {said[-4000:]}")
    counted = re.search(r"number_of_executed_units: (\d+)", said)
    growth = re.search(r"memory grew by (-?\d+) MB", said)
    assert counted, said[-2000:]
    assert growth, said[-2000:]
    print(f"{name:<10} {counted[1]:>8} inputs, memory grew by {growth[1]} MB", flush=True)
    return int(counted[1])


def run_target(name: str, options: list[str]) -> None:
    target = TARGETS[name]
    num_runs = next((int(o[6:]) for o in options if o.startswith("-runs=")), 0)
    num_seen, early_mb = 0, 0

    def watched(raw: bytes) -> None:
        nonlocal num_seen, early_mb
        target(raw)
        num_seen += 1
        if not num_runs:
            return
        if num_seen == num_runs // 4:
            early_mb = resident_mb()
        elif num_seen == num_runs:
            grown = resident_mb() - early_mb
            print(f"memory grew by {grown} MB", file=sys.stderr, flush=True)
            assert grown <= MAX_GROWTH_MB, f"memory grew by {grown} MB"

    atheris.Setup([sys.argv[0], *options], watched)
    atheris.Fuzz()


def resident_mb() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) // 1024


if __name__ == "__main__":
    main()
