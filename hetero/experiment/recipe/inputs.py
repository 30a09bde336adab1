"""Files that a recipe names besides its model: traces of its loads, and texts to read.

A result keeps them beside itself, in `inputs/`, and its recipe names them there: its folder is
enough to run it again. A recipe's hash is of what is in them, wherever they lie.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from hetero.errors import ConfigError
from hetero.experiment.recipe.recipe import Load, Quality, Recipe, Serving
from hetero.workload.named import written_out

INPUTS = "inputs"


def input_files(recipe: Recipe) -> list[Path]:
    found: list[Path] = []

    def note(name: str) -> str:
        found.append(Path(name))
        return name

    _renamed(recipe, note)
    return list(dict.fromkeys(found))


def input_problems(recipe: Recipe) -> Iterator[str]:
    names: dict[str, Path] = {}
    for path in input_files(recipe):
        if not path.is_file():
            yield f"{path}: need a file, have none there"
        elif (other := names.setdefault(path.name, path)) != path:
            yield f"{path}: need files of different names, to keep both in a result, have {other}"


def without_inputs(recipe: Recipe) -> Recipe:
    """What is in them instead of where they lie: for a hash.

    Raises: ConfigError naming the file that can't be read.
    """
    return _renamed(recipe, lambda name: f"{Path(name).name} {_hash(Path(name))}")


def keep_inputs(recipe: Recipe, folder: Path) -> Recipe:
    """Copies them into a result's folder; and the recipe as that result has it.

    Raises: ConfigError naming the file that can't be copied.
    """
    for path in input_files(recipe):
        try:
            (folder / INPUTS).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / INPUTS / path.name)
        except OSError as error:
            raise ConfigError(
                f"{path}: can't copy it to {folder / INPUTS}: {error.strerror or error}"
            ) from None
    return _renamed(recipe, lambda name: f"{INPUTS}/{Path(name).name}")


def found_inputs(fields: Any, folder: Path) -> Any:
    """A result's recipe, not checked yet, with its inputs where the result in `folder` keeps
    them."""
    if not isinstance(fields, dict):
        return fields
    found = dict(fields)
    for key in ("load", "beside"):
        load = found.get(key)
        if isinstance(load, dict) and isinstance(load.get("trace"), str):
            found[key] = load | {"trace": str(folder / load["trace"])}
    texts = found.get("texts")
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        found["texts"] = [str(folder / text) for text in texts]
    return found


def _renamed(recipe: Recipe, rename: Callable[[str], str]) -> Recipe:
    if isinstance(recipe, Quality):
        return msgspec.structs.replace(recipe, texts=[rename(text) for text in recipe.texts])
    if isinstance(recipe, Serving):
        beside = None if recipe.beside is None else _with_trace(recipe.beside, rename)
        return msgspec.structs.replace(recipe, load=_with_trace(recipe.load, rename), beside=beside)
    return recipe


def _with_trace(load: Load, rename: Callable[[str], str]) -> Load:
    keys = written_out(load)
    if isinstance(keys, str) or "trace" not in keys:
        return keys
    return keys | {"trace": rename(str(keys["trace"]))}


def _hash(path: Path) -> str:
    try:
        return blake3(path.read_bytes()).hexdigest()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{path}: can't read it: {reason}") from None
