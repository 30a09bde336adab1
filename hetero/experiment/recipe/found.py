"""Where recipes lie, and which there are by name."""

from pathlib import Path

from hetero.errors import ConfigError
from hetero.near import near


def recipe_files(stands_in: Path) -> list[Path]:
    """Those in the folder `recipes` where the user stands, else those that hetero brings."""
    own = sorted((stands_in / "recipes").glob("*.yaml"))
    return own or sorted(_own_folder().glob("*.yaml"))


def find_recipe(name: str, stands_in: Path) -> Path:
    """A file as it is named; else the one called so.

    Raises: ConfigError with near names.
    """
    path = Path(name)
    if path.is_file() or path.suffix or len(path.parts) > 1:
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
