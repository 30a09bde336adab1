"""The kernel benchmark's arithmetic, against values computed by hand and against the engine."""

from collections import deque
from types import SimpleNamespace

import gguf
from tiny_models import write_tiny_model
from torch.utils.flop_counter import FlopCounterMode

from hetero.experiment.kernel_bench import physics
from hetero.experiment.models import spec_of
from hetero.model.gguf_file import GGUFFile
from hetero.prefill import attention
from hetero.prefill.engine import read_alone
from hetero.prefill.torch_setup import TorchOptions, make_torch_engine


def test_each_token_sees_its_prompt_up_to_itself():
    assert physics.visible_pairs(0, 4) == 1 + 2 + 3 + 4
    assert physics.visible_pairs(2, 4) == 3 + 4
    assert physics.visible_pairs(0, 4096) == 8_390_656


def test_attention_multiplies_and_adds_twice_per_dim_and_pair():
    # One head of two dims, one pair: 2 multiplications and 2 additions, then as many again.
    assert physics.attention_flops(1, 2, 1) == 8
    assert physics.attention_flops(32, 128, 8_390_656) == 137_472_507_904


def test_matrix_products_and_streamed_steps():
    assert physics.matmul_flops(8192, 8192, 8192) == 2**40
    assert physics.streamed_step_s(50, 200, bytes_per_s=25, flops_per_s=200) == 2
    assert physics.streamed_step_s(50, 600, bytes_per_s=25, flops_per_s=200) == 3


def test_bytes_are_counted_once_in_and_once_out():
    # 1024 bf16 values; 32 blocks of 34 bytes, or as many f16 values.
    assert physics.pack_bytes(1, 1024, "q8_0", 2) == 2048 + 1088
    assert physics.pack_bytes(10, 1024, "f16", 2) == 10 * 4096
    # 58,720,256 values in blocks of 256, 144 bytes each.
    kind = gguf.GGMLQuantizationType.Q4_K
    assert physics.dequantize_bytes(4096 * 14336, kind, 2) == 33_030_144 + 117_440_512
    assert physics.norm_bytes(10, 100, 2) == 2 * (1000 + 1000 + 100)
    assert physics.add_norm_bytes(10, 100, 2) == 2 * (4 * 1000 + 100)
    assert physics.silu_mul_bytes(10, 100, 2) == 2 * (2000 + 1000)
    # 4 heads of 4 dims in and out, 2 cosines and 2 sines of 4 bytes, a position and a cell.
    assert physics.rope_bytes(1, 2, 1, 4, 2) == 32 + 32 + 16 + 8


def test_a_small_models_operations_by_hand():
    spec = SimpleNamespace(
        num_layers=2,
        hidden_size=4,
        num_heads=2,
        num_kv_heads=1,
        head_dim_k=2,
        head_dim_v=2,
        ffn_size=5,
        vocab_size=7,
    )
    qkv, rest = 4 * (4 + 4), 4 * (4 + 15)
    # Three tokens: both layers' Q, K and V; the rest of the last layer, and the output, once.
    weights = 2 * 3 * qkv + 3 * rest + rest + 4 * 7
    assert physics.prefill_flops(spec, 3) == 2 * weights + 4 * 2 * 2 * (6 + 3)


def test_the_engine_computes_the_operations_that_are_counted(tmp_path, monkeypatch):
    path = write_tiny_model(tmp_path / "m.gguf", weight_type="f32")
    spec, num_tokens = spec_of(path), 40
    pairs = []

    def unattended(q_THD, k_PGD, v_PGD):
        pairs.append(physics.visible_pairs(len(k_PGD) - len(q_THD), len(k_PGD)))
        return q_THD

    monkeypatch.setattr(attention, "_sdpa", unattended)
    options = TorchOptions(context_tokens=64, chunk_tokens=64)
    engine = make_torch_engine(path, ("f16", "f16"), options)
    with FlopCounterMode(display=False) as counter:
        deque(read_alone(engine, engine.start(range(num_tokens))), maxlen=0)
    attended = physics.attention_flops(spec.num_heads, spec.head_dim_k, sum(pairs))
    assert physics.prefill_flops(spec, num_tokens) == counter.get_total_flops() + attended


def test_streamed_bytes_are_the_layers_matrices(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", weight_type="q8_0")
    tensors = gguf.GGUFReader(path).tensors
    matrices = [t for t in tensors if t.name.startswith("blk.") and len(t.shape) > 1]
    assert physics.stored_layer_bytes(GGUFFile.open(path)) == sum(t.n_bytes for t in matrices)
