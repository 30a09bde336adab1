"""A lab's YAML file, as people write it, and its reading into a `Topology`."""

import ipaddress
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from hetero.errors import ConfigError
from hetero.launch.lab.limits import MIN_MEMORY_BYTES, MIN_QUOTA
from hetero.launch.lab.shaping import parse_rate
from hetero.launch.lab.topology import Cable, Host, Topology, check_topology

_T = TypeVar("_T", bound=msgspec.Struct)

# Nothing outside a lab sees its addresses: every namespace has its own.
_ADDRESSES = ipaddress.IPv4Network("10.77.0.0/16")

_SIZE = re.compile(r"(\d+(?:\.\d+)?)(MB|GB|MiB|GiB)")
_SIZE_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_CPUS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    hosts: dict[str, Any]
    name: str = "lab"
    switches: list[str] = msgspec.field(default_factory=list)
    links: list[Any] = msgspec.field(default_factory=list)


class _Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    address: str | None = None
    cpus: str | int | None = None
    quota: float | None = None
    memory: str | None = None


class _Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    between: tuple[str, str]
    rate: str
    mtu: int = 1500


class _UniqueKeys(yaml.SafeLoader):
    """YAML says that a key may stand once; the parser would take the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise ConfigError(
                    f"{key.value!r}: need it once, have it again in line {key.start_mark.line + 1}"
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_topology(path: Path) -> Topology:
    """Raises: ConfigError naming the file and the field."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"{path}: can't read it: {(error.strerror or str(error)).lower()}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: need text, have {error.reason}") from None
    try:
        return parse_topology(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse_topology(text: str) -> Topology:
    """Raises: ConfigError naming the field."""
    try:
        fields = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise ConfigError(f"need YAML, have {' '.join(str(error).split())}") from None
    file = _convert("lab", fields, _File)
    drafts = {
        name: _convert(f"hosts.{name}", fields or {}, _Host) for name, fields in file.hosts.items()
    }
    free = _free_addresses({draft.address for draft in drafts.values()})
    topology = Topology(
        name=file.name,
        hosts=tuple(_make_host(name, draft, free) for name, draft in drafts.items()),
        switches=tuple(file.switches),
        cables=tuple(
            _make_cable(f"links[{index}]", _convert(f"links[{index}]", fields, _Link))
            for index, fields in enumerate(file.links)
        ),
    )
    check_topology(topology)
    return topology


def _convert(field: str, fields: object, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(fields, type=kind)
    except msgspec.ValidationError as error:
        names = ", ".join(each.encode_name for each in msgspec.structs.fields(kind))
        raise ConfigError(f"{field}: need the fields {names}, have: {error}") from None


def _free_addresses(taken: set[str | None]) -> Any:
    return (str(address) for address in _ADDRESSES.hosts() if str(address) not in taken)


def _make_host(name: str, draft: _Host, free_addresses: Any) -> Host:
    field = f"hosts.{name}"
    cpus = None if draft.cpus is None else str(draft.cpus)
    if cpus is not None and not _CPUS.fullmatch(cpus):
        raise ConfigError(f'{field}.cpus: need a list as "0-3,8", have {cpus!r}')
    if draft.quota is not None and not MIN_QUOTA <= draft.quota <= 4096:
        raise ConfigError(
            f"{field}.quota: need CPUs, {MIN_QUOTA} or more (0.5 is half of one), "
            f"have {draft.quota:g}"
        )
    return Host(
        name=name,
        address=draft.address or next(free_addresses),
        cpus=cpus,
        quota=draft.quota,
        memory_bytes=None if draft.memory is None else _parse_size(f"{field}.memory", draft.memory),
    )


def _make_cable(field: str, draft: _Link) -> Cable:
    return Cable(
        between=draft.between,
        rate_bits_per_s=parse_rate(f"{field}.rate", draft.rate),
        mtu=draft.mtu,
    )


def _parse_size(field: str, text: str) -> int:
    match = _SIZE.fullmatch(text)
    size_bytes = round(float(match[1]) * _SIZE_UNITS[match[2]]) if match else 0
    if size_bytes < MIN_MEMORY_BYTES:
        raise ConfigError(f"{field}: need a size as 4GB or 512MiB, 16MiB at least, have {text!r}")
    return size_bytes
