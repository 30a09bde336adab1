"""From a candidate and its settings to what each node is told."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hetero.errors import ConfigError
from hetero.experiment.deploy.emulated import emulated_prefill
from hetero.experiment.deploy.site import FRONT, Site
from hetero.experiment.figures import Say
from hetero.experiment.models import cache_folder
from hetero.experiment.recipe.arms import arms_of, settings_of
from hetero.experiment.recipe.recipe import Candidate, Emulated, Serving, Settings
from hetero.launch.cluster_keys import ClusterKeys
from hetero.launch.node_processes import checked_config
from hetero.profile.node_profile import Role
from hetero.serve.config import DecodeConfig, PrefillConfig, RouterConfig

logger = logging.getLogger(__name__)

ROUTER = "router"


@dataclass(frozen=True, kw_only=True)
class Node:
    name: str  # ROLE-HOST
    role: Role
    host: str
    emulated: Emulated | None = None


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """How nodes find their router."""

    control: str
    keys: ClusterKeys


def place_nodes(candidate: Candidate) -> list[Node]:
    """Raises: ConfigError for an engine on `front`."""
    nodes: list[Node] = []
    roles: dict[Role, list[str]] = {"prefill": candidate.prefill, "decode": candidate.decode}
    for role, hosts in roles.items():
        for host in hosts:
            check_engine_host(role, host)
            emulated = candidate.emulated.get(host) if role == "prefill" else None
            nodes.append(Node(name=f"{role}-{host}", role=role, host=host, emulated=emulated))
    return nodes


def check_engine_host(field: str, host: str) -> None:
    """A lab has no host of that name, this machine has hosts of any. Raises: ConfigError."""
    if host == FRONT:
        raise ConfigError(
            f"{field}: need a host of the cluster, have {FRONT!r}, which computes not"
        )


def kv_pair(kv: str) -> tuple[str, str]:
    """ "q8_0/q4_0" is a type for K and one for V."""
    k, slash, v = kv.partition("/")
    return k, v if slash else k


def router_config(
    site: Site, model: Path, keys: ClusterKeys, *, allow_emulated: bool
) -> RouterConfig:
    address = site.address(FRONT)
    return checked_config(
        RouterConfig,
        name=ROUTER,
        model=str(model),
        host=address,
        port=0,
        control=f"tcp://{address}:0",
        keys=str(keys.router_directory),
        allow_emulated=allow_emulated,
    )


def node_config(
    node: Node, site: Site, model: Path, settings: Settings, meeting: Meeting
) -> PrefillConfig | DecodeConfig:
    """Of an emulated node, what it replays is made first, unless `prepare_recordings` did.

    Raises: ConfigError, PlanError, EngineError
    """
    kv_k, kv_v = kv_pair(settings.kv)
    common = {
        "name": node.name,
        "model": str(model),
        "router": meeting.control,
        "router_key": meeting.keys.router_key,
        "key": str(meeting.keys.secret_file(node.name)),
        "kv_k": kv_k,
        "kv_v": kv_v,
        "context_tokens": settings.context_tokens,
        "chunk_tokens": settings.chunk_tokens,
        "threads": settings.threads,
        "seal": settings.seal,
    }
    if node.role == "decode":
        # Seen from a prefill host, it is at the end of the cable between the two.
        listen = f"tcp://{site.address(node.host)}:0"
        return checked_config(
            DecodeConfig,
            **common,
            listen=listen,
            slots=settings.slots,
            prefill_share=settings.prefill_share,
        )
    config = checked_config(
        PrefillConfig,
        **common,
        engine=settings.prefill_engine,
        connections=settings.connections,
    )
    if node.emulated is None:
        return config
    replayed = _replayed(node.emulated, settings, model, logger.info)
    return msgspec.structs.replace(config, **replayed)


def prepare_recordings(recipe: Serving, model: Path, say: Say) -> None:
    """For all arms with emulated hosts, so that none is made between two pilots: each takes
    minutes, and nearly all cores.

    Raises: ConfigError, PlanError, EngineError
    """
    prepared = set()
    for arm in arms_of(recipe):
        settings = settings_of(recipe, arm)
        assert isinstance(settings, Settings)
        for device in recipe.candidates[str(arm["candidate"])].emulated.values():
            kind = (device.preset, settings.kv, settings.context_tokens)
            if kind not in prepared:
                prepared.add(kind)
                _replayed(device, settings, model, say)


def _replayed(device: Emulated, settings: Settings, model: Path, say: Say) -> dict[str, Any]:
    kv_k, kv_v = kv_pair(settings.kv)
    return emulated_prefill(
        model,
        device.preset,
        kv_k=kv_k,
        kv_v=kv_v,
        context_tokens=settings.context_tokens,
        cache=cache_folder(),
        say=say,
    )
