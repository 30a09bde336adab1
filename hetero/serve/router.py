"""The router: requests in, routes chosen, nodes told, tokens out. One asyncio loop, no engine.

Nodes dial in and say who they are. What a request holds on a node is renewed here while it lasts;
when a client goes, or a node fails, the others are told to let go.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import zmq
import zmq.asyncio

from hetero.errors import HeteroError, NodeLostError, PeerError
from hetero.messages import (
    Cancel,
    Failed,
    FirstTokens,
    Generated,
    Goodbye,
    Heartbeat,
    Hello,
    Joined,
    Message,
    ModelFingerprint,
    NodeInfo,
    NodeLoad,
    Renew,
    Reserved,
    Sent,
    Token,
    ToRouter,
    Unwelcome,
    Welcome,
    WhoAreYou,
    decode_to_router,
    encode,
    failed,
)
from hetero.routing.route import NodeView, choose_route
from hetero.serve.admission import objection
from hetero.serve.control import HEARTBEAT_S
from hetero.serve.flight import Flight, FromNode, Heard
from hetero.serve.leases import LEASE_S
from hetero.serve.metrics import RouterMetrics
from hetero.serve.service import ANSWERED, Request, ServedModel, Update
from hetero.serve.status import node_row, router_row
from hetero.transport.control_socket import (
    ControlListener,
    Peer,
    RouterKeys,
    split_received,
)
from hetero.workload.traffic_recorder import TrafficRecorder

logger = logging.getLogger(__name__)

# Heartbeats come every second; a node that is silent for this long is taken for dead. Long enough
# for a node whose cores are all computing.
LOST_AFTER_S = 10 * HEARTBEAT_S

_RENEW_EVERY_S = LEASE_S / 6

# Nodes send tokens and figures: a step of 256 sequences with log-probabilities is 100 kB. It is
# also what a stranger can make the router hold, until the time for his handshake is over.
_MAX_FROM_NODE_BYTES = 4 * 2**20

# How long a finished answer waits for the prefill node's report on the transfer.
_REPORT_WAIT_S = 1.0


@dataclass(kw_only=True)
class _Node:
    info: NodeInfo
    peer: Peer  # whom its hello came from: only that is heard as this node
    load: NodeLoad
    last_seen: float
    is_lost: bool = False
    flights: set[str] = field(default_factory=set)  # requests it works for
    abandoned: set[str] = field(default_factory=set)  # those it worked for when it was lost


class Router:
    """A `Service` over the nodes that have dialled in."""

    def __init__(
        self,
        name: str,
        model: ServedModel,
        fingerprint: ModelFingerprint,
        keys: RouterKeys,
        *,
        allow_emulated: bool = False,
        recorder: TrafficRecorder | None = None,
    ) -> None:
        self.metrics_registry = RouterMetrics(self._loads)
        self._name = name
        self._model = model
        self._fingerprint = fingerprint
        self._nodes: dict[str, _Node] = {}
        self._flights: dict[str, tuple[Flight, asyncio.Queue[Heard]]] = {}
        self._outbox: asyncio.Queue[tuple[Peer, Message]] = asyncio.Queue()
        self._keys = keys
        self._allow_emulated = allow_emulated
        self._recorder = recorder
        self._listener: ControlListener | None = None

    def listen(self, address: str) -> str:
        """Bind the control socket; the address nodes dial."""
        self._listener = ControlListener(
            address, self._keys, _MAX_FROM_NODE_BYTES, zmq.asyncio.Socket
        )
        return self._listener.address

    async def run(self) -> None:
        """Talk with the nodes until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._hear())
                tasks.create_task(self._speak())
                tasks.create_task(self._renew())
                tasks.create_task(self._watch())
        finally:
            if self._listener is not None:
                self._listener.close()

    @property
    def model(self) -> ServedModel:
        ready = [n.info for n in self._nodes.values() if not n.is_lost and n.info.role == "decode"]
        return replace(
            self._model, context_tokens=max((info.context_tokens for info in ready), default=0)
        )

    async def generate(self, request: Request) -> AsyncGenerator[Update, None]:
        route = choose_route(
            num_prompt_tokens=len(request.prompt),
            max_tokens=request.max_tokens,
            num_choices=request.num_choices,
            wish=request.route,
            nodes=[
                NodeView(info=node.info, num_requests=len(node.flights))
                for node in self._nodes.values()
                if not node.is_lost
            ],
        )
        reader = self._nodes[route.prefill_node or route.decode_node or ""].info
        flight = Flight(request, route, reader, self._model.vocab.end_tokens)
        inbox: asyncio.Queue[Heard] = asyncio.Queue()
        self._flights[request.request_id] = (flight, inbox)
        self.metrics_registry.prompt_tokens.inc(len(request.prompt))
        outcome = "cancelled"
        arrived_s = time.perf_counter()
        if self._recorder is not None:
            self._recorder.arrived(arrived_s)
        try:
            self._order(flight, *flight.opening())
            async for update in self._updates(flight, inbox):
                yield update
            outcome = "ok"
        except asyncio.CancelledError as cancelled:
            if ANSWERED in cancelled.args:
                outcome = "ok"
            raise
        except HeteroError:
            outcome = "failed"
            raise
        finally:
            self.metrics_registry.requests.labels(flight.metrics_route, outcome).inc()
            self._land(flight)
            if self._recorder is not None:
                self._recorder.add(arrived_s, request.prompt, flight.num_tokens)

    def status(self) -> dict[str, Any]:
        is_ready = bool(self.model.context_tokens)
        router = router_row(self._name, is_ready=is_ready, num_requests=len(self._flights))
        nodes = [
            node_row(node.info, node.load, is_lost=node.is_lost) for node in self._nodes.values()
        ]
        return {"cluster": self._name, "nodes": [router, *nodes]}

    def metrics(self) -> str:
        return self.metrics_registry.text()

    async def _updates(
        self, flight: Flight, inbox: "asyncio.Queue[Heard]"
    ) -> AsyncGenerator[Update, None]:
        metrics, kind = self.metrics_registry, flight.metrics_route
        last_token_at: dict[int, float] = {}
        yield flight.summary()  # for whoever stops listening at the first token
        while not flight.has_ended:
            heard = await inbox.get()
            message = heard.message
            if isinstance(message, Reserved):
                self._order(flight, *flight.reply(message))
                continue
            for update in flight.take(heard):
                if isinstance(update, Token):
                    now = time.perf_counter()
                    if update.choice in last_token_at:
                        metrics.itl.labels(kind).observe(now - last_token_at[update.choice])
                    elif not last_token_at:
                        metrics.ttft.labels(kind).observe(flight.timings.ttft_s)
                    last_token_at[update.choice] = now
                    metrics.generated_tokens.inc()
                yield update
            self._release_idle(flight)
            if isinstance(message, FirstTokens | Joined | Sent):
                yield flight.summary()
            if isinstance(message, Joined) and flight.timings.exposed_s:
                metrics.exposed.observe(flight.timings.exposed_s)
        # The answer is whole: nothing that happens to the report may spoil it.
        with suppress(TimeoutError, HeteroError):
            async with asyncio.timeout(_REPORT_WAIT_S):
                while flight.awaits_transfer_report:
                    for _ in flight.take(await inbox.get()):
                        pass
        yield flight.summary()

    def _land(self, flight: Flight) -> None:
        """The request is over here: nodes that still work for it are told to stop."""
        request_id = flight.request.request_id
        del self._flights[request_id]
        for name in flight.busy_nodes:
            self._say(name, Cancel(request_id=request_id))
        for node in self._nodes.values():
            node.flights.discard(request_id)

    def _order(self, flight: Flight, name: str, message: Message) -> None:
        """Give a node its part of a request; from here on the request is renewed there."""
        node = self._nodes[name]
        if node.is_lost:
            raise NodeLostError(f"node {name} was lost before it began; send the request again")
        node.flights.add(flight.request.request_id)
        self._say(name, message)

    def _release_idle(self, flight: Flight) -> None:
        """A node that has said its last word on a request is free of it, and may come and go."""
        for name in (flight.route.decode_node, flight.route.prefill_node):
            if name is not None and name not in flight.busy_nodes:
                self._nodes[name].flights.discard(flight.request.request_id)

    def _say(self, node: str, message: Message) -> None:
        self._outbox.put_nowait((self._nodes[node].peer, message))

    async def _speak(self) -> None:
        assert self._listener is not None
        while True:
            peer, message = await self._outbox.get()
            if self._is_allowed(peer):
                await self._listener.socket.send_multipart([peer.route, encode(message)])

    async def _hear(self) -> None:
        assert self._listener is not None
        while True:
            peer, parts = split_received(await self._listener.socket.recv_multipart(copy=False))
            if not self._is_allowed(peer):
                continue
            try:
                if len(parts) != 1:
                    raise PeerError(f"message: need 1 part, have {len(parts)}")
                self._take(peer, decode_to_router(parts[0]))
            except PeerError as error:
                names = ", ".join(self._keys.allowed.names_of(peer.key))
                logger.warning("control message from %s dropped: %s", names, error)

    def _is_allowed(self, peer: Peer) -> bool:
        """ZeroMQ asks at the handshake and can't cut one connection later: so we ask at every
        message, and from the moment a key is revoked nothing of it is heard or answered."""
        if peer.key in self._keys.allowed:
            return True
        self._lose_revoked()
        return False

    def _lose_revoked(self) -> None:
        for node in self._nodes.values():
            if not node.is_lost and not self._keys.allowed.permits(node.info.name, node.peer.key):
                self._lose(node, "was revoked")

    def _take(self, peer: Peer, message: ToRouter) -> None:
        if isinstance(message, Hello):
            self._welcome(peer, message)
            return
        node = next((node for node in self._nodes.values() if node.peer == peer), None)
        if node is None or node.is_lost:
            self._outbox.put_nowait((peer, WhoAreYou()))
            return
        name = node.info.name
        node.last_seen = time.monotonic()
        match message:
            case Heartbeat():
                node.load = message.load
            case Goodbye():
                self._lose(node, "was stopped")
            case Generated():
                for token in message.tokens:
                    self._deliver(name, token.request_id, token)
            case _:
                self._deliver(name, message.request_id, message)

    def _deliver(self, name: str, request_id: str, message: FromNode) -> None:
        """To the request's flight, if that node is one of its two; late words are dropped."""
        flight, inbox = self._flights.get(request_id, (None, None))
        if flight is None or inbox is None:
            return
        if name not in (flight.route.decode_node, flight.route.prefill_node):
            raise PeerError(
                f"request {request_id}: need word from its own nodes, have it from {name}"
            )
        if isinstance(message, Failed) and not flight.needs(name):
            flight.busy_nodes.discard(name)
        elif name in flight.busy_nodes:
            inbox.put_nowait(Heard(name, message))

    def _welcome(self, peer: Peer, message: Hello) -> None:
        info = message.info
        name = info.name
        self._lose_revoked()  # a name may have been given to another key
        known = self._nodes.get(name)
        refused = self._objection(peer, info, known)
        if refused:
            logger.error("node %s on %s refused: %s", name, info.host, refused)
            self._outbox.put_nowait((peer, Unwelcome(reason=refused)))
            return
        is_the_same = known is not None and known.info.instance == info.instance
        if known is not None and not known.is_lost and not is_the_same:
            self._lose(known, "was restarted")
        self._nodes[name] = _Node(
            info=info,
            peer=peer,
            load=message.load,
            last_seen=time.monotonic(),
            flights=known.flights if known is not None and is_the_same else set(),
        )
        self._say(name, Welcome())
        if known is not None and is_the_same:  # it was silent, and works on
            for request_id in known.abandoned:
                self._say(name, Cancel(request_id=request_id))
        if info.emulated:
            logger.warning("node %s is EMULATED: it stands for a %s", name, info.emulated)
        logger.info("node %s (%s) is here", name, info.role)

    def _objection(self, peer: Peer, info: NodeInfo, known: _Node | None) -> str:
        """Why a node may not serve; empty if it may."""
        if not self._keys.allowed.permits(info.name, peer.key):
            names = " or ".join(self._keys.allowed.names_of(peer.key))
            return f"name {info.name}: need the name that this node's key is allowed for, {names}"
        if known is not None and not known.is_lost and known.info.host != info.host:
            return f"name {info.name}: in use by a node on {known.info.host}; choose another"
        return objection(
            info, self._model.name, self._fingerprint, allow_emulated=self._allow_emulated
        )

    def _lose(self, node: _Node, why: str) -> None:
        """Fail what the node was working on. It hears of it when it comes back, or finds out when
        its leases run out."""
        logger.error("node %s %s", node.info.name, why)
        node.is_lost = True
        for request_id in list(node.flights):
            flight, inbox = self._flights[request_id]
            if not flight.needs(node.info.name):
                flight.busy_nodes.discard(node.info.name)
                continue
            lost = NodeLostError(f"node {node.info.name} {why}; send the request again")
            inbox.put_nowait(Heard(node.info.name, failed(request_id, lost)))
        node.abandoned = set(node.flights)
        node.flights.clear()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_EVERY_S)
            for name, node in self._nodes.items():
                if node.flights and not node.is_lost:
                    self._say(name, Renew(request_ids=tuple(node.flights)))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._lose_revoked()
            deadline = time.monotonic() - LOST_AFTER_S
            for node in self._nodes.values():
                if not node.is_lost and node.last_seen < deadline:
                    self._lose(node, f"was silent for {LOST_AFTER_S:g} s")

    def _loads(self) -> dict[str, NodeLoad]:
        return {name: node.load for name, node in self._nodes.items() if not node.is_lost}
