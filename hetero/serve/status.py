"""What `/status` says of a cluster: a row for the router, and one for each node it has heard of."""

import os
import socket
from typing import Any

from hetero import __version__
from hetero.messages import NodeInfo, NodeLoad


def router_row(name: str, *, is_ready: bool, num_requests: int) -> dict[str, Any]:
    return {
        "name": name,
        "role": "router",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "health": "ready" if is_ready else "starting",
        "control": "curve",
        "kv_bytes_held": 0,
        "active": num_requests,
        "queued": 0,
        "versions": {"hetero": __version__},
    }


def node_row(info: NodeInfo, load: NodeLoad, *, is_lost: bool) -> dict[str, Any]:
    return {
        "name": info.name,
        "role": info.role,
        "host": info.host,
        "pid": info.pid,
        "health": "lost" if is_lost else "ready",
        "control": "curve",
        "engine": info.engine,
        "emulated": info.emulated or None,
        "seal": info.seal,
        "transport": info.transport,
        "kv_bytes_held": load.kv_bytes_held,
        "active": load.active,
        "queued": load.queued,
        "versions": info.versions,
    }
