"""The route of a request, as a function of what the router knows."""

from dataclasses import replace

import msgspec
import pytest

from hetero.errors import ConfigError, PlanError
from hetero.kv.layout import kv_layout
from hetero.messages import Fingerprint, ModelFingerprint, NodeInfo
from hetero.routing.route import NodeView, choose_route


def fingerprint(k_type="q8_0"):
    return Fingerprint(
        model=ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="w"),
        layout=kv_layout(
            num_layers=2, num_kv_heads=1, head_dim_k=64, head_dim_v=64, k_type=k_type, v_type="f16"
        ),
    )


def node(name, role, num_requests=0, **options):
    defaults = {
        "host": "h",
        "pid": 1,
        "instance": "i",
        "model": "m",
        "fingerprint": fingerprint(),
        "context_tokens": 4096,
        "num_slots": 4,
        "chunk_tokens": 512,
        "engine": "llama",
        "attention": "llama",
        "seal": "aead",
        "versions": {},
    }
    return NodeView(
        info=NodeInfo(name=name, role=role, **defaults | options), num_requests=num_requests
    )


def route(nodes, num_prompt_tokens=2000, max_tokens=100, num_choices=1, wish="auto"):
    return choose_route(
        num_prompt_tokens=num_prompt_tokens,
        max_tokens=max_tokens,
        num_choices=num_choices,
        wish=wish,
        nodes=nodes,
    )


PAIR = [node("p", "prefill"), node("d", "decode")]


@pytest.mark.parametrize(
    ("num_prompt_tokens", "wish", "kind"),
    [
        (512, "auto", "local"),
        (513, "auto", "split"),
        (10, "split", "split"),
        (2000, "local", "local"),
    ],
)
def test_prompts_of_more_than_a_chunk_are_split_unless_asked_otherwise(
    num_prompt_tokens, wish, kind
):
    chosen = route(PAIR, num_prompt_tokens, wish=wish)
    assert chosen.kind == kind
    assert chosen.decode_node == "d"
    assert chosen.prefill_node == ("p" if kind == "split" else None)
    assert chosen.reason


def test_a_request_of_one_token_moves_no_kv():
    assert route(PAIR, max_tokens=1).decode_node is None
    assert route(PAIR, max_tokens=1, wish="local").decode_node == "d"


def test_without_a_prefill_node_everything_is_local_and_says_so():
    chosen = route([node("d", "decode")])
    assert (chosen.kind, chosen.reason) == ("local", "no prefill node is ready")
    with pytest.raises(PlanError, match="split route: no prefill node is ready"):
        route([node("d", "decode")], wish="split")


def test_nodes_of_different_caches_never_pair():
    nodes = [node("p", "prefill", fingerprint=fingerprint("q4_0")), node("d", "decode")]
    chosen = route(nodes)
    assert chosen.kind == "local"
    assert "d and p must not pair: k_type: q8_0 here, q4_0 there" in chosen.reason
    with pytest.raises(PlanError, match="must not pair"):
        route(nodes, wish="split")


def test_a_matching_prefill_node_is_found_among_others():
    nodes = [node("a", "prefill", fingerprint=fingerprint("q4_0")), *PAIR]
    assert route(nodes).prefill_node == "p"


def test_the_least_loaded_node_is_taken_by_its_slots():
    nodes = [
        node("p1", "prefill", num_requests=2),
        node("p2", "prefill", num_requests=1),
        node("d1", "decode", num_requests=3, num_slots=16),
        node("d2", "decode", num_requests=2, num_slots=4),
    ]
    chosen = route(nodes)
    assert (chosen.prefill_node, chosen.decode_node) == ("p2", "d1")
    assert route([*reversed(nodes)]) == chosen


def test_a_node_too_small_for_the_request_is_passed_over():
    nodes = [node("small", "decode", context_tokens=512), node("z", "decode", num_requests=9)]
    assert route(nodes).decode_node == "z"
    short = replace(PAIR[0], info=msgspec.structs.replace(PAIR[0].info, context_tokens=1000))
    chosen = route([short, PAIR[1]])
    assert "need a prefill node for 2000 tokens, have at most 1000" in chosen.reason


def test_what_no_node_can_ever_take_is_refused_with_need_and_have():
    with pytest.raises(ConfigError, match=r"need 5000 tokens of context and 1 slots .* 4096 and 4"):
        route(PAIR, num_prompt_tokens=4900)
    with pytest.raises(ConfigError, match="and 5 slots"):
        route(PAIR, num_choices=5)


def test_without_a_decode_node_the_request_may_be_tried_later():
    with pytest.raises(PlanError, match="need a ready node, have none"):
        route([node("p", "prefill")])


@pytest.mark.parametrize(
    ("of_decode", "of_prefill", "obstacle"),
    [
        ({}, {}, None),
        ({"seal": "mac"}, {"seal": "none"}, None),
        ({"seal": "mac"}, {"seal": "aead"}, "seal: mac here, aead there"),
        ({"transport": "nixl-shm"}, {"transport": "nixl-shm"}, None),
        ({"transport": "nixl-shm"}, {}, "transport: nixl-shm here, tcp there"),
        ({"transport": "nixl-shm", "allow_tcp": True}, {}, None),
        ({}, {"transport": "nixl-tcp"}, "transport: tcp here, nixl-tcp there"),
        ({}, {"transport": "nixl-tcp", "allow_tcp": True}, None),
    ],
)
def test_nodes_that_would_refuse_each_other_are_not_paired(of_decode, of_prefill, obstacle):
    nodes = [node("d", "decode", **of_decode), node("p", "prefill", **of_prefill)]
    route = choose_route(
        num_prompt_tokens=2000, max_tokens=10, num_choices=1, wish="auto", nodes=nodes
    )
    assert route.kind == ("local" if obstacle else "split")
    if obstacle:
        assert obstacle in route.reason
