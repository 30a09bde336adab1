"""What `hetero profile node` found best, for `hetero up` to start nodes with."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hetero.cli.output import print_progress
from hetero.errors import ConfigError

if TYPE_CHECKING:
    from hetero.model.spec import ModelSpec
    from hetero.profile.node_profile import NodeProfile, Role, RoleSettings

FOLDER = Path("profiles")


def found_settings(
    path: Path | None, model: Path, spec: "ModelSpec", *, any_model: bool
) -> "dict[Role, RoleSettings]":
    """Of the profile at `path`; without one of this host's and model's profile, if it is there and
    fits. spec: the model's. What is used, or why it is not, is said.

    Raises: ConfigError for a named profile that is unreadable, of another model, or of CPUs or
    interleaved memory that are not to be had here.
    """
    from hetero.model.fingerprint import fingerprint_model
    from hetero.profile.document import profile_name, read_node_profile, require_model

    named = path is not None
    path = path or FOLDER / profile_name(socket.gethostname(), spec.name, spec.quantization)
    if not named and not path.exists():
        return {}
    try:
        profile = read_node_profile(path)
        if not any_model:
            require_model(profile, fingerprint_model(model), path)
        _require_cpus(profile.settings, path)
        _require_interleaving(profile.settings, path)
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


def shared_cpus(settings: "Mapping[Role, RoleSettings]") -> list[list[int]]:
    """CPUs of each NUMA node, for several nodes of a cluster to share. None where no profile found
    one NUMA node best for an engine."""
    from hetero.profile.facts.collect import collect_facts
    from hetero.profile.node.cores import engine_cpus

    if all(found.numa_node is None for found in settings.values()):
        return []
    return list(engine_cpus(collect_facts()).values())


def _require_cpus(settings: "Mapping[Role, RoleSettings]", path: Path) -> None:
    """Raises: ConfigError if this process may not use those that were found best."""
    has_affinity = hasattr(os, "sched_getaffinity")
    usable = os.sched_getaffinity(0) if has_affinity else set(range(os.cpu_count() or 1))
    for role, found in settings.items():
        missing = set(found.cpus) - usable
        if missing or found.threads > len(usable):
            need = f"CPU {min(missing)}" if missing else f"{found.threads} CPUs"
            raise ConfigError(
                f"{path}: {role}: need {need}, which it found best, have {len(usable)} CPUs that "
                "this process may use; measure again with `hetero profile node`"
            )


def _require_interleaving(settings: "Mapping[Role, RoleSettings]", path: Path) -> None:
    """Raises: ConfigError if memory was found best interleaved, and this process can't have it."""
    from hetero.machine.interleaving import can_interleave

    if any(found.interleave for found in settings.values()) and not can_interleave():
        raise ConfigError(
            f"{path}: need the right to interleave memory, which it found best, have none; give a "
            "container SYS_NICE, or measure again with `hetero profile node`"
        )


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
