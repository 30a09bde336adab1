"""How many experts a step wakes: on a model whose router's answers are known."""

import gguf
import msgspec
import numpy as np
import pytest
from node_profiles import node_profile
from tiny_models import write_tiny_model

from hetero.cli import main
from hetero.errors import EngineError
from hetero.kv.types import kv_type
from hetero.llama.batch import Batch
from hetero.llama.context import Context, ContextConfig
from hetero.llama.experts import RoutedExperts
from hetero.llama.model import Model
from hetero.model.gguf_file import GGUFFile
from hetero.model.shapes import Shape, tensor_shapes
from hetero.model.spec import gguf_to_spec
from hetero.model.synth import add_metadata
from hetero.profile.document import read_profile, write_profile
from hetero.profile.node.experts import _passages, mean_union, measure_experts
from hetero.profile.node_profile import ExpertUnion
from hetero.profile.node_report import tables

NUM_EXPERTS, NUM_USED = 16, 3

# Nothing is added to a token's embedding on its way through the layers, so each router sees the
# token alone, and takes the experts that its embedding names.
SHAPE = Shape(
    name="tiny-routed",
    architecture="qwen3moe",
    num_layers=2,
    hidden_size=64,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    ffn_size=32,
    vocab_size=512,
    context_length=1024,
    norm_eps=1e-6,
    rope_base=10000.0,
    qk_norm=True,
    num_experts=NUM_EXPERTS,
    num_experts_used=NUM_USED,
    expert_ffn_size=32,
)


def experts_of(token, layer):
    """Of the first layer t, t + 1, t + 2; of the second three times that, modulo their number."""
    return {(1 + 2 * layer) * (token + step) % NUM_EXPERTS for step in range(NUM_USED)}


def tensor(name, dims, rng):
    values = 0.1 * rng.standard_normal(dims, dtype=np.float32)
    if name.endswith("norm.weight"):
        return np.ones(dims, np.float32)
    if "attn_output" in name or "ffn_down" in name:
        return np.zeros(dims, np.float32)
    if name == "token_embd.weight":
        values[:, :NUM_EXPERTS] = 0
        for token in range(dims[0]):
            for step in range(NUM_USED):
                values[token, (token + step) % NUM_EXPERTS] = 3 - step
    if "ffn_gate_inp" in name:
        layer = int(name.split(".")[1])
        values[:] = 0
        for place in range(NUM_EXPERTS):
            values[(1 + 2 * layer) * place % NUM_EXPERTS, place] = 1
    return values


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "routed.gguf"
    writer = gguf.GGUFWriter(path, SHAPE.architecture)
    add_metadata(writer, SHAPE, gguf.LlamaFileType.ALL_F32)
    rng = np.random.default_rng(0)
    for name, dims in tensor_shapes(SHAPE).items():
        writer.add_tensor(name, tensor(name, dims, rng))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model(path):
    with Model(path) as model:
        yield model


@pytest.fixture(scope="module")
def spec(path):
    return gguf_to_spec(GGUFFile.open(path))


def measured(model, spec, *, num_sequences=8, is_random=False):
    return measure_experts(
        model, spec, num_sequences=num_sequences, num_threads=1, is_random=is_random
    )


def test_a_rigged_router_is_read_as_it_was_rigged(model):
    tokens = [5, 90, 14, 300, 31, 77, 400]
    routed = RoutedExperts()
    f16 = kv_type("f16").ggml_id
    config = ContextConfig(
        num_sequences=len(tokens),
        tokens_per_sequence=8,
        unified=True,
        k_ggml_type=f16,
        v_ggml_type=f16,
        num_threads=1,
    )
    batch = Batch(len(tokens))
    batch.num_rows = len(tokens)
    batch.tokens[:] = tokens
    batch.sequences[:] = np.arange(len(tokens))
    batch.wants_logits[:] = 1
    with Context(model, config, routed) as context:
        context.decode(batch)
    layers = routed.take()
    assert sorted(layers) == [0, 1]
    for layer, ids in layers.items():
        assert [set(row) for row in ids.tolist()] == [experts_of(t, layer) for t in tokens]
    assert routed.take() == {}


def test_the_union_is_what_the_passages_tokens_say(model, spec):
    passages = _passages(model, 8)
    found = measured(model, spec)
    assert (found.num_experts, found.num_used) == (NUM_EXPERTS, NUM_USED)
    assert found.rows == [1, 2, 4, 8]
    for rows, experts in zip(found.rows, found.experts, strict=True):
        counts = [
            len(
                set().union(
                    *(experts_of(text[position], layer) for text in passages[first:][:rows])
                )
            )
            for layer in range(2)
            for position in range(16, min(map(len, passages)))
            for first in range(0, 8, rows)
        ]
        assert experts == pytest.approx(np.mean(counts))
    assert found.experts[0] == NUM_USED
    assert found.source == "measured"


def test_every_batch_has_passages_of_its_own(model, spec):
    """None twice, and as many as most nodes have slots."""
    passages = [tuple(tokens) for tokens in _passages(model, 256)]
    assert len(set(passages)) == len(passages) == 32
    assert {len(tokens) for tokens in passages} == {28}
    assert measured(model, spec, num_sequences=256).rows == [1, 2, 4, 8, 16, 32]
    assert measured(model, spec, num_sequences=6).rows == [1, 2, 4, 6]
    assert measured(model, spec, num_sequences=1).rows == [1]


def test_rows_that_do_not_fill_a_part_are_left_out():
    one_layer = np.array([[[0, 1], [1, 2], [7, 6]]], np.int32)
    assert mean_union([one_layer], 1, 8) == 2
    assert mean_union([one_layer], 2, 8) == 3
    assert mean_union([one_layer], 3, 8) == 5


def test_a_random_router_says_nothing_of_text(model, spec):
    assert measured(model, spec, is_random=True).source == "estimated"


def test_a_dense_model_has_no_experts(tmp_path):
    path = write_tiny_model(tmp_path / "dense.gguf")
    with Model(path) as model:
        assert measured(model, gguf_to_spec(GGUFFile.open(path))) is None


def test_a_model_that_tells_of_no_routing_is_refused(tmp_path, spec):
    complaint = "qwen3moe: need the layers' routing, have none told"
    with (
        Model(write_tiny_model(tmp_path / "dense.gguf")) as model,
        pytest.raises(EngineError, match=complaint),
    ):
        measured(model, spec)


def test_a_nodes_profile_has_the_experts_of_its_slots(path, tmp_path, capsys):
    out = tmp_path / "p.yaml"
    sizes = ["--budget", "5", "--slots", "2", "--context", "256", "--chunk", "32", "--threads", "1"]
    command = ["profile", "node", "-m", str(path), *sizes, "--kv", "f16", "-o", str(out)]
    assert main.main(command) == 0
    found = read_profile(out).experts
    assert (found.source, found.rows, found.experts[0]) == ("measured", [1, 2], NUM_USED)
    assert f"experts of a layer, of {NUM_EXPERTS}, that a step wakes" in capsys.readouterr().out


UNION = ExpertUnion(
    source="measured", num_experts=128, num_used=8, rows=[1, 2, 4], experts=[8.0, 14.5, 25.25]
)


def test_a_profile_keeps_and_shows_its_experts(tmp_path):
    path = tmp_path / "p.yaml"
    write_profile(msgspec.structs.replace(node_profile(), experts=UNION), path)
    profile = read_profile(path)
    assert profile.experts == UNION
    [table] = [table for table in tables(profile, with_estimates=False) if "experts" in table.title]
    assert table.title == "experts of a layer, of 128, that a step wakes"
    assert table.heads == ["rows", "1", "2", "4", "source"]
    assert table.rows == [
        ["text", "8.0", "14.5", "25.2", "measured"],
        ["if drawn evenly", "8.0", "15.5", "29.1", ""],
    ]


@pytest.mark.parametrize(
    ("experts", "complaint"),
    [
        ([8.0, 14.5], "need one for each of 3 rows, have 2"),
        ([8.0, 17.0, 20.0], "experts of 2 rows: need 8 to 16, have 17"),
        ([7.0, 14.5, 20.0], "experts of 1 rows: need 8 to 8, have 7"),
    ],
)
def test_unions_that_can_not_be_are_refused(experts, complaint):
    content = msgspec.to_builtins(UNION) | {"experts": experts}
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert(content, ExpertUnion)
