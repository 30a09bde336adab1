"""Where recipes lie, and which there are by name."""

from pathlib import Path

from hetero.errors import ConfigError
from hetero.experiment.near import near


def recipe_files(stands_in: Path) -> list[Path]:
    """Those of the project that the user stands in, else those that hetero brings."""
    for folder in (stands_in, *stands_in.parents):
        files = sorted((folder / "recipes").glob("*.yaml"))
        if files:
            return files
    return sorted(_own_folder().glob("*.yaml"))


def find_recipe(name: str, stands_in: Path) -> Path:
    """A file as it is named; else the one called so.

    Raises: ConfigError with near names.
    """
    path = Path(name)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    files = {each.stem: each for each in recipe_files(stands_in)}
    if name not in files:
        hint = near(name, files, "; `hetero recipes` lists them")
        raise ConfigError(f"recipe {name}: no such file, and no recipe called so{hint}")
    return files[name]


def _own_folder() -> Path:
    """A wheel has them beside this file, a checkout at its root."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"
