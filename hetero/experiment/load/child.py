"""`python -m hetero.experiment.load.child RECORDS < plan.json`: a load from another process, which
may live in another network namespace, on other cores, at another priority.

Reads one `LoadPlan` on stdin, writes a `RequestRecord` a line to the file RECORDS when the load is
over, and its summary as one JSON object, last on stdout. Exit status: 0 done, 1 failed, 2 a wrong
plan; then {"error": {"kind", "message"}} instead of the summary.
"""

import sys
from pathlib import Path

import msgspec

from hetero.errors import ConfigError, HeteroError
from hetero.experiment.load.execute import execute
from hetero.experiment.load.plan import LoadPlan
from hetero.experiment.load.record import RequestRecord


def write_records(path: Path, records: list[RequestRecord]) -> None:
    """Raises: OSError."""
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        file.writelines(encoder.encode(record) + b"\n" for record in records)


def main(arguments: list[str]) -> int:
    try:
        if len(arguments) != 1:
            raise ConfigError("child: need the path of a file for the records")
        try:
            plan = msgspec.json.decode(sys.stdin.buffer.read(), type=LoadPlan)
        except msgspec.DecodeError as error:
            raise ConfigError(f"plan: {error}") from None
        outcome = execute(plan)
        write_records(Path(arguments[0]), outcome.records)
    except (HeteroError, OSError) as error:
        problem = {"error": {"kind": type(error).__name__, "message": str(error)}}
        print(msgspec.json.encode(problem).decode(), flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    print(msgspec.json.encode(outcome.summary()).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
