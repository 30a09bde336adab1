"""tools/stub_openai_server.py as a process of its own, and what it did."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from hetero.experiment.load.plan import LoadPlan
from hetero.workload.schedule import Schedule, Session, Turn

STUB = Path(__file__).parent.parent / "tools" / "stub_openai_server.py"
PATIENCE_S = 60


class Stub:
    """`log` is there when it has ended: by name, what it received and sent when."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"
        self.log = {}


@contextmanager
def running_stub(*options):
    process = subprocess.Popen(
        [sys.executable, str(STUB), *map(str, options)], stdout=subprocess.PIPE, text=True
    )
    try:
        stub = Stub(json.loads(process.stdout.readline())["port"])
        yield stub
        process.terminate()
        log = json.loads(process.communicate(timeout=PATIENCE_S)[0])
        stub.log.update({entry["name"]: entry for entry in log["requests"]})
    finally:
        process.kill()
        process.communicate()


def one_turn(first_block, prompt_tokens=20, output_tokens=4):
    return Turn(prompt_tokens=prompt_tokens, output_tokens=output_tokens, blocks=(first_block,))


def schedule(count, *, every_s=None, block_tokens=64, **sizes):
    """Sessions of one turn; open loop if there is a time between them."""
    sessions = tuple(
        Session(
            turns=(one_turn(index, **sizes),), at_s=None if every_s is None else index * every_s
        )
        for index in range(count)
    )
    return Schedule(name="by hand", sessions=sessions, block_tokens=block_tokens)


def plan(stub, load, **options):
    return LoadPlan(url=stub.url, schedule=load, timeout_s=PATIENCE_S, **options)
