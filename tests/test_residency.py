"""What fits where: sums worked by hand, for a model of 100 + 10 GiB-sized parts."""

import gguf
import pytest
from tiny_models import write_tiny_model

from hetero.errors import PlanError
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.prefill.residency import (
    FreeMemory,
    WeightBytes,
    WorkBytes,
    plan_memory,
    weight_bytes,
    work_bytes,
)

GIB = 2**30
# 16 GiB of 16-bit layers in 32, stored in 4.5; half a GiB of vocabulary.
WEIGHTS = WeightBytes(
    dense=16 * GIB,
    dense_layer=GIB // 2,
    stored=9 * GIB // 2,
    stored_layer=GIB // 7,
    vocabulary=GIB // 2,
    host_blobs=5 * GIB,
)
# 8,192 cells take 1 GiB; a chunk of 2,048 takes 1/4 GiB. The margin is half a GiB.
WORK = WorkBytes(per_cell=GIB // 8192, per_chunk_token=GIB // 8192)


def plan(gpu, *, wanted="auto", host=64, undequantizable=None, largest_chunk=8192):
    return plan_memory(
        "m",
        wanted,
        WEIGHTS,
        WORK,
        FreeMemory(
            gpu_bytes=int(gpu * GIB), host_bytes=int(host * GIB), undequantizable=undequantizable
        ),
        context_tokens=8192,
        chunk_tokens=512,
        largest_chunk=largest_chunk,
    )


# Least work: 1 GiB of KV + 1/16 of activations + 1/2 of margin.
WORK_GIB = 1 + 1 / 16 + 1 / 2


@pytest.mark.parametrize(
    ("gpu", "residency"),
    [
        (16.5 + WORK_GIB, "resident"),
        (16.5 + WORK_GIB - 0.01, "quantized"),
        (0.5 + 4.5 + 1 + WORK_GIB, "quantized"),
        (0.5 + 4.5 + 1 + WORK_GIB - 0.01, "streamed"),
        (0.5 + 2 / 7 + 1 + WORK_GIB, "streamed"),
    ],
)
def test_the_fastest_residency_that_fits_is_taken(gpu, residency):
    assert plan(gpu).residency == residency


def test_what_fits_no_way_is_refused_with_need_and_have():
    with pytest.raises(PlanError) as error:
        plan(3)
    message = str(error.value)
    assert "resident: need 18.1 GiB of GPU memory (the KV of 8192 tokens takes 1.0 GiB)" in message
    assert "quantized: need 7.6 GiB of GPU memory" in message
    assert "streamed: need 3.3 GiB of GPU memory" in message
    assert message.count("have 3.0 GiB") == 3
    assert "use a shorter context" in message


def test_streaming_needs_host_memory_too():
    with pytest.raises(PlanError, match=r"streamed: need 5\.0 GiB of host memory, have 4\.0 GiB"):
        plan(4, host=4)


def test_blocks_without_a_kernel_leave_only_resident():
    with pytest.raises(PlanError, match="quantized: no kernel dequantizes IQ2_XS"):
        plan(10, undequantizable="no kernel dequantizes IQ2_XS")
    assert plan(40, undequantizable="no kernel dequantizes IQ2_XS").residency == "resident"


def test_a_wish_is_kept_or_refused():
    assert plan(40, wanted="streamed").residency == "streamed"
    with pytest.raises(PlanError, match="resident: need"):
        plan(10, wanted="resident")


def test_the_reason_says_what_was_passed_over():
    reason = plan(12).reason
    assert reason.startswith("m: weights quantized: takes 7.6 GiB of 12.0 GiB GPU memory")
    assert "not resident: need 18.1 GiB" in reason


def test_spare_memory_goes_to_a_second_prompt_and_then_to_larger_chunks():
    least = 16.5 + WORK_GIB
    assert (plan(least).num_cells, plan(least).chunk_tokens) == (8192, 512)
    assert (plan(least + 1).num_cells, plan(least + 1).chunk_tokens) == (16384, 512)
    # 2,048 tokens take 3/16 more than 512.
    assert plan(least + 1 + 3 / 16).chunk_tokens == 2048
    assert plan(least + 9).chunk_tokens == 8192
    assert plan(least + 9, largest_chunk=4096).chunk_tokens == 4096


def test_weights_are_counted_from_the_file(tmp_path):
    path = write_tiny_model(tmp_path / "m.gguf", weight_type="q8_0", num_layers=3)
    file = GGUFFile.open(path)
    spec = gguf_to_spec(file)
    weights = weight_bytes(file, spec, 2, stored_vocabulary=True)
    layer = [tensor for name, tensor in file.tensors.items() if name.startswith("blk.0.")]
    values = sum(tensor.num_rows * tensor.shape[-1] for tensor in layer)
    assert weights.dense_layer == 2 * values
    assert weights.dense == 3 * weights.dense_layer
    assert sum(t.num_bytes for t in layer) <= weights.stored_layer
    assert weights.stored_layer < sum(t.num_bytes for t in layer) + 256 * len(layer)
    embedding = file.tensors["token_embd.weight"]
    assert embedding.type == gguf.GGMLQuantizationType.Q8_0
    assert weights.vocabulary == 2 * embedding.num_bytes  # the output matrix is its size
    whole = weight_bytes(file, spec, 2, stored_vocabulary=False)
    assert whole.vocabulary == 2 * 2 * embedding.shape[0] * embedding.shape[1]


def test_a_cell_holds_k_and_v_of_every_layer(tmp_path):
    file = GGUFFile.open(write_tiny_model(tmp_path / "m.gguf", num_layers=3))
    spec = gguf_to_spec(file)
    assert work_bytes(spec, 2).per_cell == 3 * spec.num_kv_heads * 2 * spec.head_dim_k * 2
