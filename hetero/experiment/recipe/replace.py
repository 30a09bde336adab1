"""A recipe with a part of it replaced on the command line; its hash is then another's."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from blake3 import blake3

from hetero.errors import ConfigError
from hetero.experiment.recipe.load import parse_recipe
from hetero.experiment.recipe.recipe import Model, Quality, Recipe, Wire


def with_repetitions(recipe: Recipe, repetitions: int) -> Recipe:
    return _checked(msgspec.structs.replace(recipe, repetitions=repetitions))


def with_model(recipe: Recipe, file: Path, texts: Sequence[Path]) -> Recipe:
    """texts: of a kv-quality recipe, to see what becomes of the model's answers.

    Raises: ConfigError if this kind of recipe has none of these, or a file can't be read.
    """
    if isinstance(recipe, Wire):
        raise ConfigError(f"--model: need a recipe with a model, {recipe.name} has none")
    try:
        digest = blake3(max_threads=blake3.AUTO).update_mmap(file).hexdigest()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"{file}: can't read it: {reason}") from None
    model = Model(file=str(file), hash=digest)
    if isinstance(recipe, Quality):
        if not texts:
            raise ConfigError(
                f"--texts: need UTF-8 files for {file.name} to read, have none: --texts FILE"
            )
        return _checked(
            msgspec.structs.replace(recipe, model=model, texts=[str(text) for text in texts])
        )
    if texts:
        raise ConfigError(f"--texts: need a kv-quality recipe, have {recipe.name}")
    return _checked(msgspec.structs.replace(recipe, model=model))


def _checked(recipe: Recipe) -> Recipe:
    return parse_recipe(msgspec.to_builtins(recipe))
