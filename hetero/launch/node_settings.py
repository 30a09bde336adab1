"""What a profile found best, as lines for the files of `hetero node`, which read no profile."""

import json
from collections.abc import Mapping

import msgspec

from hetero.profile.node_profile import Role, RoleSettings
from hetero.serve.config import DecodeConfig, PrefillConfig

# Of these a profile holds the best for both roles, and for decode the cache and chunk, too.
_OF_BOTH = ("threads", "cpus", "interleave", "load")
_KEYS: dict[Role, tuple[str, ...]] = {
    "decode": (*_OF_BOTH, "unified", "chunk_tokens"),
    "prefill": _OF_BOTH,
}
_KINDS: dict[Role, type[DecodeConfig] | type[PrefillConfig]] = {
    "decode": DecodeConfig,
    "prefill": PrefillConfig,
}


def settings_block(settings: Mapping[Role, RoleSettings]) -> list[str]:
    """Of each role that was measured, an empty line first; nothing if none was."""
    if not settings:
        return []
    lines = ["", "for the files of `hetero node ROLE --config FILE`, a node alone on its machine:"]
    for role in _KEYS:
        if role in settings:
            found = file_lines(role, settings[role])
            lines += ["", f"# {role}.yaml", *(found or ["# nothing: the defaults were best"])]
    return lines


def file_lines(role: Role, found: RoleSettings) -> list[str]:
    """A line a key; only those that differ from the defaults of the role's file."""
    defaults = {field.name: field.default for field in msgspec.structs.fields(_KINDS[role])}
    # A file is YAML, and JSON's values are YAML's that fit on one line.
    return [
        f"{key}: {text}"
        for key in _KEYS[role]
        if (text := json.dumps(getattr(found, key))) != json.dumps(defaults[key])
    ]
