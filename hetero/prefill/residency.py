"""Where a model's weights live while prompts are read, decided by arithmetic on free memory.

*resident*: every matrix in GPU memory, in the type that computes. *quantized*: as stored in the
file, a layer dequantized while the one before computes. *streamed*: as stored, in pinned host
memory, copied a layer ahead. Each takes less GPU memory than the one before and costs more per
step: 2.6 bytes of memory traffic per weight for quantized Q4_K, 0.6 bytes of PCIe for streamed.
"""

from dataclasses import dataclass
from typing import Literal

from hetero.errors import PlanError
from hetero.model.gguf_file import GGUFFile, TensorInfo
from hetero.model.spec import ModelSpec
from hetero.prefill.layer_sources import PART_ALIGNMENT

Residency = Literal["resident", "quantized", "streamed"]
RESIDENCIES: tuple[Residency, ...] = ("resident", "quantized", "streamed")

# cuBLAS workspaces (32 MiB a stream on Hopper), the kernels' code, and what the allocator can't
# use of the blocks it holds.
_MARGIN_BYTES = 512 * 2**20

# The matrix products' inputs and outputs alive at once, and as much again for temporaries.
_ACTIVATIONS_SPARE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """What a model's weights take, in the type that computes and as stored."""

    dense: int  # the layers' matrices
    dense_layer: int  # of the largest layer
    stored: int
    stored_layer: int
    vocabulary: int  # embedding and output matrix, the way they are kept
    host_blobs: int  # all stored layers in pinned memory, rounded up as its allocator does


def weight_bytes(
    file: GGUFFile, spec: ModelSpec, element_bytes: int, *, stored_vocabulary: bool
) -> WeightBytes:
    layers = [
        [tensor for tensor in file.tensors.values() if tensor.name.startswith(f"blk.{index}.")]
        for index in range(spec.num_layers)
    ]
    dense = [sum(_num_values(tensor) for tensor in layer) * element_bytes for layer in layers]
    stored = [sum(_aligned(tensor.num_bytes) for tensor in layer) for layer in layers]
    vocabulary = [
        file.tensors[name]
        for name in ("token_embd.weight", "output.weight")
        if name in file.tensors
    ]
    return WeightBytes(
        dense=sum(dense),
        dense_layer=max(dense),
        stored=sum(stored),
        stored_layer=max(stored),
        vocabulary=sum(
            tensor.num_bytes if stored_vocabulary else _num_values(tensor) * element_bytes
            for tensor in vocabulary
        ),
        host_blobs=sum(1 << (size - 1).bit_length() for size in stored),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkBytes:
    """What reading takes beside the weights."""

    per_cell: int  # K and V of a token
    per_chunk_token: int  # activations

    def total(self, num_cells: int, chunk_tokens: int) -> int:
        return self.per_cell * num_cells + self.per_chunk_token * chunk_tokens + _MARGIN_BYTES


def work_bytes(spec: ModelSpec, element_bytes: int) -> WorkBytes:
    heads = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim_k
    activations = _ACTIVATIONS_SPARE * (3 * spec.hidden_size + heads + 3 * spec.ffn_size)
    kv = spec.num_layers * spec.num_kv_heads * (spec.head_dim_k + spec.head_dim_v)
    return WorkBytes(per_cell=kv * element_bytes, per_chunk_token=activations * element_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeMemory:
    """`undequantizable`: why stored blocks are of no use on this GPU, if they are not."""

    gpu_bytes: int
    host_bytes: int
    undequantizable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    residency: Residency
    num_cells: int  # of the KV pool
    chunk_tokens: int  # the most there is memory for
    reason: str


def plan_memory(
    name: str,
    wanted: Residency | Literal["auto"],
    weights: WeightBytes,
    work: WorkBytes,
    free: FreeMemory,
    *,
    context_tokens: int,
    chunk_tokens: int,
    largest_chunk: int,
) -> MemoryPlan:
    """The first residency that leaves room for the longest prompt, read `chunk_tokens` at a time.

    What is left over goes to a second prompt's KV, then to larger chunks.
    Raises: PlanError with need and have if none fits.
    """
    least = work.total(context_tokens, chunk_tokens)
    residency, reason = _choose(name, wanted, weights, work, free, context_tokens, least)
    spare = free.gpu_bytes - gpu_bytes(residency, weights) - least
    num_cells = context_tokens
    if spare >= work.per_cell * context_tokens:
        num_cells += context_tokens
        spare -= work.per_cell * context_tokens
    chunk = chunk_tokens
    while 2 * chunk <= largest_chunk and spare >= work.per_chunk_token * (2 * chunk - chunk_tokens):
        chunk *= 2
    return MemoryPlan(
        residency=residency, num_cells=num_cells, chunk_tokens=chunk, reason=f"{name}: {reason}"
    )


def gpu_bytes(residency: Residency, weights: WeightBytes) -> int:
    """GPU memory that the weights take."""
    match residency:
        case "resident":
            return weights.vocabulary + weights.dense
        case "quantized":
            return weights.vocabulary + weights.stored + 2 * weights.dense_layer
        case "streamed":
            return weights.vocabulary + 2 * (weights.stored_layer + weights.dense_layer)


def _choose(
    name: str,
    wanted: Residency | Literal["auto"],
    weights: WeightBytes,
    work: WorkBytes,
    free: FreeMemory,
    context_tokens: int,
    work_total: int,
) -> tuple[Residency, str]:
    why_not = []
    for residency in RESIDENCIES if wanted == "auto" else (wanted,):
        need = gpu_bytes(residency, weights) + work_total
        host_need = weights.host_blobs if residency == "streamed" else 0
        kv = f"the KV of {context_tokens} tokens takes {_gib(work.per_cell * context_tokens)}"
        if residency != "resident" and free.undequantizable is not None:
            why_not.append(f"{residency}: {free.undequantizable}")
        elif need > free.gpu_bytes:
            have = f"have {_gib(free.gpu_bytes)}"
            why_not.append(f"{residency}: need {_gib(need)} of GPU memory ({kv}), {have}")
        elif host_need > free.host_bytes:
            have = f"have {_gib(free.host_bytes)}"
            why_not.append(f"{residency}: need {_gib(host_need)} of host memory, {have}")
        else:
            why = f"weights {residency}: takes {_gib(need)} of {_gib(free.gpu_bytes)} GPU memory"
            return residency, "; ".join([why, *(f"not {other}" for other in why_not)])
    raise PlanError(
        f"{name}: the weights fit no way: {'; '.join(why_not)}: use a shorter context, a model "
        "quantized further, or --prefill llama"
    )


def _num_values(tensor: TensorInfo) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // PART_ALIGNMENT) * PART_ALIGNMENT


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
