"""A profile's file as commands leave it: written, and said so."""

from pathlib import Path
from typing import TYPE_CHECKING

from hetero.cli.output import print_progress

if TYPE_CHECKING:
    from hetero.profile.document import Profile


def save_profile(profile: "Profile", path: Path) -> None:
    """Raises: ConfigError if it can't be written."""
    from hetero.profile.document import write_profile

    said = "replaced" if path.exists() else "wrote"
    write_profile(profile, path)
    print_progress(f"{said} {path}")
