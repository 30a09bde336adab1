"""Recipe files: YAML as people write it, or a `result.json`, which has its recipe in it."""

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml
from blake3 import blake3

from hetero.errors import ConfigError
from hetero.experiment.recipe.check import recipe_problems
from hetero.experiment.recipe.explain import problems
from hetero.experiment.recipe.inputs import found_inputs, without_inputs
from hetero.experiment.recipe.recipe import Recipe

# A long recipe has 10 kB. What is larger is something else.
_MAX_RECIPE_BYTES = 256 * 2**10
# It has every sample of every arm; a long night's run has some tens of megabytes.
_MAX_RESULT_BYTES = 512 * 2**20


class _Result(msgspec.Struct):
    """All that is read of a result."""

    recipe: msgspec.Raw


class _Loader(yaml.SafeLoader):
    """Refuses what YAML leaves to parsers: a key that stands twice, of which the last would count;
    aliases, with which a few lines can become gigabytes; and tags, with which text can become
    anything."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _at(event.start_mark, f"*{event.anchor}: need it written out, have an alias")
        if event.tag is not None:
            raise _at(event.start_mark, f"{event.tag}: need plain YAML, have a tag")
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # of a date, or a number of thousands of digits
            raise _at(node.start_mark, f"need YAML, have: {error}") from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _at(key.start_mark, "need text as a key, have a list or a mapping")
            if key.value in seen:
                raise _at(key.start_mark, f"{key.value}: need it once, have it again")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_recipe(path: Path) -> Recipe:
    """Raises: ConfigError with a line for each problem: the file, the field's path, and what it
    needs."""
    try:
        if path.suffix == ".json":
            return parse_recipe(found_inputs(_read_result(path), path.parent))
        return parse_recipe(_read_yaml(path))
    except ConfigError as error:
        lines = str(error).split("\n")
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None


def parse_recipe(fields: object) -> Recipe:
    """Checked, whatever it was read from.

    Raises: ConfigError with a line for each problem.
    """
    if not isinstance(fields, dict):
        raise ConfigError("need a recipe: keys and values, as docs/recipes.md shows")
    found = list(_not_plain(fields, "")) or list(problems(fields, Recipe))
    if not found:
        recipe: Recipe = msgspec.convert(fields, Recipe)
        found = list(recipe_problems(recipe))
    if found:
        raise ConfigError("\n".join(map(_one_line, found)))
    return recipe


def recipe_hash(recipe: Recipe) -> str:
    """blake3 of the recipe as JSON with sorted keys, every default written out and its inputs by
    what is in them: formatting, comments, the order of keys, where files lie and how many minutes a
    run took make no difference.

    Raises: ConfigError naming the input that can't be read.
    """
    asked = msgspec.structs.replace(without_inputs(recipe), minutes=None)
    return blake3(msgspec.json.encode(asked, order="sorted")).hexdigest()


def _read_yaml(path: Path) -> object:
    content = _read(path, _MAX_RECIPE_BYTES)
    try:
        text = content.decode()
        return yaml.load(text, _Loader)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"line {line}: need UTF-8 text, have {error.reason}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"line {line}: need YAML, have: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        what = " ".join(filter(None, (error.context, error.problem)))
        mark = error.problem_mark or error.context_mark
        raise (_at(mark, f"need YAML, have: {what}") if mark else ConfigError(what)) from None
    except RecursionError:
        raise ConfigError("need a recipe, have lists in lists without end") from None


def _read_result(path: Path) -> object:
    try:
        raw = msgspec.json.decode(_read(path, _MAX_RESULT_BYTES), type=_Result).recipe
        return msgspec.json.decode(raw)
    except msgspec.ValidationError:
        raise ConfigError("need a result with its `recipe`, have none in it") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"need JSON, have: {error}") from None


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        if path.is_dir():
            raise ConfigError("need a file, have a folder; a result's is result.json in it")
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"can't read it: {(error.strerror or str(error)).lower()}") from None
    if len(content) > max_bytes:
        raise ConfigError(f"need at most {max_bytes >> 10} KiB, have more: not a recipe")
    return content


def _at(mark: Any, message: str) -> ConfigError:
    return ConfigError(_one_line(f"line {mark.line + 1}: {message}"))


def _one_line(text: str) -> str:
    """What a file says must not command a terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _not_plain(value: object, place: str) -> Iterator[str]:
    """What JSON can't say, so that a result could not repeat it."""
    match value:
        case dict():
            for key, item in value.items():
                if isinstance(key, str):
                    inner = f"{place}.{key}" if place else key
                    yield from _not_plain(key, inner)
                    yield from _not_plain(item, inner)
                else:
                    have = str(key).lower()
                    yield f'{place or "recipe"}: need text as a key, have {have}: write "{have}"'
        case list():
            for index, item in enumerate(value):
                yield from _not_plain(item, f"{place}[{index}]")
        case str():
            if any("\ud800" <= each <= "\udfff" for each in value):
                yield f"{place}: need text, have half a character"
        case bool() | None:
            pass
        case int() | float():
            if not -(2**63) < value < 2**63:
                yield f"{place}: need a finite number of at most 63 bits"
        case _:
            yield f"{place}: need text, have a {type(value).__name__}: put it in quotes"
