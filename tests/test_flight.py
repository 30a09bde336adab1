"""One request's messages, in every order they can come in, put in order for the client."""

import pytest
from test_route import node

from hetero.errors import EngineError, PeerError, PlanError
from hetero.messages import (
    Failed,
    Finished,
    FirstTokens,
    Generate,
    Joined,
    Prefill,
    Reserve,
    Reserved,
    Sampling,
    Sent,
    Ticket,
    Token,
    failed,
)
from hetero.routing.route import Route
from hetero.serve.flight import Flight, Heard
from hetero.serve.service import Request

SPLIT = Route(kind="split", decode_node="d", prefill_node="p", reason="")
LOCAL = Route(kind="local", decode_node="d", prefill_node=None, reason="")
FIRST_ONLY = Route(kind="split", decode_node=None, prefill_node="p", reason="")
END = 2
TICKET = Ticket(
    ticket_id="r.1", address="tcp://x:1", num_tokens=3, lease_s=30, key=bytes(32), seal="aead"
)


def flight(route=SPLIT, max_tokens=5, num_choices=1, **sampling):
    request = Request(
        request_id="r",
        prompt=(7, 8, 9),
        max_tokens=max_tokens,
        num_choices=num_choices,
        sampling=Sampling(**sampling),
    )
    return Flight(request, route, node("p", "prefill").info, frozenset({END}))


def first(*tokens):
    return FirstTokens(
        request_id="r",
        tokens=tuple(token(t, choice=choice) for choice, t in enumerate(tokens)),
        prefill_s=1.0,
        pack_s=0.5,
        num_chunks=3,
    )


def token(value, index=0, choice=0):
    return Token("r", choice, index, value)


def finished(reason="stop", choice=0):
    return Finished(request_id="r", choice=choice, reason=reason)


JOINED = Joined(request_id="r", prefill_s=0.0, restore_s=0.25)
SENT = Sent(request_id="r", kv_bytes=100, wire_s=0.125, last_group_s=0.0625)


def fly(flight, messages):
    """Each message from the node that says such things, unless it says from whom it is."""
    updates = []
    for message in messages:
        is_prefill = isinstance(message, FirstTokens | Sent)
        heard = (
            message if isinstance(message, Heard) else Heard("p" if is_prefill else "d", message)
        )
        updates += flight.take(heard)
    return updates


def test_a_split_request_asks_for_room_first_and_then_for_the_prompt():
    f = flight()
    name, message = f.opening()
    assert (name, type(message)) == ("d", Reserve)
    assert (message.num_prompt_tokens, message.max_tokens) == (3, 5)
    name, message = f.reply(Reserved(request_id="r", ticket=TICKET))
    assert (name, type(message)) == ("p", Prefill)
    assert message.ticket == TICKET
    assert message.prompt == (7, 8, 9)


def test_a_local_request_is_one_order():
    name, message = flight(LOCAL).opening()
    assert (name, type(message)) == ("d", Generate)


def test_the_first_token_is_told_once_whoever_says_it_first():
    for messages in ([first(5), token(5)], [token(5), first(5)]):
        f = flight()
        assert fly(f, messages) == [token(5)]


def test_tokens_come_in_order_and_the_timings_are_the_nodes():
    f = flight()
    updates = fly(
        f,
        [first(5), SENT, token(5), JOINED, token(6, 1), token(7, 2), finished()],
    )
    assert updates == [token(5), token(6, 1), token(7, 2), finished()]
    assert f.has_ended
    assert not f.busy_nodes
    summary = f.summary()
    t = summary.timings
    assert (t.prefill_s, t.pack_s, t.wire_s, t.restore_s) == (1.0, 0.5, 0.125, 0.25)
    assert t.last_group_s == 0.0625
    assert t.ttft_s > 0
    assert t.exposed_s > 0
    assert (summary.kv_bytes, summary.num_chunks) == (100, 3)
    assert (summary.kv_k, summary.kv_v) == ("q8_0", "f16")


def test_a_gap_in_the_tokens_is_the_nodes_fault():
    f = flight()
    with pytest.raises(PeerError, match="need token 1 next, have token 2"):
        fly(f, [first(5), token(7, 2)])


def test_an_end_token_drawn_first_ends_the_choice_with_nothing_said():
    f = flight(num_choices=2)
    assert fly(f, [first(END, 5)]) == [finished(choice=0), token(5, choice=1)]
    assert not f.has_ended
    # The decode node ends that choice too; the client hears of it once.
    assert fly(f, [finished(choice=0), JOINED, finished("length", choice=1)]) == [
        finished("length", choice=1)
    ]
    assert f.has_ended


def test_an_end_token_is_a_token_when_ends_are_ignored():
    f = flight(ignore_eos=True)
    assert fly(f, [first(END)]) == [token(END)]


def test_a_request_of_one_token_ends_with_the_prefill_nodes_word():
    f = flight(FIRST_ONLY, max_tokens=1)
    name, message = f.opening()
    assert (name, message.ticket) == ("p", None)
    assert fly(f, [first(5)]) == [token(5), finished("length")]
    assert f.has_ended
    assert not f.busy_nodes


def test_nodes_stay_busy_until_each_has_said_its_last_word():
    f = flight()
    fly(f, [first(5), token(5), JOINED])
    assert f.busy_nodes == {"d", "p"}
    fly(f, [finished()])
    assert f.busy_nodes == {"p"}
    assert f.awaits_transfer_report
    fly(f, [SENT])
    assert not f.awaits_transfer_report


@pytest.mark.parametrize(("kind", "error"), [("PlanError", PlanError), ("Unheard", EngineError)])
def test_a_nodes_failure_is_raised_as_what_it_was(kind, error):
    with pytest.raises(error, match="out of cells"):
        fly(flight(), [Failed(request_id="r", kind=kind, message="out of cells")])


def test_a_node_that_forgot_a_request_after_its_last_word_does_not_spoil_it():
    f = flight()
    forgotten = Heard("p", failed("r", PeerError("the node has forgotten it")))
    assert fly(f, [first(5), SENT, forgotten, token(5), JOINED, finished("length")]) == [
        token(5),
        finished("length"),
    ]
    with pytest.raises(PeerError, match="forgotten"):
        fly(flight(), [first(5), forgotten])
