"""The load generator against a server that says when it really sent what.

    python tools/check_load_generator.py [-o FILE]

32 streams at a time of stub_openai_server.py, at several rates: how long after a token was sent it
is stamped, how far reported times are from the true ones, and what the generator takes of a core.
Needs a quiet machine with two cores. Ends with 1 if something is over its bound.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hetero.experiment.load.execute import LoadOutcome, execute
from hetero.experiment.load.plan import LoadPlan
from hetero.profile.provenance import provenance
from hetero.workload.schedule import Schedule, Session, Turn

STUB = Path(__file__).parent / "stub_openai_server.py"
STREAMS = 32
TOKENS = 100  # of an answer
FIRST_MS = 50
TOKEN_MS = (10, 20, 50)
MOST_APART_S = 0.001
MOST_CORES = 0.05  # for 100 tokens a second

Sent = dict[str, dict[str, Any]]  # by request, what the stub did


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    output = parser.parse_args().output
    rows = [measure(token_ms) for token_ms in TOKEN_MS]
    print(json.dumps(rows, indent=1))
    if output is not None:
        about = {"benchmark": "load generator", "provenance": provenance()}
        output.write_text(json.dumps(about | {"points": rows}, indent=1) + "\n")
    apart = [value for row in rows for name, value in row.items() if name.endswith("_apart_s")]
    late = [row["stamp_delay_p95_s"] for row in rows]
    cores = [row["cores_at_100_tokens_per_s"] for row in rows]
    sys.exit(0 if max(*apart, *late) < MOST_APART_S and max(cores) < MOST_CORES else 1)


def measure(token_ms: int) -> dict[str, float]:
    sent: Sent = {}
    with running_stub(token_ms, sent) as url:
        sessions = [Session(turns=(turn(index),)) for index in range(3 * STREAMS)]
        schedule = Schedule(name="stub", sessions=tuple(sessions), block_tokens=64)
        plan = LoadPlan(url=url, schedule=schedule, concurrency=STREAMS, warmup=STREAMS)
        outcome = execute(plan)
    assert not outcome.metrics.errors, outcome.metrics.errors
    return compared(outcome, sent) | {
        "streams": STREAMS,
        "token_ms": token_ms,
        "tokens": sum(len(record.piece_s) for record in outcome.records),
        "cpu_s_per_token": outcome.share.cpu_s_per_token or 0.0,
        "cores_at_100_tokens_per_s": 100 * (outcome.share.cpu_s_per_token or 0.0),
    }


def compared(outcome: LoadOutcome, sent: Sent) -> dict[str, float]:
    delays, told, true = [], {"ttft": [], "itl": []}, {"ttft": [], "itl": []}
    for record in outcome.records:
        stamped = np.array(record.piece_s)
        left = np.array(sent[f"main-{record.session}-0"]["sent_s"]) - outcome.began_s
        delays += list(stamped - left)
        told["ttft"].append(stamped[0] - record.due_s)
        true["ttft"].append(left[0] - record.due_s)
        told["itl"] += list(np.diff(stamped))
        true["itl"] += list(np.diff(left))
    found = {f"stamp_delay_p{share}_s": quantile(delays, share) for share in (50, 95, 99)}
    for name in told:
        for share in (50, 95, 99):
            apart = abs(quantile(told[name], share) - quantile(true[name], share))
            found[f"{name}_p{share}_apart_s"] = apart
    return found


def quantile(values: list[float], share: int) -> float:
    return float(np.percentile(values, share))


def turn(index: int) -> Turn:
    return Turn(prompt_tokens=20, output_tokens=TOKENS, blocks=(index,))


@contextmanager
def running_stub(token_ms: int, sent: Sent) -> Iterator[str]:
    """Its address; what it sent is there afterwards."""
    options = ["--first-ms", str(FIRST_MS), "--token-ms", str(token_ms)]
    process = subprocess.Popen(
        [sys.executable, str(STUB), *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}"
        process.terminate()
        log = json.loads(process.communicate(timeout=60)[0])
        sent.update({entry["name"]: entry for entry in log["requests"]})
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main()
