"""What a user calls a load -> something to draw schedules from."""

import difflib
from collections.abc import Mapping
from typing import Any

import msgspec

from hetero.errors import ConfigError
from hetero.workload.workload import Workload


def load_workload(spec: str | Mapping[str, Any]) -> Workload:
    """spec: `key=value` text or a mapping with the same keys.

    Raises: ConfigError
    """
    if isinstance(spec, str):
        return _by_hand(_keys_and_values(spec), spec)
    return _by_hand(spec, "by hand")


def _keys_and_values(text: str) -> dict[str, str]:
    fields = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"workload {text!r}: need key=value, have {part!r}")
        fields[key.strip()] = value.strip()
    return fields


def _by_hand(fields: Mapping[str, Any], name: str) -> Workload:
    _check_keys(fields, Workload.__struct_fields__)
    try:
        return msgspec.convert({"name": name, **fields}, Workload, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"workload {name}: {error}") from None


def _check_keys(fields: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"workload: need a known key, have {key!r}; {hint}")
