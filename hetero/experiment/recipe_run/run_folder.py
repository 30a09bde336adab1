"""The folder of one run: what is under way in it, and which one an interrupted run goes on in.

    run.json         what is being run, written first
    journal.jsonl    a line for each arm measured (`ArmRun`)
    requests.jsonl   a line for each request of those
    inputs/          the files that the recipe names

Once there is a result, the first two go.

An arm's requests are written before its line in the journal, and that line says where they end:
what lies beyond is of an arm that did not finish, and is cut off.
"""

import errno
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from hetero.errors import ConfigError, HeteroError
from hetero.experiment.outcome.arm_run import ArmRun
from hetero.experiment.recipe.inputs import INPUTS

JOURNAL, REQUESTS, HEADER = "journal.jsonl", "requests.jsonl", "run.json"


class RunHeader(msgspec.Struct, frozen=True, kw_only=True):
    """calibration: what was measured once for the whole run, by name; later arms depend on it.
    profiles: of the machine, as the run began."""

    recipe: dict[str, Any]
    recipe_hash: str
    provenance: dict[str, Any]
    calibration: dict[str, float] = {}
    profiles: dict[str, Any] = {}


class JournalLine(msgspec.Struct, frozen=True, kw_only=True):
    run: ArmRun
    requests_end: int  # bytes of requests.jsonl up to and with its own


class RunFolder:
    """Open for appending. Where the disk does not take an arm, nothing of it stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = _read_header(path)
        self.runs: list[ArmRun] = []
        journal_end = self._requests_end = 0
        for line in _whole_lines(path / JOURNAL):
            entry = _decode(line, path)
            self.runs.append(entry.run)
            journal_end += len(line)
            self._requests_end = entry.requests_end
        have = (path / REQUESTS).stat().st_size if (path / REQUESTS).exists() else 0
        if have < self._requests_end:
            raise HeteroError(
                f"{path / REQUESTS}: need {self._requests_end} bytes, as the journal says, have "
                f"{have}; the run can't go on: start it anew with --fresh"
            )
        self._journal = _open_at(path / JOURNAL, journal_end)
        self._requests = _open_at(path / REQUESTS, self._requests_end)
        self._journal_end = journal_end

    def append(self, run: ArmRun, records: Sequence[Any]) -> None:
        """Raises: HeteroError if the disk does not take it."""
        lines = b"".join(_line(record) for record in records)
        end = self._requests_end + len(lines)
        entry = msgspec.json.encode(JournalLine(run=run, requests_end=end)) + b"\n"
        try:
            _append(self._requests, lines)
            _append(self._journal, entry)
        except OSError as error:
            self._cut_back()
            raise _refused(self.path, len(lines) + len(entry), error) from None
        self._requests_end, self._journal_end = end, self._journal_end + len(entry)
        self.runs.append(run)

    def calibrate(self, name: str, value: float) -> None:
        self._change(calibration=self.header.calibration | {name: value})

    def keep_profiles(self, profiles: dict[str, Any]) -> None:
        self._change(profiles=profiles)

    def finished(self) -> None:
        """Its result is written, and has all that is here."""
        for name in (JOURNAL, HEADER):
            (self.path / name).unlink()

    def close(self) -> None:
        """A run that measured nothing leaves nothing, but what its processes said."""
        self._journal.close()
        self._requests.close()
        if not self.runs:
            for name in (JOURNAL, REQUESTS, HEADER):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / INPUTS, ignore_errors=True)
            with suppress(OSError):
                self.path.rmdir()

    def _change(self, **fields: Any) -> None:
        self.header = msgspec.structs.replace(self.header, **fields)
        _write_header(self.path, self.header)

    def _cut_back(self) -> None:
        """To what was whole before; the next to open the folder would do the same."""
        with suppress(OSError):
            self._requests.truncate(self._requests_end)
            self._journal.truncate(self._journal_end)


def make_folder(root: Path, name: str, header: RunHeader) -> RunFolder:
    """`root/name`, or with a number behind it if that is taken."""
    number, path = 1, root / name
    while True:
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
            path = root / f"{name}_{number}"
        except OSError as error:
            raise ConfigError(f"{path}: can't make it: {error.strerror or error}") from None
    _write_header(path, header)
    return RunFolder(path)


def unfinished_folder(root: Path, recipe_hash: str, machine: dict[str, Any]) -> Path | None:
    """The newest run of this very recipe on this machine that is not finished."""
    found = []
    for file in root.glob(f"*/{HEADER}"):
        try:
            header = _read_header(file.parent)
        except HeteroError:
            continue  # another version's
        theirs = header.provenance.get("machine", {})
        same = all(theirs.get(key) == machine.get(key) for key in ("cpu", "usable_cores"))
        if header.recipe_hash == recipe_hash and same:
            found.append(file)
    newest = max(found, key=lambda file: file.stat().st_mtime, default=None)
    return newest and newest.parent


def machine_label(provenance: dict[str, Any]) -> str:
    """A word for a folder's name; no host name, since results are for strangers."""
    machine = provenance["machine"]
    cpu = re.sub(r"\(.*?\)|\bcpu\b|\bprocessor\b|@.*", " ", machine["cpu"].lower())
    words = [word for word in re.findall(r"[a-z0-9-]+", cpu) if word not in _MAKERS]
    cores = machine["usable_cores"]
    return "-".join([*words[:3], f"{cores}-core" + ("s" if cores != 1 else "")])


_MAKERS = ("intel", "amd", "apple")


def _read_header(path: Path) -> RunHeader:
    try:
        return msgspec.json.decode((path / HEADER).read_bytes(), type=RunHeader)
    except OSError as error:
        raise ConfigError(f"{path / HEADER}: can't read it: {error.strerror or error}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path / HEADER}: need what a run began with, have: {error}") from None


def _write_header(path: Path, header: RunHeader) -> None:
    draft = path / f".{HEADER}.new"
    encoded = msgspec.json.format(msgspec.json.encode(header), indent=1)
    try:
        draft.write_bytes(encoded)
        draft.replace(path / HEADER)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise _refused(path, len(encoded), error) from None


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [line for line in lines if line.endswith(b"\n")]


def _decode(line: bytes, path: Path) -> JournalLine:
    try:
        return msgspec.json.decode(line, type=JournalLine)
    except msgspec.DecodeError as error:
        raise HeteroError(
            f"{path / JOURNAL}: need an arm's run in each line, have: {error}; the run can't go "
            "on: start it anew with --fresh"
        ) from None


def _line(record: Any) -> bytes:
    return msgspec.json.encode(rounded(msgspec.to_builtins(record))) + b"\n"


def rounded(value: Any) -> Any:
    """Clocks have no more than eight digits that mean anything; a file of all is twice as long."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def _open_at(path: Path, end: int) -> FileIO:
    # Without a buffer: what a full disk did not take would be written at the next chance.
    file = FileIO(path, "ab")
    file.truncate(end)
    return file


def _append(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def _refused(path: Path, num_bytes: int, error: OSError) -> HeteroError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HeteroError(
            f"{path}: need {num_bytes} bytes of disk, have less; free some and run it again: it "
            "goes on at the next arm"
        )
    return HeteroError(
        f"{path}: can't write: {error.strerror or error}; what was measured before is kept, and "
        "the same command goes on from there"
    )
