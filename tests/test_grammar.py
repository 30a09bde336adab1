"""Grammars that crash or stall llama.cpp, and good ones, through the checker; this process lives.

Schemas are judged by what can be generated from their grammar: parsed as JSON and compared.
"""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_tiny_model

from hetero.decode.grammar import MAX_GRAMMAR_BYTES, GrammarChecker, nesting
from hetero.errors import ConfigError
from hetero.llama.json_schema import checked_schema, schema_to_gbnf
from hetero.llama.model import Model, Vocab
from hetero.llama.sampler import Sampler
from hetero.messages import Sampling


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", num_layers=1)


@pytest.fixture(scope="module")
def checker(model_path: Path) -> GrammarChecker:
    return GrammarChecker(model_path)


@pytest.fixture(scope="module")
def vocab(model_path: Path) -> Iterator[Vocab]:
    with Model(model_path, vocab_only=True) as model:
        yield model.vocab


def chain(num_rules: int, body: str) -> str:
    rules = "\n".join(f"a{i} ::= {body.format(i + 1)}" for i in range(num_rules))
    return f'root ::= a0\n{rules}\na{num_rules} ::= "x"'


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "yes" | "no"',
        'root ::= item{1,100000000}\nitem ::= [a-z]+ "," # (((',
        f"root ::= {'(' * 500}[^\\n]{')' * 500}",
        'root ::= "日本" [à-ü]*',
    ],
)
def test_good_grammar_comes_back_unchanged(checker: GrammarChecker, grammar: str) -> None:
    assert checker.gbnf(grammar) == grammar


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("root ::= nope", "Undefined rule identifier 'nope'"),
        ('root ::= "a', "unexpected end of input"),
        ('other ::= "a"', "does not contain a 'root' symbol"),
        ('root ::= root "a" | "b"', "left recursion"),
        ('root ::= x "a"\nx ::= "" | root', "left recursion"),
        ('root ::= "\\x00"', "a token of this model that can begin it"),
        ("root ::= <[99999]>", "a token of this model that can begin it"),
        ("root ::= a\0b", "NUL"),
        (f"root ::= {'(' * 20_000}x{')' * 20_000}", "1024 levels of parentheses, have 20000"),
        (f'root ::= "{"x" * MAX_GRAMMAR_BYTES}"', "at most 131072 bytes, have 131083"),
        # Each token doubles the ways to go on.
        ('root ::= s\ns ::= "a" s "b"? | "a" s "b"? | ""', "for a token"),
        # It recurses 60,000 deep.
        (chain(60, "(" * 1000 + "a{0}" + ")" * 1000), "crashes it"),
    ],
)
def test_bad_grammar_is_refused_with_its_reason(
    checker: GrammarChecker, grammar: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        checker.gbnf(grammar)


def test_grammar_that_never_finishes_compiling_is_refused(model_path: Path) -> None:
    # llama.cpp's search for left recursion visits 2^40 paths.
    with pytest.raises(ConfigError, match="more CPU time"):
        GrammarChecker(model_path, max_cpu_s=1).gbnf(chain(40, "a{0} | a{0}"))


def test_good_grammar_is_tried_once(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = 'root ::= "again"'
    checker.gbnf(grammar)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a second process"))
    assert checker.gbnf(grammar) == grammar


def test_the_trial_sees_nothing_of_our_environment(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}

    def run(*_: object, env: dict[str, str], **__: object) -> None:
        seen.update(env)
        raise OSError("stop here")

    monkeypatch.setenv("SECRET_TOKEN", "x")
    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(OSError, match="stop here"):
        checker.gbnf('root ::= "environment"')
    assert seen
    assert "SECRET_TOKEN" not in seen


@pytest.mark.parametrize(
    ("grammar", "depth"),
    [("(()())", 2), ('"((" "\\"((" (x)', 1), ("[(\\](] # ((\n(x)", 1), ("", 0)],
)
def test_nesting_counts_parentheses_that_group(grammar: str, depth: int) -> None:
    assert nesting(grammar) == depth


# Schemas.


def generate(vocab: Vocab, schema: dict[str, Any], seed: int) -> Any:
    """A random JSON value that the schema's grammar allows."""
    gbnf = schema_to_gbnf(checked_schema(schema))
    sampler = Sampler(vocab, Sampling(grammar=gbnf, temperature=0.0), 0)
    rng = np.random.default_rng(seed)
    # Byte tokens for ASCII, and quotes and brackets first: strings end soon.
    raw = b""
    wanted = np.full(vocab.num_tokens, -100.0, np.float32)
    for token in range(vocab.num_tokens):
        piece = vocab.piece(token)
        if len(piece) == 1 and 32 <= piece[0] < 127:
            wanted[token] = 2.0 if piece in (b'"', b"]", b"}") else 0.0
    wanted[list(vocab.end_tokens)] = 50.0
    try:
        for position in range(2000):
            logits = wanted + rng.standard_normal(vocab.num_tokens).astype(np.float32)
            token = sampler.sample(logits, position)
            if token in vocab.end_tokens:
                return json.loads(raw)
            raw += vocab.piece(token)
    finally:
        sampler.close()
    raise AssertionError(f"no end after {raw!r}")


strange = st.text(st.sampled_from('ab"\\\n/é\U0001f600 _-'), max_size=6)


@settings(max_examples=40, deadline=None)
@given(st.lists(strange.filter(bool), min_size=1, max_size=3, unique=True), st.integers(0, 99))
def test_names_and_constants_of_any_spelling_come_out_as_they_went_in(
    vocab: Vocab, texts: list[str], seed: int
) -> None:
    schema = {
        "type": "object",
        "properties": {name: {"enum": [*texts, 1, None, {"a": texts}]} for name in texts},
        "required": texts,
    }
    value = generate(vocab, schema, seed)
    assert list(value) == texts
    assert all(entry in [*texts, 1, None, {"a": texts}] for entry in value.values())


@pytest.mark.parametrize("seed", range(5))
def test_generated_value_obeys_its_schema(vocab: Vocab, seed: int) -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Order",
        "type": "object",
        "properties": {
            "id": {"type": "integer", "description": "a number"},
            "code": {"type": "string", "minLength": 3, "maxLength": 4},
            "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
            "note": {"anyOf": [{"type": "null"}, {"const": "none"}]},
            "kind": {"type": ["null", "boolean"]},
        },
        "required": ["id", "code", "tags"],
        "additionalProperties": False,
    }
    value = generate(vocab, schema, seed)
    assert {"id", "code", "tags"} <= set(value) <= {"id", "code", "tags", "note", "kind"}
    assert isinstance(value["id"], int)
    assert 3 <= len(value["code"]) <= 4
    assert 1 <= len(value["tags"]) <= 3
    assert all(isinstance(tag, bool) for tag in value["tags"])
    assert value.get("note") in (None, "none")
    assert value.get("kind") in (None, True, False)


def test_references_with_the_same_last_part_stay_apart(vocab: Vocab) -> None:
    schema = {
        "$defs": {"my_kind": {"const": 1}, "other": {"$defs": {"my_kind": {"const": 2}}}},
        "properties": {
            "a": {"$ref": "#/$defs/my_kind"},
            "b": {"$ref": "#/$defs/other/$defs/my_kind"},
        },
        "required": ["a", "b"],
    }
    assert generate(vocab, schema, 0) == {"a": 1, "b": 2}


def test_recursive_schema_is_generated(vocab: Vocab) -> None:
    schema = {
        "$defs": {
            "tree_node": {
                "type": "object",
                "properties": {
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree_node"}]}
                },
                "required": ["next"],
            }
        },
        "$ref": "#/$defs/tree_node",
    }
    value = generate(vocab, schema, 1)
    while value is not None:
        assert set(value) == {"next"}
        value = value["next"]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "integer", "minimum": 3}, "schema: .*have 'minimum'"),
        ({"type": "string", "pattern": "^a$"}, "have 'pattern'"),
        ({"type": "array", "uniqueItems": True, "items": {}}, "'uniqueItems'"),
        ({"anyOf": [{"type": "null"}], "properties": {}}, "'properties' beside 'anyOf'"),
        ({"type": ["string", "null"], "minLength": 1}, "type: need .*anyOf"),
        ({"properties": {"a": {"not": {}}}}, "schema.a: .*'not'"),
        ({"properties": {"a": {}}, "required": ["b"]}, "required: need names that are among"),
        ({"type": "object", "required": ["b"]}, "'required'"),
        ({"minLength": 3}, "minLength: need .*string"),
        ({"type": "string", "maxLength": 10**9}, "maxLength: need 0 to 1000, have 1000000000"),
        ({"type": "strnig"}, "type: need a type.*strnig"),
        ({"properties": {"": {}}}, "properties: need an object without an empty name"),
        ({"enum": []}, "enum: need a list with entries"),
        ({"items": [{}]}, "items: need an object"),
        ({"$ref": "https://127.0.0.1/x"}, "nothing is fetched"),
        ({"$ref": "#/$defs/none"}, "need its target in the schema"),
        ([], "schema: need an object"),
        (True, "schema: need an object, have true"),
    ],
)
def test_schema_that_would_not_be_enforced_is_refused(schema: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked_schema(schema)


def test_deep_schema_is_refused() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(200):
        schema = {"items": schema}
    with pytest.raises(ConfigError, match="at most 64 levels"):
        checked_schema(schema)


def test_reference_to_itself_is_refused(checker: GrammarChecker) -> None:
    loop = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    with pytest.raises(ConfigError, match="left recursion"):
        checker.json_schema(loop)


def test_schema_compiles_in_the_trial_without_a_connection(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    assert "root ::= object" in checker.json_schema({"type": "object"})


def test_huge_schema_is_refused(checker: GrammarChecker) -> None:
    with pytest.raises(ConfigError, match="schema: need at most 65536 bytes"):
        checker.json_schema({"enum": ["x" * 70_000]})
