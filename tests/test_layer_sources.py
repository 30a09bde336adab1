"""Layers made just in time are those that a resident model holds, however the passes go."""

import pytest
import torch
from gpu_or_interpreter import DEVICE
from tiny_models import write_tiny_model

from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.prefill.layer_sources import StagedLayers
from hetero.prefill.torch_weights import FUSED
from hetero.prefill.weight_loading import WeightLoader

# In float32 a dequantized value is the same wherever it was computed.
DTYPE = torch.float32
SMALL = {"hidden": 64, "num_heads": 2, "num_kv_heads": 1, "ffn": 64, "vocab": 260}


def load(path, residency, on_device=True):
    file = GGUFFile.open(path)
    loader = WeightLoader(
        file, gguf_to_spec(file), DTYPE, torch.device(DEVICE), on_device=on_device
    )
    return loader.load(residency)


def copied(layer):
    """A layer's tensors by name: staged ones are valid until the next layer only."""
    tensors = {name: getattr(layer, name).weight_OI.clone() for name in FUSED}
    tensors |= {f"{name}.bias": getattr(layer, name).bias_O for name in FUSED}
    for name in ("attention_norm_E", "q_norm_D", "k_norm_D", "ffn_norm_E"):
        tensors[name] = getattr(layer, name)
    return tensors


def same(have, want):
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        if tensor is None:
            assert have[name] is None
        else:
            assert torch.equal(have[name], tensor), name


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_model(
        tmp_path_factory.mktemp("staged") / "m.gguf",
        architecture="qwen2",
        weight_type="q8_0",
        num_layers=3,
        **SMALL,
    )


@pytest.fixture(scope="module")
def resident(path):
    return load(path, "resident", on_device=False)


@pytest.mark.parametrize("residency", ["resident", "quantized", "streamed"])
def test_every_pass_yields_the_layers_of_the_file(path, resident, residency):
    weights = load(path, residency)
    want = [copied(layer) for layer in resident.layers.layers()]
    for _ in range(3):
        layers = [copied(layer) for layer in weights.layers.layers()]
        assert len(layers) == 3
        for have, expected in zip(layers, want, strict=True):
            same(have, expected)


@pytest.mark.parametrize("num_layers_seen", [1, 2, 3])
def test_an_abandoned_pass_leaves_the_next_one_right(path, resident, num_layers_seen):
    weights = load(path, "quantized")
    abandoned = weights.layers.layers()
    for _ in range(num_layers_seen):
        next(abandoned)
    abandoned.close()
    for have, want in zip(weights.layers.layers(), resident.layers.layers(), strict=True):
        same(copied(have), copied(want))


def test_a_layer_stays_as_it_is_while_the_next_is_made(path, resident):
    weights = load(path, "quantized")
    assert isinstance(weights.layers, StagedLayers)
    wanted = [copied(layer) for layer in resident.layers.layers()]
    for have, want in zip(weights.layers.layers(), wanted, strict=True):
        # By now the next one is in the other slot.
        same(copied(have), want)


def test_a_model_of_one_layer_has_one_slot(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", num_layers=1, weight_type="q8_0", **SMALL)
    (want,) = (copied(layer) for layer in load(path, "resident", on_device=False).layers.layers())
    weights = load(path, "streamed")
    for _ in range(2):
        (have,) = (copied(layer) for layer in weights.layers.layers())
        same(have, want)


@pytest.mark.parametrize("weight_type", ["q4_k", "q6_k", "f16"])
def test_stored_vocabulary_gives_rows_and_logits_of_the_whole(tmp_path, weight_type):
    path = write_tiny_model(
        tmp_path / "m.gguf", num_layers=1, weight_type=weight_type, vocab=300, ffn=256
    )
    stored = load(path, "quantized")
    whole = load(path, "resident", on_device=False)
    tokens_T = torch.tensor([0, 299, 7, 7], device=DEVICE)
    assert torch.equal(stored.embedding.rows(tokens_T), whole.embedding.rows(tokens_T))
    x_NE = torch.randn(3, 256, dtype=DTYPE, device=DEVICE)
    have, want = stored.output.logits(x_NE), whole.output.logits(x_NE)
    assert have.dtype == torch.float32
    torch.testing.assert_close(have, want)
