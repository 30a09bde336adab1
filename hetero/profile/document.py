"""Profiles as files: YAML that is read back only if it is whole, and as it was measured.

Each field of a file carries a digest of its content, so that an edited or half-copied file is
refused with the field's name rather than believed.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import yaml
from blake3 import blake3

from hetero.errors import ConfigError
from hetero.messages import ModelFingerprint
from hetero.profile.link.report import LinkProfile
from hetero.profile.node_profile import MachineProfile, NodeProfile

Profile = NodeProfile | MachineProfile | LinkProfile

# Raised with every change that an older reader would misread.
FORMAT = 1

# A hundred times what a long measurement writes; whoever names a model file is told so at once.
MAX_FILE_BYTES = 16 * 2**20

# Twice what a profile has.
_MAX_DEPTH = 16

_KINDS: dict[str, type[NodeProfile] | type[MachineProfile] | type[LinkProfile]] = {
    "node": NodeProfile,
    "machine": MachineProfile,
    "link": LinkProfile,
}


def check_folder(folder: Path) -> None:
    """That profiles can be written there; it is made if it is not there.

    Raises: ConfigError
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(folder, error) from None


def write_profile(profile: Profile, path: Path) -> None:
    """Whole or not at all: a file that is there stays as it is until the new one is complete.

    Raises: ConfigError if it can't be written.
    """
    content = document(profile)
    digests = {name: _digest(value) for name, value in content.items()}
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(_text(content | {"digests": digests}))
        partial.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: can't write it: {(error.strerror or str(error)).lower()}")


def document(profile: Profile) -> dict[str, Any]:
    """What a file of it says, less the digests."""
    content: dict[str, Any] = msgspec.to_builtins(profile, str_keys=True)
    kind = content.pop("kind")
    return {"kind": kind, "format": FORMAT, **content}


def read_node_profile(path: Path) -> NodeProfile:
    """Raises: ConfigError as `read_profile` does, and for a link's or a machine's."""
    profile = read_profile(path)
    if not isinstance(profile, NodeProfile):
        raise ConfigError(
            f"{path}: kind: need a node's profile, have a {kind_of(profile)}'s; measure with "
            "`hetero profile node -m MODEL`"
        )
    return profile


def kind_of(profile: Profile) -> str:
    """As its file says."""
    return next(kind for kind, of_kind in _KINDS.items() if isinstance(profile, of_kind))


def read_profile(path: Path) -> Profile:
    """Raises: ConfigError naming the file and the field that is missing, malformed or edited."""
    content = _parsed(path)
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"{path}: kind: need {' or '.join(_KINDS)}, have {_shown(kind)}")
    if content.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: format: need {FORMAT}, have {_shown(content.get('format'))}; "
            "measure again with this version of hetero"
        )
    digests = content.pop("digests", None)
    if not isinstance(digests, dict):
        raise ConfigError(f"{path}: digests: need those it was written with, have none; truncated?")
    _check_digests(path, content, digests)
    body = {name: value for name, value in content.items() if name != "format"}
    try:
        return msgspec.convert(body, _KINDS[kind], str_keys=True)
    except msgspec.ValidationError as error:
        # Its digests are right, so another version wrote it.
        raise ConfigError(
            f"{path}: {_explained(error)}; measure again with this version of hetero"
        ) from None


def profile_name(host: str, model: str, quantization: str) -> str:
    """The file that a node's profile is written to, and looked for: HOST_MODEL.yaml.

    MODEL ends in the quantization where the model's name doesn't say it: quants of one model have
    one name.
    """
    said = rf"(?<![a-z0-9]){re.escape(quantization.lower())}(?![a-z0-9]|_[a-z0-9])"
    if not re.search(said, model.lower()):
        model += f"-{quantization.lower()}"
    return _file_name(f"{host}_{model}")


def machine_profile_name(host: str) -> str:
    """The file that a machine's profile is written to."""
    return _file_name(f"{host}_machine")


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name) + ".yaml"


def require_model(profile: NodeProfile, fingerprint: ModelFingerprint, path: Path) -> None:
    """Raises: ConfigError if the profile is of another model, naming the part that differs."""
    model = profile.model
    if model.fingerprint is None:
        differs = f"random weights of the shape {model.name}"
    elif model.fingerprint == fingerprint:
        return
    else:
        parts = [
            part
            for part in ModelFingerprint.__struct_fields__
            if getattr(model.fingerprint, part) != getattr(fingerprint, part)
        ]
        differs = f"{model.name}, whose {' and '.join(parts)} differ"
    raise ConfigError(
        f"{path}: model: need a profile of this model, have one of {differs}; measure this one "
        "with `hetero profile node -m MODEL`, or say --any-model"
    )


def _parsed(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: can't read it: {(error.strerror or str(error)).lower()}"
        ) from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: need a profile's YAML, have more than {MAX_FILE_BYTES} bytes")
    try:
        _check_plain(text)
        content = yaml.load(text, Loader=_LOADER)
    # ValueError: what looks like a number or a date and is none.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{path}: need a profile's YAML, have: {_one_line(error)}; cut short, or not a profile?"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: need a profile's YAML, have {_shown(content)}")
    return content


def _check_plain(text: bytes) -> None:
    """Events are read one by one; loading recurses, and libyaml's dies of a deep file's nesting.

    Raises: ValueError for YAML that no profile has, yaml.YAMLError for what is none.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_DEPTH} levels")
        # A few bytes of aliases can stand for more than fits in memory.
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise ValueError("an alias or a tag")


def _check_digests(path: Path, content: dict[str, Any], digests: dict[str, Any]) -> None:
    for name in sorted(content.keys() | digests.keys(), key=str):
        if name not in content:
            raise ConfigError(f"{path}: {name}: need it, have none; the file is truncated")
        if name not in digests:
            raise ConfigError(f"{path}: {name}: need a field of a profile, have one added to it")
        digest = _digest(content[name])
        if digest is None or digest != digests[name]:
            raise ConfigError(
                f"{path}: {name}: need what was measured, have it edited; measure again, or take "
                "an unedited copy"
            )


def _digest(value: object) -> str | None:
    """None of what no profile holds, as a key that is no text."""
    try:
        return blake3(msgspec.json.encode(value, order="sorted")).hexdigest()[:16]
    except (TypeError, ValueError):
        return None


class _Line(dict[str, Any]):
    """Written on one line, with all that is in it."""


def _text(content: dict[str, Any]) -> str:
    fits = [
        fit | {"samples": [_Line(sample) for sample in fit["samples"]]}
        for fit in content.get("fits", [])
    ]
    if fits:
        content = content | {"fits": fits}
    # None: other innermost collections are on one line, too.
    return str(
        yaml.dump(content, Dumper=_DUMPER, sort_keys=False, default_flow_style=None, width=200)
    )


def _explained(error: msgspec.ValidationError) -> str:
    text, _, where = str(error).partition(" - at `$")
    field = where.rstrip("`").lstrip(".")
    text = text.replace("Expected ", "need ").replace(", got ", ", have ").replace("`", "")
    return f"{field}: {text}" if field else text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _shown(value: object) -> str:
    return "none" if value is None else repr(value)[:60]


# libyaml's are ten times as fast; PyYAML is built without them where there is no C library.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_DUMPER.add_representer(
    _Line,
    lambda dumper, line: dumper.represent_mapping("tag:yaml.org,2002:map", line, flow_style=True),
)
