"""JSON schema -> GBNF by llama-cpp-python's converter, after refusing what it would get wrong.

The converter ignores every keyword it does not know and some that it does: an answer could then
break the schema without anybody noticing. What would not be enforced is a ConfigError here.
Converting untrusted schemas costs unbounded time: `schema_to_gbnf` runs in a throwaway process.
"""

import json
from typing import Any

from llama_cpp.llama_grammar import SchemaConverter

from hetero.errors import ConfigError

# Schemas people write stay under ten; the converter recurses.
MAX_SCHEMA_DEPTH = 64

# A length becomes as many nested rules; llama.cpp's parser refuses from 2,000 on.
MAX_LENGTH = 1000

# These say nothing about which values are valid. Unknown formats are annotations by the standard.
_ANNOTATIONS = frozenset(
    ("$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description")
) | {"examples", "format", "readOnly", "title", "writeOnly"}

_TYPES = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))
_LENGTHS = ("minItems", "maxItems", "minLength", "maxLength")

# What the converter looks for first, and what it enforces beside it; a sibling not listed is
# silently dropped by it.
_FORMS = (
    ("$ref", frozenset[str]()),
    ("anyOf", frozenset[str]()),
    ("oneOf", frozenset[str]()),
    ("const", frozenset({"type"})),
    ("enum", frozenset({"type"})),
    ("properties", frozenset({"type", "required", "additionalProperties"})),
    ("additionalProperties", frozenset({"type"})),
    ("items", frozenset({"type", "minItems", "maxItems"})),
    ("prefixItems", frozenset({"type"})),
    ("minLength", frozenset({"type", "maxLength"})),
    ("maxLength", frozenset({"type"})),
    ("type", frozenset[str]()),
)


def checked_schema(schema: object) -> dict[str, Any]:
    """The same schema with references renamed so that the converter keeps them apart.

    Raises: ConfigError naming the place and the keyword that would not be enforced.
    """
    return _Checker(schema).run()


def schema_to_gbnf(schema: dict[str, Any]) -> str:
    """GBNF of a checked schema. May take any time or memory, or raise anything: isolate it."""
    converter = _Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    # Its own search for references overlooks some, and knows how to fetch remote ones.
    converter._refs = {f"#/$defs/{name}": target for name, target in schema["$defs"].items()}
    converter.visit(schema, "")
    gbnf: str = converter.format_grammar()
    return gbnf


class _Checker:
    def __init__(self, schema: object) -> None:
        self._schema = schema
        self._names: dict[str, str] = {}
        self._waiting: list[str] = []

    def run(self) -> dict[str, Any]:
        root = self._check(self._schema, "schema", 0)
        targets: dict[str, Any] = {}
        while self._waiting:
            pointer = self._waiting.pop()
            target = self._check(self._target(pointer), f"schema{pointer}", 0)
            targets[self._names[pointer]] = target
        return {**root, "$defs": targets}

    def _check(self, schema: object, place: str, depth: int) -> dict[str, Any]:
        if not isinstance(schema, dict):
            raise ConfigError(f"{place}: need an object, have {json.dumps(schema)[:80]}")
        if depth > MAX_SCHEMA_DEPTH:
            raise ConfigError(f"{place[:80]}: need at most {MAX_SCHEMA_DEPTH} levels, have more")
        keywords = {key: schema[key] for key in schema if key not in _ANNOTATIONS}
        if keywords.get("additionalProperties") is True and "properties" not in keywords:
            del keywords["additionalProperties"]
        form = next((name for name, _ in _FORMS if name in keywords), None)
        for name in keywords:
            if name != form and name not in dict(_FORMS).get(form or "", ()):
                raise ConfigError(
                    f"{place}: need keywords that are enforced, have {name!r}"
                    + (f" beside {form!r}" if name in dict(_FORMS) else "")
                    + "; leave it out, or send a GBNF grammar"
                )
        self._check_values(keywords, place)
        checked = dict(keywords)
        if "format" in schema and form == "type":
            checked["format"] = schema["format"]
        if "$ref" in keywords:
            checked["$ref"] = f"#/$defs/{self._name(keywords['$ref'], place)}"
        for name in ("anyOf", "oneOf", "prefixItems"):
            if name in keywords:
                checked[name] = [
                    self._check(entry, f"{place}.{name}[{index}]", depth + 1)
                    for index, entry in enumerate(keywords[name])
                ]
        if "properties" in keywords:
            checked["properties"] = {
                name: self._check(entry, f"{place}.{name}", depth + 1)
                for name, entry in keywords["properties"].items()
            }
        for name in ("items", "additionalProperties"):
            if name in keywords and not isinstance(keywords[name], bool):
                checked[name] = self._check(keywords[name], f"{place}.{name}", depth + 1)
        return checked

    def _check_values(self, keywords: dict[str, Any], place: str) -> None:
        def require(holds: bool, name: str, need: str) -> None:
            if not holds:
                have = json.dumps(keywords[name])[:80]
                raise ConfigError(f"{place}.{name}: need {need}, have {have}")

        if "type" in keywords:
            kind = keywords["type"]
            kinds = kind if isinstance(kind, list) and len(keywords) == 1 else [kind]
            known = bool(kinds) and all(isinstance(k, str) and k in _TYPES for k in kinds)
            require(known, "type", "a type, or several without other keywords (else use anyOf)")
        for name in ("anyOf", "oneOf", "enum", "prefixItems"):
            if name in keywords:
                filled = isinstance(keywords[name], list) and bool(keywords[name])
                require(filled, name, "a list with entries")
        for name in _LENGTHS:
            if name in keywords:
                length = keywords[name]
                whole = isinstance(length, int) and not isinstance(length, bool)
                require(whole and 0 <= length <= MAX_LENGTH, name, f"0 to {MAX_LENGTH}")
        properties = keywords.get("properties", {})
        if "properties" in keywords:
            named = isinstance(properties, dict) and "" not in properties
            require(named, "properties", "an object without an empty name")
        if "required" in keywords:
            known = isinstance(keywords["required"], list) and all(
                isinstance(name, str) and name in properties for name in keywords["required"]
            )
            require(known, "required", "names that are among the properties")
        for name in ("minLength", "maxLength"):
            if name in keywords:
                require(keywords.get("type") == "string", name, '"type": "string" beside it')

    def _name(self, pointer: object, place: str) -> str:
        """A name of our own: the converter takes targets with the same last part for one."""
        if not isinstance(pointer, str) or not pointer.startswith("#/"):
            raise ConfigError(
                f'{place}.$ref: need a place in the same schema ("#/..."), '
                f"have {json.dumps(pointer)[:80]}; nothing is fetched"
            )
        if pointer not in self._names:
            self._names[pointer] = f"hetero-ref-{len(self._names)}"
            self._waiting.append(pointer)
        return self._names[pointer]

    def _target(self, pointer: str) -> object:
        target = self._schema
        for part in pointer[2:].split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                raise ConfigError(f"$ref {pointer!r}: need its target in the schema, have none")
            target = target[name]
        return target


class _Converter(SchemaConverter):  # type: ignore[misc]
    def _format_literal(self, literal: str) -> str:
        """Quote a JSON text for GBNF. The base class leaves its backslashes as they are, so that a
        quote in a property's name ends the literal."""
        plain = json.dumps(json.loads(literal), ensure_ascii=False)
        escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
