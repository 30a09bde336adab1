"""Which nodes serve a request: a pure function of the request and what the router knows of nodes.

The rule, until measured profiles replace it: a prompt is read elsewhere (*split*) when a prefill
node could hand its cache over and the decode node would need more than one chunk to read it
itself; shorter prompts are read where they are decoded (*local*). Among equals the least loaded
node is taken, the first by name if several are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hetero.errors import ConfigError, PlanError
from hetero.messages import NodeInfo
from hetero.tickets import STRENGTH

Wish = Literal["auto", "local", "split"]


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """A ready node, and how many of this router's requests it is busy with."""

    info: NodeInfo
    num_requests: int


@dataclass(frozen=True, kw_only=True)
class Route:
    """Where a request goes, and why. Without a prefill node the decode node reads the prompt;
    without a decode node the request ends at its first token, and no KV moves."""

    kind: Literal["local", "split"]
    decode_node: str | None
    prefill_node: str | None
    reason: str


def choose_route(
    *,
    num_prompt_tokens: int,
    max_tokens: int,
    num_choices: int,
    wish: Wish,
    nodes: Sequence[NodeView],
) -> Route:
    """The route of one request.

    Raises: PlanError while no node is ready for it, ConfigError if none ever will be.
    """
    decode = _decode_node(num_prompt_tokens, max_tokens, num_choices, nodes)
    if wish == "local":
        return _local(decode, "asked for")
    prefill, why_not = _prefill_node(num_prompt_tokens, decode, nodes)
    if prefill is None:
        if wish == "split":
            raise PlanError(f"split route: {why_not}")
        return _local(decode, why_not)
    chunk = decode.info.chunk_tokens
    if wish == "auto" and num_prompt_tokens <= chunk:
        return _local(decode, f"{num_prompt_tokens} prompt tokens fit a chunk of {chunk}")
    reason = (
        "asked for"
        if wish == "split"
        else f"{num_prompt_tokens} prompt tokens are more than a chunk of {chunk}"
    )
    needs_decode = max_tokens > 1
    return Route(
        kind="split",
        decode_node=decode.info.name if needs_decode else None,
        prefill_node=prefill.info.name,
        reason=reason,
    )


def _local(decode: NodeView, reason: str) -> Route:
    return Route(kind="local", decode_node=decode.info.name, prefill_node=None, reason=reason)


def _decode_node(
    num_prompt_tokens: int, max_tokens: int, num_choices: int, nodes: Sequence[NodeView]
) -> NodeView:
    ready = [node for node in nodes if node.info.role == "decode"]
    if not ready:
        raise PlanError("decode: need a ready node, have none; see `hetero status`")
    need = num_prompt_tokens + max_tokens
    fitting = [
        node
        for node in ready
        if node.info.context_tokens >= need and node.info.num_slots >= num_choices
    ]
    if not fitting:
        context = max(node.info.context_tokens for node in ready)
        slots = max(node.info.num_slots for node in ready)
        raise ConfigError(
            f"request: need {need} tokens of context and {num_choices} slots (one per choice), "
            f"have at most {context} and {slots}"
        )
    return min(fitting, key=lambda node: (node.num_requests / node.info.num_slots, node.info.name))


def _prefill_node(
    num_prompt_tokens: int, decode: NodeView, nodes: Sequence[NodeView]
) -> tuple[NodeView | None, str]:
    """The least loaded prefill node that may hand over to `decode`, or why there is none."""
    ready = [node for node in nodes if node.info.role == "prefill"]
    if not ready:
        return None, "no prefill node is ready"
    fitting = [node for node in ready if node.info.context_tokens >= num_prompt_tokens]
    if not fitting:
        have = max(node.info.context_tokens for node in ready)
        return None, f"need a prefill node for {num_prompt_tokens} tokens, have at most {have}"
    obstacles = {node.info.name: why_not_pair(decode.info, node.info) for node in fitting}
    paired = [node for node in fitting if not obstacles[node.info.name]]
    if not paired:
        first = fitting[0].info.name
        return None, f"{decode.info.name} and {first} must not pair: {obstacles[first]}"
    return min(paired, key=lambda node: (node.num_requests, node.info.name)), ""


def why_not_pair(decode: NodeInfo, prefill: NodeInfo) -> str:
    """What in two nodes' files keeps one from handing over to the other; empty if nothing does."""
    found = decode.fingerprint.differences(prefill.fingerprint)
    if STRENGTH.index(decode.seal) < STRENGTH.index(prefill.seal):
        found.append(f"seal: {decode.seal} here, {prefill.seal} there")
    through_nixl = [node for node in (decode, prefill) if node.transport != "tcp"]
    if decode.transport != prefill.transport and not all(one.allow_tcp for one in through_nixl):
        found.append(f"transport: {decode.transport} here, {prefill.transport} there")
    return "; ".join(found)
