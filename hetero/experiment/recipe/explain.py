"""Why a value can't become a struct: every place in it that is wrong, by its path and in words.

`msgspec.convert` stops at the first, and writes keys of mappings as `[...]`.
"""

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from hetero.near import near

_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
}


def problems(value: object, kind: Any, place: str = "") -> Iterator[str]:
    """None if `msgspec.convert(value, kind)` takes it. place: the path of `value`."""
    found = list(_inner_problems(value, kind, place))
    if found:
        yield from found
        return
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        need = _literals(kind) or _description(kind) or _need(str(error))
        hint = "; {} is one of defaults" if value is None and need == "a mapping" else ""
        yield f"{place}: need {need}, have {_have(value)}{hint}"


def _inner_problems(value: object, kind: Any, place: str) -> Iterator[str]:
    for member in _members(kind):
        arguments = get_args(member)
        if isinstance(value, list) and get_origin(member) is list:
            for index, item in enumerate(value):
                yield from problems(item, arguments[0], f"{place}[{index}]")
        elif isinstance(value, dict) and get_origin(member) is dict:
            for key, item in value.items():
                yield from problems(key, arguments[0], _join(place, key))
                yield from problems(item, arguments[1], _join(place, key))
    structs = [each for each in _members(kind) if hasattr(each, "__struct_fields__")]
    if isinstance(value, dict) and structs:
        yield from _struct_problems(value, structs, place)


def _struct_problems(value: dict[str, Any], structs: list[Any], place: str) -> Iterator[str]:
    tag_field = structs[0].__struct_config__.tag_field
    known = {each.__struct_config__.tag: each for each in structs}
    if tag_field is None:
        kind = structs[0]
    elif isinstance(value.get(tag_field), str) and value[tag_field] in known:
        kind = known[value[tag_field]]
    else:
        have = _have(value[tag_field]) if tag_field in value else "none"
        yield f"{_join(place, tag_field)}: need one of {', '.join(known)}, have {have}"
        return
    fields = {each.encode_name: each for each in msgspec.structs.fields(kind)}
    for key, item in value.items():
        if key in fields:
            yield from problems(item, fields[key].type, _join(place, key))
        elif key != tag_field:
            what = "setting" if kind.__name__.endswith("Settings") else "key"
            yield f"{_join(place, key)}: no such {what}{near(key, fields)}"
    for name, field in fields.items():
        if field.required and name not in value:
            yield f"{_join(place, name)}: need it, have none"


def _members(kind: Any) -> list[Any]:
    """Of a union, or the type itself; what is annotated to it is left out."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [member for each in get_args(kind) for member in _members(each)]
    return [kind]


def _literals(kind: Any) -> str:
    choices = [
        choice
        for each in _members(kind)
        if get_origin(each) is Literal
        for choice in get_args(each)
    ]
    return f"one of {', '.join(choices)}" if choices else ""


def _description(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return next((text for each in get_args(kind) if (text := _description(each))), "")
    metas = [each for each in get_args(kind)[1:] if isinstance(each, msgspec.Meta)]
    return next((meta.description for meta in metas if meta.description), "")


def _need(message: str) -> str:
    """From msgspec's: "Expected `int | null` >= 1", "Expected `str`, got `int`"."""
    need = message.removeprefix("Expected ").partition(", got ")[0]
    need = re.sub("`([^`]*)`", lambda match: _type_words(match[1]), need)
    return need.replace(" of length >= 1", ", not an empty one")


def _type_words(names: str) -> str:
    return " or ".join(_WORDS.get(name, name) for name in names.split(" | "))


def _have(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case list() | dict() if not value:
            return "an empty one"
        case list():
            return "a list"
        case dict():
            return "a mapping"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
