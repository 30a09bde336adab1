from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from tiny_models import write_tiny_model

from hetero.errors import ModelError
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.prefill.torch_weights import check_supported
from hetero.prefill.weight_loading import WeightLoader

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("w") / "m.gguf", num_layers=1, tied=True)


def load(file, dtype=torch.float32):
    return WeightLoader(file, gguf_to_spec(file), dtype, CPU).load()


def with_tensors(path, **changes):
    """The file with its tensor table changed: name -> info, or None to lose it."""
    file = GGUFFile.open(path)
    tensors = {**file.tensors, **{name.replace("__", "."): info for name, info in changes.items()}}
    return replace(file, tensors={name: info for name, info in tensors.items() if info})


@pytest.mark.parametrize("weight_type", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_weight_is_dequantized_into_its_place(tmp_path, weight_type, dtype):
    path = write_tiny_model(
        tmp_path / "m.gguf", architecture="qwen2", weight_type=weight_type, num_layers=2
    )
    want = {
        tensor.name: torch.from_numpy(
            gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        ).to(dtype)
        for tensor in gguf.GGUFReader(path).tensors
    }
    weights = load(GGUFFile.open(path), dtype)
    have = {
        "token_embd.weight": weights.embedding.weight_VE,
        "output_norm.weight": weights.output_norm_E,
        "output.weight": weights.output.weight_VE,
    }
    for index, layer in enumerate(weights.layers.layers()):
        fused = {
            "qkv": (layer.qkv, ["attn_q", "attn_k", "attn_v"]),
            "attention_output": (layer.attention_output, ["attn_output"]),
            "gate_up": (layer.gate_up, ["ffn_gate", "ffn_up"]),
            "down": (layer.down, ["ffn_down"]),
        }
        have[f"blk.{index}.attn_norm.weight"] = layer.attention_norm_E
        have[f"blk.{index}.ffn_norm.weight"] = layer.ffn_norm_E
        for linear, names in fused.values():
            sizes = [len(want[f"blk.{index}.{name}.weight"]) for name in names]
            for name, part in zip(names, linear.weight_OI.split(sizes), strict=True):
                have[f"blk.{index}.{name}.weight"] = part
            if linear.bias_O is not None:
                for name, part in zip(names, linear.bias_O.split(sizes), strict=True):
                    have[f"blk.{index}.{name}.bias"] = part
    assert have.keys() == want.keys()
    assert all(torch.equal(have[name], want[name]) for name in want)


def test_tied_output_shares_the_embeddings_memory(tiny):
    weights = load(GGUFFile.open(tiny))
    assert weights.output.weight_VE.data_ptr() == weights.embedding.weight_VE.data_ptr()


def test_missing_tensor_is_named(tiny):
    with pytest.raises(ModelError, match=r"need tensor 'blk.0.attn_k.weight', the file has none"):
        load(with_tensors(tiny, blk__0__attn_k__weight=None))


def test_unknown_tensor_is_refused_because_it_would_change_the_result(tiny):
    norm = GGUFFile.open(tiny).tensors["output_norm.weight"]
    with pytest.raises(ModelError, match=r"'blk.0.attn_gate.weight' is not .* --prefill llama"):
        load(with_tensors(tiny, blk__0__attn_gate__weight=norm))


def test_wrong_shape_is_refused(tiny):
    norm = GGUFFile.open(tiny).tensors["output_norm.weight"]
    with pytest.raises(ModelError, match=r"'output_norm.weight': need shape \(256,\), have \(9,\)"):
        load(with_tensors(tiny, output_norm__weight=replace(norm, shape=(9,))))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"architecture": "gemma3"}, r"architecture 'gemma3' \(it knows llama, qwen2, qwen3\)"),
        ({"num_experts": 8}, "architecture 'llama' with 8 experts"),
        ({"sliding_window": 4096}, "architecture 'llama' with a sliding window"),
        ({"head_dim_v": 32}, "K heads of 64 dims with V heads of 32"),
        ({"num_heads": 5}, "5 heads over 2 KV heads"),
        ({"scaling": "longrope"}, "architecture 'llama' with longrope scaling"),
        ({"dim": 66}, "RoPE over 66 of 64 dims"),
        ({"dim": 33}, "RoPE over 33 of 64 dims"),
    ],
)
def test_what_torch_can_not_compute_is_named(tiny, changes, problem):
    spec = gguf_to_spec(GGUFFile.open(tiny))
    check_supported(spec)
    if changes.keys() & {"scaling", "dim"}:
        changes = {"rope": replace(spec.rope, **changes)}
    message = f"tiny-llama: torch can't prefill {problem}: use --prefill llama"
    with pytest.raises(ModelError, match=message):
        check_supported(replace(spec, **changes))
