"""The load generator as a process on a site's front host: in its namespace, at its priority."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from hetero.errors import ConfigError, EngineError
from hetero.experiment.deploy.site import FRONT, Site
from hetero.experiment.load.metrics import PromptLengths
from hetero.experiment.load.overhead import Share
from hetero.experiment.load.plan import LoadPlan
from hetero.experiment.load.record import RequestRecord
from hetero.launch.node_processes import node_environment

_CHILD = (sys.executable, "-P", "-m", "hetero.experiment.load.child")


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What the child says of a load, as far as it is used. began_s: of time.monotonic."""

    began_s: float
    scalars: dict[str, float]
    share: Share
    prompt_kind: str
    prompt_lengths: PromptLengths
    aiperf: dict[str, Any]


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    records: list[RequestRecord]
    summary: Summary


def load_from_front(site: Site, plan: LoadPlan) -> Loaded:
    """Raises: ConfigError for a plan that can't be, EngineError if the child failed."""
    with TemporaryDirectory(prefix="hetero-load-") as folder:
        file = Path(folder) / "records.jsonl"
        process = site.popen(
            FRONT,
            [*_CHILD, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=node_environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        with process:
            try:
                out, err = process.communicate(msgspec.json.encode(plan))
            except BaseException:
                process.kill()
                raise
        last = out.strip().rpartition(b"\n")[2]
        if process.returncode != 0:
            raise _failure(process.returncode, last, err)
        summary = msgspec.json.decode(last, type=Summary)
        with file.open("rb") as lines:
            records = [msgspec.json.decode(line, type=RequestRecord) for line in lines]
    return Loaded(records=records, summary=summary)


def _failure(status: int, last: bytes, err: bytes) -> ConfigError | EngineError:
    try:
        message = str(msgspec.json.decode(last)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        said = err.decode(errors="replace").strip().splitlines()[-1:]
        message = f"ended with {status}: {' '.join(said)}"
    return ConfigError(message) if status == 2 else EngineError(f"load generator: {message}")
