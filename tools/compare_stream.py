"""Our memory ceilings beside STREAM's, in turns: python tools/compare_stream.py STREAM [--cpus 0,1]

STREAM is an executable of the benchmark by that name, with OpenMP, its arrays of at least four
times the last-level cache. Ours get as much memory as its report says that it has. Needs Linux and
a quiet machine. Ends with 1 if triad is not within 10% of STREAM's, or reading not 1.0 to 1.4 of
it.
"""

import argparse
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from hetero.profile.ceilings.bandwidth import Arrays
from hetero.profile.ceilings.workers import Workers

KINDS = ("read", "copy", "triad")
ROW = re.compile(r"^(Copy|Add|Triad):\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)", re.MULTILINE)
SIZE = re.compile(r"Array size = (\d+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stream", type=Path)
    parser.add_argument("--cpus", default=",".join(map(str, sorted(os.sched_getaffinity(0)))))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each of ours")
    arguments = parser.parse_args()
    cpus = [int(cpu) for cpu in arguments.cpus.split(",")]
    rates = defaultdict(list)
    for index in range(arguments.rounds):
        num_bytes, theirs = run_stream(arguments.stream, cpus)
        ours = run_ours(num_bytes, cpus, arguments.seconds)
        for name, rate in (theirs | ours).items():
            rates[name].append(rate)
        print(f"{index + 1}/{arguments.rounds}", file=sys.stderr)
    print(f"{len(cpus)} cores, {num_bytes / 2**20:.0f} MiB; GB/s     median  lowest  highest")
    for name, values in rates.items():
        print(f"{name:30} {median(values):8.1f} {min(values):7.1f} {max(values):8.1f}")
    triad, stream = median(rates["triad"]), median(rates["STREAM triad, mean"])
    read = median(rates["read"])
    print(f"triad / STREAM's mean triad   {triad / stream:8.3f}")
    print(f"triad / STREAM's best triad   {triad / median(rates['STREAM triad, best']):8.3f}")
    print(f"read  / STREAM's mean triad   {read / stream:8.3f}")
    sys.exit(0 if 0.9 <= triad / stream <= 1.1 and 1.0 <= read / stream <= 1.4 else 1)


def run_stream(stream: Path, cpus: list[int]) -> tuple[int, dict[str, float]]:
    """Bytes of its three arrays, and GB/s: of its best pass, as it reports, and of their mean, as a
    window over many passes has it."""
    placed = {
        "OMP_NUM_THREADS": str(len(cpus)),
        "OMP_PLACES": ",".join(f"{{{cpu}}}" for cpu in cpus),
        "OMP_PROC_BIND": "close",
    }
    report = subprocess.run(
        [stream.resolve()], env=os.environ | placed, capture_output=True, text=True, check=True
    ).stdout
    size = SIZE.search(report)
    if size is None:
        sys.exit(f"{stream}: need STREAM's report, have: {report[:200]}")
    rates = {}
    for name, best_mb_s, mean_s, least_s in ROW.findall(report):
        rates[f"STREAM {name.lower()}, best"] = float(best_mb_s) / 1e3
        rates[f"STREAM {name.lower()}, mean"] = (
            float(best_mb_s) / 1e3 * float(least_s) / float(mean_s)
        )
    return 3 * 8 * int(size[1]), rates


def run_ours(num_bytes: int, cpus: list[int], seconds: float) -> dict[str, float]:
    with Workers([[cpu] for cpu in cpus]) as workers:
        workers.prepare(Arrays, num_bytes // len(cpus))
        return {kind: workers.rate(kind, seconds) / 1e9 for kind in KINDS}


if __name__ == "__main__":
    main()
