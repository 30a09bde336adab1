"""A profile's file: read back whole and as it was measured, or refused with the field's name."""

import math
from dataclasses import dataclass

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from node_profiles import FINGERPRINT, node_profile

from hetero.errors import ConfigError
from hetero.profile import document
from hetero.profile.document import (
    MAX_FILE_BYTES,
    profile_name,
    read_node_profile,
    read_profile,
    require_model,
    write_profile,
)
from hetero.profile.link.report import Goodput, LinkProfile, PlainStream, Range
from hetero.profile.step_cost import plain_cost

PROFILE = node_profile()
KINDS = "node or machine or link"
FIELDS = ["kind", "format", *type(PROFILE).__struct_fields__]


@pytest.fixture
def path(tmp_path):
    written = tmp_path / "profiles" / "r730.yaml"
    write_profile(PROFILE, written)
    return written


def link_profile():
    one = Range(1.0, 0.9, 1.2)
    return LinkProfile(
        source="desktop",
        sink="r730",
        date="2026-11-02",
        model="llama-3.1-8b",
        transport="tcp",
        kv_k="q8_0",
        kv_v="q8_0",
        token_bytes=69632,
        tokens=2048,
        transfer_bytes=2048 * 69632,
        rtt_s=one,
        pack_bytes_per_s=one,
        plain=PlainStream(bytes_per_s=one, source_cores=one, sink_cores=one),
        goodput=[
            Goodput(
                seal="aead",
                connections=None,
                bytes_per_s=one,
                of_plain=one,
                source_cores=one,
                sink_cores=one,
                restore_s=one,
                connections_used=one,
                window_bytes=2**20,
            )
        ],
        versions={"source": {"hetero": "0.1"}},
    )


def refused(path):
    with pytest.raises(ConfigError) as error:
        read_profile(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def rewrite(path, *, digests=None, **changes):
    """The file with fields set, and its old digests unless told."""
    content = yaml.safe_load(path.read_text()) | changes
    content["digests"] |= digests or {}
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def with_right_digests(path, content):
    digests = {name: document._digest(value) for name, value in content.items()}
    path.write_text(yaml.safe_dump(content | {"digests": digests}, sort_keys=False))


def test_what_was_written_is_read_back(path):
    assert read_profile(path) == read_node_profile(path) == PROFILE
    assert [entry.name for entry in path.parent.iterdir()] == ["r730.yaml"]


def test_a_links_profile_is_read_back_and_is_no_nodes(tmp_path):
    path = tmp_path / "link.yaml"
    write_profile(link_profile(), path)
    assert read_profile(path) == link_profile()
    with pytest.raises(ConfigError, match="kind: need a node's profile, have a link's; measure"):
        read_node_profile(path)


# Any finite number and any text that a system can be named by, as YAML would tempt to misread.
NUMBERS = st.floats(min_value=1e-300, max_value=1e300)
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    [
        "null",
        "1e5",
        "2026-11-02",
        "yes",
        "0x10",
        "1:30",
        "~",
        "- a",
        "a: b",
        "",
        "é\u2028\x85",
        "<<",
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    TEXTS,
    st.lists(NUMBERS, min_size=2, max_size=4),
    st.dictionaries(TEXTS, st.none() | TEXTS, max_size=3),
)
def test_no_number_and_no_text_changes_on_the_way(tmp_path_factory, text, numbers, versions):
    path = tmp_path_factory.mktemp("profile") / "p.yaml"
    cost = plain_cost(range(1, len(numbers) + 1), numbers, pair_s=numbers[0], masked_s=0.0)
    replace = msgspec.structs.replace
    profile = replace(
        PROFILE,
        host=text,
        fits=[replace(fit, cost=cost) for fit in PROFILE.fits],
        provenance=replace(PROFILE.provenance, versions=versions, commit=text),
    )
    write_profile(profile, path)
    assert read_profile(path) == profile


def edited(value):
    """The first leaf of it, changed into another of its type."""
    match value:
        case dict() if value:
            name = next(iter(value))
            return value | {name: edited(value[name])}
        case list() if value:
            return [edited(value[0]), *value[1:]]
        case bool():
            return not value
        case int() | float():
            return value * 2 + 1
        case str():
            return value + "x"
        case _:
            return "x"


@pytest.mark.parametrize("field", FIELDS)
def test_an_edited_field_is_named(path, field):
    before = yaml.safe_load(path.read_text())[field]
    rewrite(path, **{field: edited(before)})
    assert refused(path).startswith(f"{field}: ")


@pytest.mark.parametrize("field", FIELDS)
def test_a_removed_field_is_named(path, field):
    content = yaml.safe_load(path.read_text())
    del content[field]
    path.write_text(yaml.safe_dump(content))
    assert refused(path).startswith(f"{field}: need")


@pytest.mark.parametrize("field", FIELDS)
def test_an_edited_digest_names_its_field(path, field):
    rewrite(path, digests={field: "0" * 16})
    assert refused(path).startswith(f"{field}: need what was measured, have it edited")


def test_one_digit_edited_in_the_text_is_refused(path):
    text = path.read_text()
    assert text.count("read_gb_s: 58.0") == 1
    path.write_text(text.replace("read_gb_s: 58.0", "read_gb_s: 68.0"))
    assert refused(path) == (
        "ceilings: need what was measured, have it edited; measure again, or take an unedited copy"
    )


def test_comments_and_order_are_not_content(path):
    content = yaml.safe_load(path.read_text())
    path.write_text("# the one in the cellar\n" + yaml.safe_dump(content, sort_keys=True))
    assert read_profile(path) == PROFILE


def test_a_truncated_file_is_never_accepted(path):
    whole = path.read_bytes()
    tail = whole.index(b"digests:")
    last = len(whole.rstrip())  # the line's end is no content
    for end in [*range(0, tail, 97), *range(tail, last)]:
        path.write_bytes(whole[:end])
        refused(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_refused_or_no_damage(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "p.yaml"
    write_profile(PROFILE, path)
    text = bytearray(path.read_bytes())
    first = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(0, 40))
    text[first : first + length] = data.draw(st.binary(max_size=12))
    path.write_bytes(text)
    try:
        found = read_profile(path)
    except ConfigError:
        return
    assert found == PROFILE


@dataclass
class Foreign:
    text: bytes
    complaint: str


FOREIGN = {
    "nothing": Foreign(b"", "need a profile's YAML, have none"),
    "empty document": Foreign(b"---\n", "need a profile's YAML, have none"),
    "list": Foreign(b"- a\n- b\n", "need a profile's YAML, have ['a', 'b']"),
    "text": Foreign(b"hello", "need a profile's YAML, have 'hello'"),
    "recipe": Foreign(b"model: demo\nworkload: {prompts: 3}\n", f"kind: need {KINDS}, have none"),
    "other kind": Foreign(b"kind: plan\n", f"kind: need {KINDS}, have 'plan'"),
    "kind of kinds": Foreign(b"kind: [node]\n", f"kind: need {KINDS}, have ['node']"),
    "other format": Foreign(
        b"kind: node\nformat: 99\n",
        "format: need 1, have 99; measure again with this version of hetero",
    ),
    "no digests": Foreign(
        b"kind: node\nformat: 1\n",
        "digests: need those it was written with, have none; truncated?",
    ),
    "GGUF": Foreign(b"GGUF\x03\x00\x00\x00" + bytes(range(256)), "need a profile's YAML, have: "),
    "no UTF-8": Foreign(b"kind: \xff\xfe", "need a profile's YAML, have: "),
    "two documents": Foreign(b"kind: node\n---\nkind: node\n", "need a profile's YAML, have: "),
    "alias to itself": Foreign(b"&a [*a]", "need a profile's YAML, have: an alias or a tag"),
    "tag": Foreign(b"!!timestamp x", "need a profile's YAML, have: an alias or a tag"),
    "python": Foreign(
        b"!!python/object/apply:os.abort []", "need a profile's YAML, have: an alias or a tag"
    ),
    "no date": Foreign(b"kind: 2026-99-99", "need a profile's YAML, have: month must be"),
    "long number": Foreign(b"kind: " + b"9" * 5000, "need a profile's YAML, have: Exceeds"),
    "unhashable key": Foreign(b"? [a]\n: b\n", "need a profile's YAML, have: "),
    "deep lists": Foreign(b"[" * 10**6, "need a profile's YAML, have: more than 16 levels"),
    "deep mappings": Foreign(b"{a: " * 10**5, "need a profile's YAML, have: more than 16 levels"),
    "deep blocks": Foreign(b"- " * 10**6, "need a profile's YAML, have: more than 16 levels"),
    "odd keys": Foreign(
        b"kind: node\nformat: 1\n1: a\nnull: b\ndigests: {1: a, 2: b}\n",
        "1: need what was measured",
    ),
    "keys that no JSON has": Foreign(
        b"kind: node\nformat: 1\nhost: {2026-01-01: 1, null: 2}\ndigests: {format: x}\n",
        "format: need what was measured",
    ),
    "large": Foreign(b" " * (MAX_FILE_BYTES + 1), f"need a profile's YAML, have more than {2**24}"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_refused(tmp_path, name):
    path = tmp_path / "f.yaml"
    path.write_bytes(FOREIGN[name].text)
    assert refused(path).startswith(FOREIGN[name].complaint)


def test_what_has_no_digest_is_an_edit(path):
    rewrite(path, host={None: 1}, digests={"host": ""})
    assert refused(path).startswith("host: need what was measured")


def test_files_that_can_not_be_read_or_written_are_named(tmp_path):
    assert refused(tmp_path / "missing.yaml") == "can't read it: no such file or directory"
    assert refused(tmp_path) == "can't read it: is a directory"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't write it: "):
        write_profile(PROFILE, tmp_path / "file" / "p.yaml")


def test_an_added_field_is_refused_with_and_without_a_digest(path):
    rewrite(path, overclocked=True)
    assert refused(path) == "overclocked: need a field of a profile, have one added to it"
    rewrite(path, digests={"overclocked": document._digest(True)})
    assert refused(path) == (
        "Object contains unknown field overclocked; measure again with this version of hetero"
    )


def test_a_file_of_a_version_with_other_fields_says_to_measure_again(path):
    content = yaml.safe_load(path.read_text())
    del content["digests"], content["model"]["hidden_size"]
    with_right_digests(path, content)
    assert refused(path) == (
        "model: Object missing required field hidden_size; measure again with this version of "
        "hetero"
    )


def test_a_file_cut_in_its_middle_is_asked_about(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"read_gb_s") + 5])
    assert refused(path).endswith("; cut short, or not a profile?")


@pytest.mark.parametrize(
    ("model", "quantization", "name"),
    [
        ("llama-3.2-1b", "Q4_K_M", "r730_llama-3.2-1b-q4_k_m.yaml"),
        ("llama-3.2-1b", "Q8_0", "r730_llama-3.2-1b-q8_0.yaml"),
        ("Llama 3.2 1B.Q8_0", "Q8_0", "r730_Llama-3.2-1B.Q8_0.yaml"),
        ("llama-3.2-1b-q4_k_m", "q4_k_m", "r730_llama-3.2-1b-q4_k_m.yaml"),
        ("llama-bf16", "F16", "r730_llama-bf16-f16.yaml"),
        ("llama-q4_k_m", "Q4_K", "r730_llama-q4_k_m-q4_k.yaml"),
    ],
)
def test_quants_of_one_model_have_files_of_their_own(model, quantization, name):
    assert profile_name("r730", model, quantization) == name


def test_a_profile_of_another_model_is_refused_with_what_differs(path):
    require_model(PROFILE, FINGERPRINT, path)
    other = msgspec.structs.replace(FINGERPRINT, tensors="55" * 32, tokenizer="66" * 32)
    with pytest.raises(ConfigError, match=r"whose tokenizer and tensors differ; .* --any-model"):
        require_model(PROFILE, other, path)
    shape = msgspec.structs.replace(PROFILE.model, fingerprint=None)
    with pytest.raises(ConfigError, match=r"random weights of the shape llama-3.1-8b-q4_k_m"):
        require_model(msgspec.structs.replace(PROFILE, model=shape), FINGERPRINT, path)


# Where a number stands in the file, and what is no number for that place.
NAN, INF = math.nan, math.inf
SENSELESS = [
    ("model.num_parameters", 0),
    ("model.weight_bytes", -1),
    ("model.num_layers", 1.5),
    ("ceilings.read_gb_s", 0.0),
    ("ceilings.read_gb_s", NAN),
    ("ceilings.read_gb_s", INF),
    ("ceilings.read_gb_s", "58.0"),
    ("ceilings.triad_gb_s", -1.0),
    ("ceilings.one_core.copy_gb_s", 0.0),
    ("ceilings.disks.0.write_gb_s", NAN),
    ("fits.0.cost.pair_s.5", -1e-9),
    ("fits.0.cost.masked_s", INF),
    ("fits.0.cost.rows_s", [0.1, NAN, 0.3]),
    ("fits.1.cost.rows_s", [0.1]),
    ("fits.1.cost.rows", [1, 16, 4]),
    ("fits.1.cost.rows", [4, 4, 16]),
    ("fits.1.cost.rows", []),
    ("fits.0.request_s", -0.001),
    ("fits.0.chunk_tokens", 0),
    ("fits.0.interval", [1.01, 1.05]),
    ("fits.0.interval", [0.9, 0.95]),
    ("fits.0.interval", [NAN, 1.05]),
    ("fits.0.interval", [0.9, 1.0, 1.1]),
    ("fits.0.source", "guessed"),
    ("fits.0.role", "router"),
    ("fits.0.error.bias", NAN),
    ("fits.0.error.p90", -0.1),
    ("fits.0.samples.3.seconds", 0.0),
    ("fits.0.samples.3.speed", 0.0),
    ("fits.0.samples.3.work.rows", 0),
    ("codecs.0.pack_gb_s", 0.0),
    ("codecs.1.restore_s", -1.0),
    ("co_runs.0.slowdown", 0.0),
    ("settings.decode.threads", 0),
    ("settings.decode.load", "magic"),
    ("settings.decode.interleave", [-1]),
    ("noise.others_cpu_share", -0.1),
    ("noise.speed", [0.9]),
    ("soak.seconds", INF),
    ("provenance.budget_s", NAN),
]


@pytest.mark.parametrize(("place", "value"), SENSELESS)
def test_a_number_that_makes_no_sense_is_refused_by_name(path, place, value):
    content = yaml.safe_load(path.read_text())
    del content["digests"]
    *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    inner = content
    for part in way:
        inner = inner[part]
    inner[last] = value
    with_right_digests(path, content)
    complaint = refused(path)
    assert "need " in complaint or "Invalid" in complaint
    # Of what goes by name, msgspec tells the section only.
    named = [part for part in place.split(".") if not part.isdigit() and part != "decode"]
    assert all(part in complaint for part in named), complaint


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
@pytest.mark.parametrize("place", ["ceilings.tflops", "noise.pilot_s"])
def test_a_rate_by_name_is_checked_too(path, place, value):
    content = yaml.safe_load(path.read_text())
    del content["digests"]
    section, field = place.split(".")
    content[section][field]["other"] = value
    with_right_digests(path, content)
    assert refused(path).startswith(f"{place}[...]: need float")


def test_structs_check_what_no_type_can_say():
    with pytest.raises(ValueError, match="rows: need one knot or more, ascending, have"):
        plain_cost([2, 1], [0.1, 0.1], pair_s=0.0, masked_s=0.0)
    with pytest.raises(ValueError, match=r"interval: need one that holds 1, have 0.8 to 0.9"):
        msgspec.structs.replace(PROFILE.fits[0], interval=(0.8, 0.9))
    with pytest.raises(ValueError, match="spread of read_gb_s: need lowest first"):
        msgspec.structs.replace(PROFILE.ceilings, spread={"read_gb_s": (2.0, 1.0)})


def test_optional_parts_may_be_missing(tmp_path):
    bare = msgspec.structs.replace(PROFILE, fits=[], co_runs=[], settings={}, noise=None, soak=None)
    write_profile(bare, tmp_path / "bare.yaml")
    assert read_profile(tmp_path / "bare.yaml") == bare
