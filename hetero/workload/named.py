"""What a user calls a load -> something to draw schedules from."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hetero.errors import ConfigError
from hetero.near import near
from hetero.workload.builtin import BUILTIN
from hetero.workload.trace import Trace, read_trace
from hetero.workload.workload import Workload

LoadSource = Workload | Trace  # both have a name, a rate of their own or None, and draw()

_YAML = (".yaml", ".yml", ".json")

_Kind = TypeVar("_Kind", bound=msgspec.Struct)


class _TraceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """As `read_trace` takes them; times in seconds."""

    trace: str
    begin: float = 0.0
    end: float = math.inf
    first: int | None = None
    speed: float = 1.0


def load_workload(spec: str | Mapping[str, Any]) -> LoadSource:
    """spec: one of
    a built-in's name, and what is to be different: `chat`, `chat,turns=1`;
    lengths by hand: `prompt=lognormal:900:4000,output=64`, keys as the fields of `Workload`;
    the path of a trace, and what part of it and how fast: `PATH,begin=60,end=120,speed=2,
    first=1000`, or `trace=PATH,...`;
    the path of a YAML or JSON file with such keys, or a mapping of them (the built-in is `like`).

    Raises: ConfigError
    """
    if not isinstance(spec, str):
        return _from_keys(spec, "by hand", Path())
    if spec in BUILTIN:
        return BUILTIN[spec]
    path = Path(spec)
    if path.suffix in _YAML:
        return _from_keys(_file_fields(path), path.stem, path.parent)
    if _is_file(path):
        return read_trace(path)
    first = spec.partition(",")[0]
    if "=" in first or first in BUILTIN or _is_file(Path(first)):
        return _from_keys(_keys_and_values(spec), spec, Path())
    raise ConfigError(
        f"workload {spec!r}: need a built-in ({', '.join(BUILTIN)}), a file, or lengths as "
        f"prompt=512,output=64{near(first, BUILTIN, '; there is no such file')}"
    )


def written_out(spec: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """The same load without a file of keys, and with a trace as a mapping: but for that trace,
    nothing then depends on a file.

    Raises: ConfigError
    """
    if not isinstance(spec, str):
        return dict(spec)
    path = Path(spec)
    if path.suffix in _YAML:
        fields = _file_fields(path)
        if "trace" in fields:
            return fields | {"trace": str(path.parent / str(fields["trace"]))}
        return {"name": path.stem, **fields}
    if _is_file(path):
        return {"trace": spec}
    first = spec.partition(",")[0]
    return _keys_and_values(spec) if _is_file(Path(first)) or first[:6] == "trace=" else spec


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a character that none has
        return False


def _keys_and_values(text: str) -> dict[str, str]:
    first, *rest = text.split(",")
    if "=" not in first:
        first = f"{'like' if first in BUILTIN else 'trace'}={first}"
    parts = [first, *rest]
    fields: dict[str, str] = {}
    for part in parts:
        key, equals, value = (side.strip() for side in part.partition("="))
        if not equals or not value or key in fields:
            have = f"{key} twice" if key in fields else repr(part)
            raise ConfigError(f"workload {text!r}: need key=value, have {have}")
        fields[key] = value
    return fields


def _file_fields(path: Path) -> dict[str, Any]:
    try:
        fields = msgspec.yaml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"workload {path}: need a file, have: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"workload {path}: need YAML, have: {error}") from None
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise ConfigError(f"workload {path}: need keys and values, have neither")
    return fields


def _from_keys(fields: Mapping[str, Any], name: str, folder: Path) -> LoadSource:
    """folder: what the path of a trace starts from."""
    if "trace" in fields:
        options = _converted(fields, _TraceOptions, name)
        return read_trace(
            folder / options.trace,
            begin_s=options.begin,
            end_s=options.end,
            first=options.first,
            speed=options.speed,
        )
    rest = dict(fields)
    like = rest.pop("like", None)
    if like is None:
        return _converted({"name": name, **rest}, Workload, name)
    if like not in BUILTIN:
        raise ConfigError(
            f"workload {name}: like: need a built-in, have {like!r}{near(str(like), BUILTIN)}"
        )
    base = msgspec.structs.asdict(BUILTIN[like])
    return _converted({**base, "name": name, **rest}, Workload, name)


def _converted(fields: Mapping[str, Any], kind: type[_Kind], name: str) -> _Kind:
    known = kind.__struct_fields__
    for key in fields:
        if key not in known:
            hint = near(key, known, f"; there are {', '.join(known)}")
            raise ConfigError(f"workload {name}: need a known key, have {key!r}{hint}")
    try:
        return msgspec.convert(dict(fields), kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"workload {name}: {error}") from None
