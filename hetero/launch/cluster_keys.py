"""Keys of a cluster that one process brings up: a pair for the router and for every node, and the
router's allow-list of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hetero.transport.allow_list import AllowList
from hetero.transport.keys import make_key, secret_file_of


@dataclass(frozen=True, kw_only=True)
class ClusterKeys:
    router_directory: Path
    router_key: str  # public
    _node_directory: Path

    def secret_file(self, node: str) -> Path:
        return secret_file_of(self._node_directory, node)


def make_cluster_keys(directory: Path, router: str, nodes: Sequence[str]) -> ClusterKeys:
    """In `directory`, which is made. Raises: ConfigError."""
    # Apart, because a router may be called as one of its nodes is.
    node_directory = directory / "nodes"
    router_key = make_key(directory, router).public
    allowed = AllowList(directory)
    for node in nodes:
        allowed.allow(node, make_key(node_directory, node).public)
    return ClusterKeys(
        router_directory=directory, router_key=router_key, _node_directory=node_directory
    )
