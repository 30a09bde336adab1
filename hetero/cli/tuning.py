"""What `hetero profile node` found best, for `hetero up` to start nodes with."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from hetero.cli.output import print_progress
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.profile.node_profile import NodeProfile, Role, RoleSettings

FOLDER = Path("profiles")


def found_settings(
    path: Path | None, model: Path, model_name: str, *, any_model: bool
) -> "dict[Role, RoleSettings]":
    """Of the profile at `path`; without one of this host's and model's profile, if it is there and
    fits. What is used, or why it is not, is said.

    Raises: ConfigError for a named profile that is unreadable, or of another model.
    """
    from hetero.model.fingerprint import fingerprint_model
    from hetero.profile.document import profile_name, read_node_profile, require_model

    named = path is not None
    path = path or FOLDER / profile_name(socket.gethostname(), model_name)
    if not named and not path.exists():
        return {}
    try:
        profile = read_node_profile(path)
        if not any_model:
            require_model(profile, fingerprint_model(model), path)
    except ConfigError as error:
        if named:
            raise
        print_progress(f"not used: {error}")
        return {}
    threads = ", ".join(
        f"{role} {found.threads} threads" for role, found in profile.settings.items()
    )
    print_progress(f"{path} found best for a node alone: {threads}")
    for line in _doubts(profile):
        print_progress(f"{path} may be stale: {line}; measure again with `hetero profile node`")
    return dict(profile.settings)


def _doubts(profile: "NodeProfile") -> list[str]:
    from importlib.metadata import version

    from hetero.profile.facts.state import settings_now, stale_because

    doubts = stale_because(profile.provenance.settings, settings_now())
    engine = "llama-cpp-python"
    now, then = version(engine), profile.provenance.versions.get(engine)
    if then is not None and then != now:
        doubts.append(f"{engine}: was {then}, is {now}")
    if profile.host != socket.gethostname():
        doubts.append(f"host: was {profile.host}, is {socket.gethostname()}")
    return doubts
