"""A run's result as a file: all it takes to judge it, and to run it again elsewhere."""

from pathlib import Path
from typing import Any

import msgspec

from hetero.errors import ConfigError
from hetero.experiment.outcome.arm_run import ArmRun, emulated
from hetero.experiment.outcome.checks import CheckResult
from hetero.experiment.outcome.figure_result import FigureResult
from hetero.experiment.outcome.whole_file import write_whole
from hetero.experiment.recipe.recipe import Recipe

FILE_NAME = "result.json"

# Raised with every change that an older reader would misread.
FORMAT = 1

# As reading a recipe out of one allows.
_MAX_BYTES = 512 * 2**20


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """model: `name` and `hash` (blake3 of its file, or None), and what else tells it from others.
    facts: what the machine is made of. seeds: by what they were drawn for. calibration: measured
    once for all arms. profiles: the machine's ceilings, measured as the run began.

    arms: what counts, one of each arm and repetition. dropped: attempts that were repeated, since
    the machine changed its speed in them. figures, checks: from `arms`, by `finish`.
    """

    format: int = FORMAT
    recipe: Recipe
    recipe_hash: str
    began: str  # ISO 8601
    ended: str
    machine: str  # its name, as the folder has it
    model: dict[str, Any]
    provenance: dict[str, Any]  # hetero.profile.provenance
    facts: dict[str, Any]
    seeds: dict[str, int]
    calibration: dict[str, float] = {}
    profiles: dict[str, Any] = {}
    figures: list[FigureResult] = []
    checks: list[CheckResult] = []
    arms: list[ArmRun]
    dropped: list[ArmRun] = []

    @property
    def checks_held(self) -> bool:
        return all(check.held for check in self.checks)

    @property
    def emulated(self) -> list[str]:
        return emulated(self.arms)


class _Head(msgspec.Struct):
    format: int | None = None
    recipe: msgspec.Raw = msgspec.Raw()


def write_result(folder: Path, result: Result) -> None:
    """A field a line, and an arm a line, so that a file of megabytes can be looked into.

    Raises: HeteroError if it can't be written; a result that is there stays.
    """
    fields = []
    for name in Result.__struct_fields__:
        value = getattr(result, name)
        if isinstance(value, list) and value:
            text = b"[\n  " + b",\n  ".join(map(msgspec.json.encode, value)) + b"\n ]"
        else:
            text = msgspec.json.encode(value)
        fields.append(b' "' + name.encode() + b'": ' + text)
    write_whole(folder / FILE_NAME, b"{\n" + b",\n".join(fields) + b"\n}\n")


def is_result(path: Path) -> bool:
    """Of a recipe's run: other benchmarks leave other files of that name."""
    try:
        head = msgspec.json.decode(_read(path), type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, ConfigError):
        return False
    return bool(bytes(head.recipe))


def read_result(path: Path) -> Result:
    """path: of the file, or of its folder.

    Raises: ConfigError with the file and what it lacks.
    """
    if path.is_dir():
        path = path / FILE_NAME
    content = _read(path)
    try:
        head = msgspec.json.decode(content, type=_Head)
        if not bytes(head.recipe):
            raise ConfigError(f"{path}: need the result of a recipe, have none in it")
        if head.format != FORMAT:
            raise ConfigError(
                f"{path}: format: need {FORMAT}, have {head.format}: another version of hetero "
                f"wrote it; run its recipe again: hetero run {path}"
            )
        return msgspec.json.decode(content, type=Result)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explained(error)}; edited?") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: need a result's JSON, have: {error}; cut short?") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"{path}: can't read it: {reason}; `hetero results` lists those here"
        ) from None
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path}: need a result, have more than {_MAX_BYTES >> 20} MiB")
    return content


def _explained(error: msgspec.ValidationError) -> str:
    text, _, where = str(error).partition(" - at `$")
    field = where.rstrip("`").lstrip(".")
    text = text.replace("Expected ", "need ").replace(", got ", ", have ").replace("`", "")
    return f"{field}: {text}" if field else text
