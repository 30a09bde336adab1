"""Recipe files are read, and refused in words that name the place and the way out."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_examples import EXAMPLES, changed, fields, refusals

from hetero.errors import ConfigError
from hetero.experiment.recipe.load import load_recipe, parse_recipe, recipe_hash
from hetero.experiment.recipe.recipe import LabHost, Quality, Serving, Wire
from hetero.launch.lab.limits import MIN_QUOTA

SERVING, QUALITY, WIRE = (
    next(path for path in EXAMPLES if path.stem == stem)
    for stem in ("serving", "kv-quality", "kv-wire")
)


def refusal_of(path):
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    return str(error.value)


# Reading.


def test_each_kind_is_read():
    kinds = [type(load_recipe(path)) for path in (SERVING, QUALITY, WIRE)]
    assert kinds == [Serving, Quality, Wire]
    recipe = load_recipe(SERVING)
    assert recipe.candidates["split"].settings == {"route": "split", "seal": "mac"}
    assert recipe.cluster.lab.hosts == {
        "main": LabHost(),
        "back": LabHost(quota=0.5, memory="2GB"),
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_result_has_its_recipe_in_it(tmp_path, path):
    recipe = load_recipe(path)
    result = tmp_path / "result.json"
    result.write_bytes(msgspec.json.encode({"runs": [{"arm": {}}], "recipe": recipe, "then": None}))
    again = load_recipe(result)
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)


def test_the_hash_is_of_what_is_asked_not_of_how_it_is_written(tmp_path):
    found = fields("kv-wire")
    recipe = parse_recipe(found)
    other_order = parse_recipe(dict(reversed(found.items())))
    with_a_default = parse_recipe(found | {"repetitions": 5})
    once_run = parse_recipe(found | {"minutes": 12})
    hashes = {recipe_hash(each) for each in (recipe, other_order, with_a_default, once_run)}
    assert len(hashes) == 1
    assert len(hashes.pop()) == 64
    assert recipe_hash(parse_recipe(found | {"seed": 1})) != recipe_hash(recipe)


def test_of_a_broken_file_the_line_is_named(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("kind: serving\nname: x\n  question: [\n")
    assert refusal_of(path).startswith(f"{path}: line 3: need YAML, have: ")


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("kind: kv-wire\nsettings:\n  kv: f16\n  tokens: 2\n  kv: q8_0\n")
    assert refusal_of(path) == f"{path}: line 5: kv: need it once, have it again"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: &b [1]\nc: *b\n", "line 2: *b: need it written out, have an alias"),
        ("? [a]\n: b\n", "line 1: need text as a key, have a list or a mapping"),
        ("{}", "kind: need one of serving, kv-quality, kv-wire, have none"),
        ("kind: kv-speed", "kind: need one of serving, kv-quality, kv-wire, have 'kv-speed'"),
        ("kind: [1]", "kind: need one of serving, kv-quality, kv-wire, have a list"),
        ("- kind", "need a recipe: keys and values, as docs/recipes.md shows"),
        ("", "need a recipe: keys and values, as docs/recipes.md shows"),
        ("a: !!python/object:os.system x", "line 1: tag:yaml.org,2002:python/object:os.system: n"),
        ("a: !!timestamp x", "line 1: tag:yaml.org,2002:timestamp: need plain YAML, have a tag"),
        ("a: 1\na: !x {}", "line 2: !x: need plain YAML, have a tag"),
        ("a: 1\nb: 2025-13-45", "line 2: need YAML, have: month must be in 1..12"),
        ("[" * 5000, "need a recipe, have lists in lists without end"),
        ("a: 1\nb: \x07", "line 2: need YAML, have: special characters are not allowed"),
        ("x" * 300_000, "need at most 256 KiB, have more: not a recipe"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, text, complaint):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert refusal_of(path).startswith(f"{path}: {complaint}")


def test_files_that_can_not_be_read_are_named(tmp_path):
    nothing = tmp_path / "no.yaml"
    assert refusal_of(nothing) == f"{nothing}: can't read it: no such file or directory"
    assert refusal_of(tmp_path) == (
        f"{tmp_path}: need a file, have a folder; a result's is result.json in it"
    )
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"kind: x\nname: caf\xe9\n")
    assert refusal_of(latin).startswith(f"{latin}: line 2: need UTF-8 text, have ")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{}", "need a result with its `recipe`, have none in it"),
        (b"[1]", "need a result with its `recipe`, have none in it"),
        (b'{"recipe": {"kind": "kv-wi', "need JSON, have: Input data was truncated"),
        (b'{"recipe": 3}', "need a recipe: keys and values, as docs/recipes.md shows"),
    ],
)
def test_a_bad_result_is_refused(tmp_path, content, complaint):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    assert refusal_of(path) == f"{path}: {complaint}"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
    st.sampled_from(["settings", "vary", "figures", "candidates", "cluster", "model", "plots"]),
)
def test_whatever_stands_there_is_taken_or_refused_in_words(value, field):
    for line in refusals(fields() | {field: value}):
        assert ": " in line


# Types.


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        ("concurency", 3, "concurency: no such key; need one of name, question, vary"),
        ("figurs", {}, "figurs: no such key; did you mean figures?"),
        ("settings.concurency", 3, "settings.concurency: no such setting; did you mean concurrenc"),
        ("candidates.split.prefil", [], "candidates.split.prefil: no such key; did you mean pref"),
        ("candidates.split.prefill", "back", "candidates.split.prefill: need a list, have 'back'"),
        ("candidates.split.decode", ["a b"], "candidates.split.decode[0]: need 1 to 32 lowercase"),
        ("candidates", {}, "candidates: need a mapping, not an empty one, have an empty one"),
        ("candidates", {"A": {"decode": ["main"]}}, "candidates.A: need 1 to 40 lowercase lette"),
        ("settings.threads", 0, "settings.threads: need a whole number >= 1, have 0"),
        ("settings.threads", "2", "settings.threads: need a whole number, have '2'"),
        ("settings.seal", "tls", "settings.seal: need one of none, mac, aead, have 'tls'"),
        ("settings.rate", 0, "settings.rate: need a number > 0.0, have 0"),
        (
            "settings.rate",
            float("inf"),
            "settings.rate: need a finite number of at most 63 bits",
        ),
        ("vary.rate", [10**400], "vary.rate[0]: need a finite number of at most 63 bits"),
        ("load", {"seed": 2**63}, "load.seed: need a finite number of at most 63 bits"),
        ("question", "\ud800", "question: need text, have half a character"),
        ("cluster.lab.hosts.front", None, "cluster.lab.hosts.front: need a mapping, have nothing;"),
        ("cluster.lab.hosts.back.quota", 0.1, "cluster.lab.hosts.back.quota: need a number >= 0."),
        ("cluster.lab.hosts.back.memory", "2g", "cluster.lab.hosts.back.memory: need a size as 4G"),
        (
            "cluster.lab.hosts.back.cpus",
            "x",
            'cluster.lab.hosts.back.cpus: need any, or a list as "',
        ),
        ("cluster.lab.mtu", 9500, "cluster.lab.mtu: need a whole number <= 9216, have 9500"),
        (
            "model.hash",
            "sha256:1",
            "model.hash: need a blake3 digest: 64 digits of 0-9a-f, have 's",
        ),
        ("question", "-", "question: need it, have none"),
        ("question", "", "question: need text, not an empty one, have ''"),
        ("question", True, "question: need text, have true"),
        ("repetitions", 1000, "repetitions: need a whole number <= 100, have 1000"),
        ("figures", {}, "figures: need a mapping, not an empty one, have an empty one"),
        ("figures.gain.kind", "mean", "figures.gain.kind: need one of value, ratio, best, crossin"),
        ("figures.gain.off", {}, "figures.gain.off: no such key; did you mean of?"),
        ("figures.gain.of", "-", "figures.gain.of: need it, have none"),
        ("plots.0.y", "ttft_p50", "plots[0].y: need a list, have 'ttft_p50'"),
        ("vary.kv", [], "vary.kv: need a list, not an empty one, have an empty one"),
        ("vary.kv", ["f16", True], "vary.kv[1]: need a whole number or a number or text, have tr"),
    ],
)
def test_a_wrong_field_is_named(place, value, complaint):
    lines = refusals(changed(place, value))
    assert any(line.startswith(complaint) for line in lines), lines


def test_what_a_file_says_does_not_command_a_terminal():
    (line,) = refusals(fields() | {"\x1b[2J\n": 1})
    assert line.startswith(r"\x1b[2J\n: no such key; ")


def test_every_wrong_field_is_named_at_once():
    found = changed("settings.threads", 0)
    found["candidates"]["split"]["prefil"] = []
    del found["question"]
    assert [line.partition(":")[0] for line in refusals(found)] == [
        "candidates.split.prefil",
        "settings.threads",
        "question",
    ]


def test_what_yaml_takes_for_something_else_is_named(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("kind: serving\ncandidates: {on: {decode: [front]}}\nname: 2026-01-01\n")
    assert refusal_of(path).splitlines() == [
        f'{path}: candidates: need text as a key, have true: write "true"',
        f"{path}: name: need text, have a date: put it in quotes",
    ]


def test_the_smallest_quota_is_the_labs():
    assert not refusals(changed("cluster.lab.hosts.back.quota", MIN_QUOTA))
