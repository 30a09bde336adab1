"""Strangers at the control socket: what they get to see, byte by byte, and what they hold up."""

import asyncio
import logging
import socket
import threading
import time

import pytest
import test_router
import zmq
from curve_sockets import CurveRouter, ScratchKeys, node_socket
from test_route import node
from test_router import ScriptedNode, collect, run, token

import hetero.serve.router as router_module
from hetero.errors import NodeLostError
from hetero.messages import (
    Finished,
    Generate,
    Generated,
    Heartbeat,
    NodeLoad,
    Token,
    Unwelcome,
    WhoAreYou,
)
from hetero.serve import control
from hetero.transport import control_socket, zap
from hetero.transport.control_socket import RouterContact
from hetero.transport.keys import make_key

WAIT_S = 20
vocab = test_router.vocab  # a fixture

# ZMTP 3.1: signature, version, mechanism, filler. Who connects sees it, always.
GREETING = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
# Of those who know the router's public key: a command with its short-term key.
WELCOME, WELCOME_BYTES = b"\x04\xa8\x07WELCOME", 2 + 168


def greeting(mechanism, major=3):
    return b"\xff" + bytes(8) + b"\x7f" + bytes([major, 0]) + mechanism.ljust(20, b"\0") + bytes(32)


STRANGERS = {
    "http": b"GET / HTTP/1.1\r\nHost: router\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(193),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeros": bytes(200),
    "noise": bytes(range(1, 256)),
    "no mechanism": greeting(b"NULL") + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER",
    "password": greeting(b"PLAIN") + b"\x04\x08\x05HELLO\x01a\x01b",
    "ZMTP 1": b"\x01\x00\x03\x00hi",
    "ZMTP 2": b"\xff" + bytes(8) + b"\x7f\x01\x05\x00\x00\x00\x02hi",
    "no hello": greeting(b"CURVE") + b"\x04\x06\x05READY",
    "hello of zeros": greeting(b"CURVE") + b"\x04\xc8\x05HELLO\x01\x00" + bytes(192),
    "message before hello": greeting(b"CURVE") + b"\x00\x02hi",
    "command without end": greeting(b"CURVE") + b"\x06" + (2**40).to_bytes(8, "big") + bytes(99),
}


@pytest.fixture(autouse=True)
def impatient_routers(monkeypatch):
    monkeypatch.setattr(control_socket, "HANDSHAKE_MS", 400)


@pytest.fixture
def router():
    made = CurveRouter()
    yield made
    made.close()


@pytest.fixture
def context():
    with zmq.Context() as made:
        yield made


def connect(router):
    host, port = router.address.removeprefix("tcp://").split(":")
    return socket.create_connection((host, int(port)), timeout=WAIT_S)


def heard_until_closed(connection):
    heard = b""
    try:
        while some := connection.recv(4096):
            heard += some
    except ConnectionResetError:
        pass
    return heard


def check_serves(router, context):
    """A node that is allowed is heard."""
    with node_socket(context, router.contact("friend"), "route of friend") as friend:
        friend.send(b"hello")
        assert router.poll(1000 * WAIT_S)
        assert router.recv_multipart() == [b"route of friend", b"hello"]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_see_a_greeting_at_most(router, context, stranger):
    with connect(router) as connection:
        connection.sendall(STRANGERS[stranger])
        heard = heard_until_closed(connection)
    assert GREETING.startswith(heard)
    assert not router.poll(0)
    check_serves(router, context)


class Recorder:
    """A TCP proxy for one connection at a time that keeps what the router sent."""

    def __init__(self, router):
        self._router = router
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.ended = []  # what the router sent on connections that are over
        self._is_closing = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._is_closing:
            client, _ = self._listener.accept()
            with client, connect(self._router) as server:
                server.settimeout(0.01)
                client.settimeout(0.01)
                heard = bytearray()
                while self._pump(client, server) and self._pump(server, client, heard):
                    pass
                self.ended.append(bytes(heard))

    @staticmethod
    def _pump(source, target, heard=None):
        try:
            some = source.recv(4096)
        except TimeoutError:
            return True
        except OSError:
            return False
        if heard is not None:
            heard += some
        try:
            target.sendall(some)
        except OSError:
            return False
        return bool(some)

    def close(self):
        self._is_closing = True
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()


def key_of(directory, name):
    return make_key(directory / "strangers", name)


@pytest.mark.parametrize("stranger", ["unknown", "revoked", "wrong router key", "public half only"])
def test_peers_with_a_wrong_key_get_no_word(router, context, tmp_path, stranger):
    keys = {name: key_of(tmp_path, name) for name in ("unknown", "other")}
    contact = RouterContact(address="", router_key=router.keys.router_key, key=keys["unknown"])
    if stranger == "revoked":
        contact = router.contact("revoked")
        router.keys.allowed.revoke("revoked")
    elif stranger == "wrong router key":
        contact = RouterContact(
            address="", router_key=keys["other"].public, key=router.keys.node("friend")
        )
    elif stranger == "public half only":
        stolen = type(keys["unknown"])(router.keys.node("friend").public, keys["unknown"]._secret)
        contact = RouterContact(address="", router_key=router.keys.router_key, key=stolen)
    recorder = Recorder(router)
    contact = RouterContact(
        address=recorder.address, router_key=contact.router_key, key=contact.key
    )
    with node_socket(context, contact, "r") as knocking:
        knocking.send(b"let me in")
        until(lambda: recorder.ended)
        assert not knocking.poll(0)
    recorder.close()
    heard = recorder.ended[0]
    assert heard[:64] == GREETING
    if stranger == "wrong router key":
        assert heard[64:] == b""
    else:  # the router's proof of its key, as to anyone who knows it; then it hangs up
        assert heard[64:].startswith(WELCOME)
        assert len(heard) == 64 + WELCOME_BYTES
    assert not router.poll(0)
    check_serves(router, context)


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_allowed_key_hears_more_than_a_welcome(router, context):
    """So that the test above can fail."""
    recorder = Recorder(router)
    contact = router.keys.contact("friend", recorder.address)
    with node_socket(context, contact, "r") as friend:
        friend.send(b"hello")
        assert router.poll(1000 * WAIT_S)
    until(lambda: recorder.ended)
    recorder.close()
    assert len(recorder.ended[0]) > 64 + WELCOME_BYTES


def test_connections_that_never_speak_are_closed_and_hold_nobody_up(router, context):
    silent = [connect(router) for _ in range(200)]
    check_serves(router, context)
    for connection in silent:
        assert GREETING.startswith(heard_until_closed(connection))
        connection.close()
    check_serves(router, context)


def test_a_port_scan_changes_nothing(router, context):
    for _ in range(100):
        connect(router).close()
    check_serves(router, context)


def test_nobody_gets_in_where_nobody_asks_the_allow_list(router, context, monkeypatch):
    class Nobody:
        def __init__(self, context, allowed):
            pass

        def join(self):
            pass

    monkeypatch.setattr(zap, "ZapHandler", Nobody)
    unguarded = CurveRouter()
    recorder = Recorder(unguarded)
    contact = unguarded.keys.contact("friend", recorder.address)
    with node_socket(context, contact, "r") as friend:
        friend.send(b"hello")
        until(lambda: recorder.ended)
    recorder.close()
    assert len(recorder.ended[0]) == 64 + WELCOME_BYTES
    assert not unguarded.poll(0)
    unguarded.close()


def test_a_revoked_node_is_lost_at_its_next_word_and_hears_none(vocab):
    async def scenario(made):
        decode, other = await made.add("d", "decode"), await made.add("e", "prefill")
        asking = asyncio.create_task(collect(made.generate(route="local")))
        await decode.hear(Generate)
        while await decode.socket.poll(0):
            await decode.socket.recv()
        made.keys.allowed.revoke("d")
        await decode.say(Generated(tokens=(token(5, 0),)))
        with pytest.raises(NodeLostError, match="node d was revoked"):
            await asking
        await decode.hello()
        await decode.say(b"nonsense")
        await other.say(Heartbeat(load=NodeLoad(queued=3)))
        await made.until(lambda: any(n["queued"] == 3 for n in made.router.status()["nodes"]))
        assert made.health() == {"d": "lost", "e": "ready"}
        assert not await decode.socket.poll(100)
        # Nor by a new handshake, until it is allowed again.
        again = ScriptedNode(made, decode.info, key=decode.key)
        await again.hello()
        assert not await again.socket.poll(100)
        made.keys.allowed.allow("d", decode.key.public)
        await made.until(lambda: made.health()["d"] == "ready")

    run(scenario, vocab)


def test_a_revoked_node_that_is_silent_is_lost_too(vocab, monkeypatch):
    monkeypatch.setattr(router_module, "HEARTBEAT_S", 0.02)

    async def scenario(made):
        decode = await made.add("d", "decode")
        asking = asyncio.create_task(collect(made.generate(route="local")))
        await decode.hear(Generate)
        made.keys.allowed.revoke("d")
        with pytest.raises(NodeLostError, match="node d was revoked"):
            await asking

    run(scenario, vocab)


def test_nothing_is_said_to_a_node_from_its_revocation_on(vocab):
    async def scenario(made):
        decode = await made.add("d", "decode")
        while await decode.socket.poll(50):
            await decode.socket.recv()
        made.keys.allowed.revoke("d")
        with pytest.raises(NodeLostError, match="node d was revoked"):
            await collect(made.generate(route="local"))
        assert not await decode.socket.poll(100)

    run(scenario, vocab)


def test_a_node_can_not_pose_as_another(vocab):
    async def scenario(made):
        decode, thief = await made.add("d", "decode"), await made.add("e", "prefill")
        posing = ScriptedNode(made, node("d", "decode", instance="2").info, key=thief.key)
        await posing.hello()
        reason = (await posing.hear(Unwelcome)).reason
        assert reason == "name d: need the name that this node's key is allowed for, e"
        asking = asyncio.create_task(collect(made.generate(route="local")))
        await decode.hear(Generate)
        await posing.say(Generated(tokens=(token(66, 0),)))
        await posing.hear(WhoAreYou)
        await decode.say(Generated(tokens=(token(5, 0),)))
        await decode.say(Finished(request_id="r", choice=0, reason="stop"))
        assert [u for u in await asking if isinstance(u, Token)] == [token(5, 0)]
        assert made.health() == {"d": "ready", "e": "ready"}

    run(scenario, vocab)


def test_a_node_whose_connection_broke_goes_on_over_a_new_one(vocab):
    async def scenario(made):
        decode = await made.add("d", "decode")
        asking = asyncio.create_task(collect(made.generate(route="local")))
        await decode.hear(Generate)
        back = ScriptedNode(made, decode.info)
        await back.say(Generated(tokens=(token(5, 0),)))
        await back.say(Finished(request_id="r", choice=0, reason="stop"))
        assert [u for u in await asking if isinstance(u, Token)] == [token(5, 0)]
        await back.say(Heartbeat(load=NodeLoad(queued=3)))
        await made.until(lambda: any(n["queued"] == 3 for n in made.router.status()["nodes"]))

    run(scenario, vocab)


def test_status_says_that_control_is_curve(vocab):
    async def scenario(made):
        await made.add("d", "decode")
        assert [n["control"] for n in made.router.status()["nodes"]] == ["curve", "curve"]

    run(scenario, vocab)


@pytest.fixture
def complaints(monkeypatch, context, caplog):
    """What a node tells its user of a router that does not answer it."""
    monkeypatch.setattr(control, "_WELCOME_WAIT_S", 0.0)
    monkeypatch.setattr(control, "_COMPLAIN_EVERY_S", 0.0)

    def until_said(contact, words):
        with caplog.at_level(logging.WARNING):
            link = control.ControlLink(context, contact, node("d", "decode").info, NodeLoad)
            until(lambda: link.beat() and words in caplog.text)
            link.close()
        return next(line for line in caplog.messages if words in line)

    return until_said


def test_a_node_that_is_not_allowed_tells_its_user(router, complaints):
    contact = router.contact("d")
    router.keys.allowed.revoke("d")
    said = complaints(contact, "it hangs up")
    assert f"router {router.address}: need an answer, have none: it hangs up. Either" in said
    assert "hetero keys allow d " in said
    assert contact.key.public in said
    assert router.keys.router_key in said


def test_a_node_with_another_routers_key_tells_its_user(router, complaints, tmp_path):
    other = key_of(tmp_path, "other").public
    contact = RouterContact(address=router.address, router_key=other, key=router.keys.node("d"))
    assert f"or its key is not {other}" in complaints(contact, "it hangs up")


def test_a_node_whose_router_is_not_there_tells_its_user(complaints):
    keys = ScratchKeys()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        contact = keys.contact("d", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    complaints(contact, "nothing listens there; is it running, and reachable?")
    keys.close()


def test_a_node_whose_router_hangs_tells_its_user(router, complaints):
    complaints(router.contact("d"), "the keys are right, but it says nothing")
    [_, hello, *_] = router.recv_multipart()
    assert b"d" in hello
