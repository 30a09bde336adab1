"""The router over real sockets; the test is its nodes, honest or not."""

import asyncio
from contextlib import asynccontextmanager

import msgspec
import pytest
import zmq.asyncio
from curve_sockets import ScratchKeys, node_socket
from test_route import fingerprint, node
from tiny_models import write_tiny_model

import hetero.serve.router as router_module
from hetero.errors import EngineError, NodeLostError, PlanError
from hetero.llama.model import Model
from hetero.messages import (
    Cancel,
    Failed,
    Finished,
    FirstTokens,
    Generate,
    Generated,
    Goodbye,
    Heartbeat,
    Hello,
    Joined,
    NodeLoad,
    Prefill,
    Renew,
    Reserve,
    Reserved,
    Sampling,
    Sent,
    Ticket,
    Token,
    Unwelcome,
    Welcome,
    WhoAreYou,
    decode_to_node,
    encode,
)
from hetero.serve.router import Router
from hetero.serve.service import Request, ServedModel, Summary
from hetero.transport.control_socket import RouterContact

WAIT_S = 20
TICKET = Ticket(
    ticket_id="r.1", address="tcp://x:1", num_tokens=3, lease_s=30, key=bytes(32), seal="aead"
)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "m.gguf")
    with Model(path, vocab_only=True) as model:
        yield model.vocab


class ScriptedNode:
    """A node's line to the router, driven by hand."""

    def __init__(self, cluster, info, key=None):
        self.info = info
        self.key = key or cluster.keys.node(info.name)
        contact = RouterContact(
            address=cluster.address, router_key=cluster.keys.router_key, key=self.key
        )
        self.socket = node_socket(cluster.context, contact, f"{info.name} {info.instance}")
        cluster.nodes.append(self)

    async def say(self, message):
        await self.socket.send(message if isinstance(message, bytes) else encode(message))

    async def hello(self):
        await self.say(Hello(info=self.info, load=NodeLoad()))

    async def hear(self, kind):
        async with asyncio.timeout(WAIT_S):
            while True:
                message = decode_to_node(await self.socket.recv())
                if isinstance(message, kind):
                    return message


class Cluster:
    def __init__(self, router, context, address, keys):
        self.router, self.context, self.address, self.keys = router, context, address, keys
        self.nodes = []

    async def add(self, name, role, **options):
        scripted = ScriptedNode(self, node(name, role, **options).info)
        await scripted.hello()
        await self.until(lambda: name in self.health())
        return scripted

    def health(self):
        return {n["name"]: n["health"] for n in self.router.status()["nodes"][1:]}

    async def until(self, condition):
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.005)

    def generate(self, **options):
        defaults = {
            "request_id": "r",
            "prompt": (7, 8, 9),
            "max_tokens": 5,
            "num_choices": 1,
            "sampling": Sampling(),
            "route": "split",
        }
        return self.router.generate(Request(**defaults | options))


@asynccontextmanager
async def cluster(vocab, **options):
    model = ServedModel(name="m", vocab=vocab, chat_template=None, context_tokens=0)
    keys = ScratchKeys()
    router = Router("test", model, fingerprint().model, keys.router(), **options)
    address = router.listen("tcp://127.0.0.1:0")
    running = asyncio.create_task(router.run())
    context = zmq.asyncio.Context()
    made = Cluster(router, context, address, keys)
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.wait({running})
        for scripted in made.nodes:
            scripted.socket.close()
        context.term()
        keys.close()


def run(scenario, vocab, **options):
    async def main():
        async with cluster(vocab, **options) as made:
            await scenario(made)

    asyncio.run(main())


def token(value, index):
    return Token("r", 0, index, value)


def test_a_split_request_goes_through_both_nodes(vocab):
    async def scenario(made):
        prefill, decode = await made.add("p", "prefill"), await made.add("d", "decode")
        updates = []

        async def client():
            async for update in made.generate():
                updates.append(update)

        asking = asyncio.create_task(client())
        reserve = await decode.hear(Reserve)
        assert (reserve.num_prompt_tokens, reserve.max_tokens) == (3, 5)
        await decode.say(Reserved(request_id="r", ticket=TICKET))
        order = await prefill.hear(Prefill)
        assert (order.prompt, order.ticket) == ((7, 8, 9), TICKET)
        await prefill.say(
            FirstTokens(
                request_id="r", tokens=(token(5, 0),), prefill_s=1, pack_s=0.5, num_chunks=1
            )
        )
        await prefill.say(Sent(request_id="r", kv_bytes=9, wire_s=0.1, last_group_s=0.1))
        await decode.say(Generated(tokens=(token(5, 0),)))
        await decode.say(Joined(request_id="r", prefill_s=0, restore_s=0.25))
        await decode.say(Generated(tokens=(token(6, 1),)))
        await decode.say(Finished(request_id="r", choice=0, reason="stop"))
        await asking
        assert [u for u in updates if isinstance(u, Token)] == [token(5, 0), token(6, 1)]
        assert isinstance(updates[-1], Summary)
        assert updates[-1].kv_bytes == 9
        assert updates[-1].route.prefill_node == "p"
        assert 'hetero_requests_total{outcome="ok",route="split"} 1.0' in made.router.metrics()

    run(scenario, vocab)


@pytest.mark.parametrize("end", ["it fails", "it was restarted"])
def test_a_prefill_node_whose_kv_has_joined_may_go(vocab, end):
    async def scenario(made):
        prefill, decode = await made.add("p", "prefill"), await made.add("d", "decode")
        updates = made.generate()
        asking = asyncio.create_task(first_token(updates))
        await decode.hear(Reserve)
        await decode.say(Reserved(request_id="r", ticket=TICKET))
        await prefill.hear(Prefill)
        await decode.say(Joined(request_id="r", prefill_s=0, restore_s=0.25))
        await decode.say(Generated(tokens=(token(5, 0),)))
        await asking
        if end == "it fails":
            await prefill.say(Failed(request_id="r", kind="PeerError", message="the last credit"))
        else:
            prefill.info = msgspec.structs.replace(prefill.info, instance="another")
            await prefill.hello()
            await prefill.hear(Welcome)
        await decode.say(Generated(tokens=(token(6, 1),)))
        await decode.say(Finished(request_id="r", choice=0, reason="stop"))
        rest = [u async for u in updates if isinstance(u, Token | Finished)]
        assert [type(u) for u in rest] == [Token, Finished]
        await updates.aclose()

    run(scenario, vocab)


def test_a_client_that_goes_away_frees_both_nodes(vocab):
    async def scenario(made):
        prefill, decode = await made.add("p", "prefill"), await made.add("d", "decode")
        updates = made.generate()
        asking = asyncio.create_task(first_token(updates))
        await decode.hear(Reserve)
        await decode.say(Reserved(request_id="r", ticket=TICKET))
        await prefill.hear(Prefill)
        await decode.say(Generated(tokens=(token(5, 0),)))
        await asking
        await updates.aclose()
        assert (await prefill.hear(Cancel)).request_id == "r"
        assert (await decode.hear(Cancel)).request_id == "r"
        assert 'outcome="cancelled",route="split"} 1.0' in made.router.metrics()

    run(scenario, vocab)


def test_a_request_that_ends_at_its_first_token_cancels_the_hand_over(vocab):
    async def scenario(made):
        prefill, decode = await made.add("p", "prefill"), await made.add("d", "decode")
        asking = asyncio.create_task(collect(made.generate()))
        await decode.hear(Reserve)
        await decode.say(Reserved(request_id="r", ticket=TICKET))
        await prefill.hear(Prefill)
        [end] = list(made.router.model.vocab.end_tokens)[:1]
        await prefill.say(
            FirstTokens(
                request_id="r", tokens=(token(end, 0),), prefill_s=1, pack_s=0, num_chunks=1
            )
        )
        updates = await asking
        assert [type(u) for u in updates if not isinstance(u, Summary)] == [Finished]
        await decode.hear(Cancel)
        await prefill.hear(Cancel)

    run(scenario, vocab)


async def first_token(updates):
    async for update in updates:
        if isinstance(update, Token):
            return update


async def collect(updates):
    return [update async for update in updates]


def test_one_nodes_failure_reaches_the_client_and_frees_the_other(vocab):
    async def scenario(made):
        prefill, decode = await made.add("p", "prefill"), await made.add("d", "decode")
        asking = asyncio.create_task(collect(made.generate()))
        await decode.hear(Reserve)
        await decode.say(Reserved(request_id="r", ticket=TICKET))
        await prefill.hear(Prefill)
        await prefill.say(Failed(request_id="r", kind="EngineError", message="out of memory"))
        with pytest.raises(EngineError, match="out of memory"):
            await asking
        await decode.hear(Cancel)

    run(scenario, vocab)


def test_a_silent_node_is_lost_and_its_requests_fail(vocab, monkeypatch):
    monkeypatch.setattr(router_module, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(router_module, "LOST_AFTER_S", 0.2)

    async def scenario(made):
        decode = await made.add("d", "decode")
        asking = asyncio.create_task(collect(made.generate(route="local")))
        await decode.hear(Generate)
        with pytest.raises(NodeLostError, match=r"node d was silent for 0\.2 s"):
            await asking
        assert made.health() == {"d": "lost"}
        assert made.router.model.context_tokens == 0
        await decode.say(Heartbeat(load=NodeLoad()))
        await decode.hear(WhoAreYou)
        await decode.hello()
        await decode.hear(Cancel)  # of what it still works on
        await made.until(lambda: made.health() == {"d": "ready"})

    run(scenario, vocab)


def test_a_restarted_node_fails_what_its_former_self_held(vocab):
    async def scenario(made):
        decode = await made.add("d", "decode")
        asking = asyncio.create_task(collect(made.generate(route="local")))
        await decode.hear(Generate)
        await made.add("d", "decode", instance="another")
        with pytest.raises(NodeLostError, match="node d was restarted; send the request again"):
            await asking
        assert made.health() == {"d": "ready"}

    run(scenario, vocab)


def test_a_node_with_another_model_may_not_serve(vocab):
    async def scenario(made):
        other = fingerprint()
        other = msgspec.structs.replace(
            other, model=msgspec.structs.replace(other.model, tensors="different")
        )
        stranger = ScriptedNode(made, node("d", "decode", fingerprint=other).info)
        await stranger.hello()
        reason = (await stranger.hear(Unwelcome)).reason
        assert (
            "need the router's m, have another file, m (tensors w here, different there" in reason
        )
        assert made.health() == {}
        with pytest.raises(PlanError, match="need a ready node"):
            await anext(made.generate())

    run(scenario, vocab)


def test_a_node_that_only_replays_may_not_serve_unless_the_router_allows_it(vocab):
    replays = {"engine": "emulated rtx-3090 (torch)", "emulated": "rtx-3090"}

    async def scenario(made):
        stranger = ScriptedNode(made, node("p", "prefill", **replays).info)
        await stranger.hello()
        reason = (await stranger.hear(Unwelcome)).reason
        assert "need one that computes, have emulated rtx-3090 (torch)" in reason
        assert "set `allow_emulated: true` in the router's file" in reason
        assert made.health() == {}

    async def allowed(made):
        await made.add("p", "prefill", **replays)

    run(scenario, vocab)
    run(allowed, vocab, allow_emulated=True)


def test_a_node_that_says_goodbye_is_lost_at_once(vocab):
    async def scenario(made):
        decode = await made.add("d", "decode")
        asking = asyncio.create_task(collect(made.generate(route="local")))
        await decode.hear(Generate)
        await decode.say(Goodbye())
        with pytest.raises(NodeLostError, match="node d was stopped; send the request again"):
            await asking
        assert made.router.status()["nodes"][1]["health"] == "lost"

    run(scenario, vocab)


def test_a_name_that_another_host_uses_is_refused(vocab):
    async def scenario(made):
        await made.add("d", "decode")
        twin = ScriptedNode(made, node("d", "decode", host="other", instance="2").info)
        await twin.hello()
        assert (await twin.hear(Unwelcome)).reason == (
            "name d: in use by a node on h; choose another"
        )
        assert made.router.status()["nodes"][1]["host"] == "h"

    run(scenario, vocab)


def test_what_a_request_holds_is_renewed_while_it_lasts(vocab, monkeypatch):
    monkeypatch.setattr(router_module, "_RENEW_EVERY_S", 0.02)

    async def scenario(made):
        decode = await made.add("d", "decode")
        asking = asyncio.create_task(collect(made.generate(route="local")))
        assert (await decode.hear(Renew)).request_ids == ("r",)
        await decode.say(Finished(request_id="r", choice=0, reason="length"))
        await asking

    run(scenario, vocab)


def test_strangers_and_nonsense_change_nothing(vocab):
    async def scenario(made):
        decode = await made.add("d", "decode")
        other = await made.add("e", "decode")
        asking = asyncio.create_task(collect(made.generate(route="local")))
        await decode.hear(Generate)
        for noise in (
            b"",
            b"junk",
            b"\x01\x80",
            Generated(tokens=(token(66, 0),)),  # of a request that is not this node's
            Finished(request_id="unheard of", choice=0, reason="stop"),
            Hello(info=node("d", "decode", instance="i").info, load=NodeLoad()),  # as another node
        ):
            await other.say(noise)
        await other.say(Heartbeat(load=NodeLoad(queued=3)))
        await made.until(lambda: any(n["queued"] == 3 for n in made.router.status()["nodes"]))
        await decode.say(Generated(tokens=(token(5, 0),)))
        await decode.say(Finished(request_id="r", choice=0, reason="stop"))
        updates = await asking
        assert [u for u in updates if isinstance(u, Token)] == [token(5, 0)]

    run(scenario, vocab)


def test_a_prefill_node_that_has_said_its_last_word_may_come_and_go(vocab):
    async def scenario(made):
        prefill, decode = await made.add("p", "prefill"), await made.add("d", "decode")
        asking = asyncio.create_task(collect(made.generate()))
        await decode.hear(Reserve)
        await decode.say(Reserved(request_id="r", ticket=TICKET))
        await prefill.hear(Prefill)
        await prefill.say(
            FirstTokens(request_id="r", tokens=(token(5, 0),), prefill_s=1, pack_s=0, num_chunks=1)
        )
        await prefill.say(Sent(request_id="r", kv_bytes=9, wire_s=0.1, last_group_s=0.1))
        await made.until(lambda: not made.router._nodes["p"].flights)
        await made.add("p", "prefill", instance="another")
        await decode.say(Joined(request_id="r", prefill_s=0, restore_s=0.1))
        await decode.say(Generated(tokens=(token(6, 1),)))
        await decode.say(Finished(request_id="r", choice=0, reason="stop"))
        assert [u for u in await asking if isinstance(u, Token)] == [token(5, 0), token(6, 1)]

    run(scenario, vocab)


def test_a_whole_answer_is_not_spoiled_by_a_transfer_report_that_fails(vocab):
    async def scenario(made):
        prefill, decode = await made.add("p", "prefill"), await made.add("d", "decode")
        asking = asyncio.create_task(collect(made.generate()))
        await decode.hear(Reserve)
        await decode.say(Reserved(request_id="r", ticket=TICKET))
        await prefill.hear(Prefill)
        await decode.say(Generated(tokens=(token(5, 0),)))
        await decode.say(Joined(request_id="r", prefill_s=0, restore_s=0.1))
        await decode.say(Finished(request_id="r", choice=0, reason="stop"))
        await made.until(lambda: not made.router._nodes["d"].flights)
        await prefill.say(Failed(request_id="r", kind="EngineError", message="too late"))
        assert isinstance((await asking)[-1], Summary)

    run(scenario, vocab)
