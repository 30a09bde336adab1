"""GGUF files in the shape of a real model, with random weights: for timing, never for text.

Quantized blocks are made directly, random codes under a fixed scale, so a file is written at disk
speed in a few megabytes of memory. Activations keep the magnitude that a trained model's have, and
types are spread over the tensors as llama-quantize does it; only the text is nonsense.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from hetero.errors import ConfigError, PlanError
from hetero.model.random_blocks import random_data
from hetero.model.shapes import Shape, parse_shape, tensor_shapes

Progress = Callable[[int, int], None]

# Control tokens come first, so that "random prompt" is `integers(3, vocab_size)` in tests.
BOS, EOS, IM_START = 0, 1, 2
NUM_CONTROL_TOKENS = 3
# Control tokens, one token per byte, and the one merge that llama.cpp insists on.
MIN_VOCAB_SIZE = NUM_CONTROL_TOKENS + 256 + 1

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# What is generated and written at a time: small beside a model, large beside a system call.
CHUNK_BYTES = 16 * 2**20
_ALIGNMENT: int = gguf.GGUF_DEFAULT_ALIGNMENT

_Type = gguf.GGMLQuantizationType
_File = gguf.LlamaFileType
# quant: the type of most matrices, and the label of the file. q4_k is Q4_K_S without the few Q5_K
# tensors that one has.
_QUANTS = {
    "f16": (_Type.F16, _File.MOSTLY_F16),
    "bf16": (_Type.BF16, _File.MOSTLY_BF16),
    "q8_0": (_Type.Q8_0, _File.MOSTLY_Q8_0),
    "q4_0": (_Type.Q4_0, _File.MOSTLY_Q4_0),
    "q4_k": (_Type.Q4_K, _File.MOSTLY_Q4_K_S),
    "q4_k_m": (_Type.Q4_K, _File.MOSTLY_Q4_K_M),
    "q5_k_m": (_Type.Q5_K, _File.MOSTLY_Q5_K_M),
    "q6_k": (_Type.Q6_K, _File.MOSTLY_Q6_K),
}
# What llama-quantize takes for rows that are not whole blocks of 256.
_SMALL_BLOCKS = {_Type.Q4_K: _Type.Q5_0, _Type.Q5_K: _Type.Q5_1, _Type.Q6_K: _Type.Q8_0}


def synthesize(
    shape_name: str,
    out_path: str | Path,
    *,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a random model named like "llama-3.1-8b-q4_0"; see `write_synthetic`."""
    shape, quant = parse_shape(shape_name)
    return write_synthetic(shape, quant, out_path, seed=seed, force=force, progress=progress)


def write_synthetic(
    shape: Shape,
    quant: str,
    out_path: str | Path,
    *,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a random model of `shape`. The file appears under its name once it is whole.

    The same arguments give the same bytes. `progress` is told the bytes written and their total.
    Raises: ConfigError if the file exists and `force` is false, PlanError if the disk is too small.
    """
    out_path = Path(out_path)
    if out_path.is_dir():
        raise ConfigError(f"{out_path}: a directory, need a file name")
    if out_path.exists() and not force:
        raise ConfigError(f"{out_path}: exists already; --force replaces it")
    if not out_path.parent.is_dir():
        raise ConfigError(f"{out_path}: no directory {out_path.parent}; make it first")
    plan = _plan_tensors(shape, quant)
    total_bytes = sum(tensor.padded_bytes for tensor in plan)
    free_bytes = shutil.disk_usage(out_path.parent).free
    if free_bytes < total_bytes:
        raise PlanError(
            f"{out_path}: need {total_bytes / 2**30:.1f} GiB of disk, "
            f"have {free_bytes / 2**30:.1f} GiB free"
        )
    unfinished = out_path.with_name(f".{out_path.name}.{os.getpid()}")
    try:
        _write_header(unfinished, shape, quant, plan)
        written = 0
        with open(unfinished, "ab") as file:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            for index, tensor in enumerate(plan):
                # A stream per tensor: the values of one don't depend on the sizes of others.
                rng = np.random.Generator(np.random.SFC64([seed, index]))
                for data in _tensor_data(tensor, rng):
                    file.write(data.data)
                    written += data.nbytes
                    if progress is not None:
                        progress(written, total_bytes)
                written += file.write(bytes(tensor.padded_bytes - tensor.num_bytes))
        os.replace(unfinished, out_path)
    finally:
        unfinished.unlink(missing_ok=True)
    if progress is not None:
        progress(total_bytes, total_bytes)
    return out_path


def weight_bytes(shape: Shape, quant: str) -> int:
    """Of all tensors, without a file's header and padding."""
    return sum(tensor.num_bytes for tensor in _plan_tensors(shape, quant))


@dataclass(frozen=True, slots=True, kw_only=True)
class _TensorPlan:
    name: str
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType
    std: float  # 0: not random, every value is 1
    values: np.ndarray | None = None  # given ones

    @property
    def num_bytes(self) -> int:
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return int(math.prod(self.shape) // block_size * block_bytes)

    @property
    def padded_bytes(self) -> int:
        return -(-self.num_bytes // _ALIGNMENT) * _ALIGNMENT


def _plan_tensors(shape: Shape, quant: str) -> list[_TensorPlan]:
    plan = []
    if shape.rope_scaling == "llama3":
        factors = rope_factors(shape)
        plan.append(
            _TensorPlan(
                name="rope_freqs.weight",
                shape=factors.shape,
                type=_Type.F32,
                std=0.0,
                values=factors,
            )
        )
    for name, dims in tensor_shapes(shape).items():
        if name.endswith("norm.weight"):
            std = 0.0
        elif name.endswith(".bias"):
            std = 0.1
        elif name == "token_embd.weight" and not shape.tied_embeddings:
            std = 1.0
        else:
            # A row times a normalized activation is then again of size 1.
            std = dims[-1] ** -0.5
        plan.append(
            _TensorPlan(name=name, shape=dims, type=tensor_type(shape, quant, name, dims), std=std)
        )
    return plan


def tensor_type(
    shape: Shape, quant: str, name: str, dims: tuple[int, ...]
) -> gguf.GGMLQuantizationType:
    """The type llama-quantize gives a tensor, as its `llama_tensor_get_type` decides it."""
    # Norms, biases and the router are small and delicate.
    if len(dims) == 1 or name.endswith("ffn_gate_inp.weight"):
        return _Type.F32
    kind, _ = _QUANTS[quant]
    is_output = name == "output.weight" or (name == "token_embd.weight" and shape.tied_embeddings)
    if is_output and kind not in (_Type.F16, _Type.BF16, _Type.Q8_0):
        kind = _Type.Q6_K
    elif name.endswith(("attn_v.weight", "ffn_down.weight", "ffn_down_exps.weight")):
        layer = int(name.split(".")[1])
        if quant in ("q4_k_m", "q5_k_m") and _deserves_more_bits(layer, shape.num_layers):
            kind = _Type.Q6_K
        elif quant == "q4_k_m" and "attn_v" in name and shape.num_layers == 80:
            # llama-quantize's exception for 70B models.
            kind = _Type.Q5_K
    if dims[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = _SMALL_BLOCKS[kind]
    return kind


def file_type(quant: str) -> gguf.LlamaFileType:
    """The label in the file."""
    return _QUANTS[quant][1]


def _deserves_more_bits(layer: int, num_layers: int) -> bool:
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _tensor_data(tensor: _TensorPlan, rng: np.random.Generator) -> Iterator[np.ndarray]:
    if tensor.values is not None:
        yield tensor.values.view(np.uint8)
    elif tensor.std == 0:
        yield np.ones(tensor.shape, np.float32).view(np.uint8)
    else:
        yield from random_data(tensor.type, math.prod(tensor.shape), tensor.std, rng, CHUNK_BYTES)


def _write_header(path: Path, shape: Shape, quant: str, plan: list[_TensorPlan]) -> None:
    writer = gguf.GGUFWriter(path, shape.architecture)
    add_metadata(writer, shape, file_type(quant))
    for tensor in plan:
        writer.add_tensor_info(
            tensor.name,
            tensor.shape,
            np.dtype(np.float32),
            tensor.num_bytes,
            raw_dtype=tensor.type,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def add_metadata(writer: gguf.GGUFWriter, shape: Shape, file_type: int) -> None:
    """Write everything of the header but the tensors: hyperparameters, tokenizer, template."""
    writer.add_name(shape.name)
    writer.add_file_type(file_type)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.ffn_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    # llama3's scaling is a tensor of factors, not a key: `rope_factors`.
    if shape.rope_scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(shape.rope_scaling))
        writer.add_rope_scaling_factor(shape.rope_factor)
        writer.add_rope_scaling_orig_ctx_len(shape.rope_original_context)
    if shape.num_experts:
        writer.add_expert_count(shape.num_experts)
        writer.add_expert_used_count(shape.num_experts_used)
        writer.add_expert_feed_forward_length(shape.expert_ffn_size)
    _add_tokenizer(writer, shape)


def rope_factors(shape: Shape) -> np.ndarray:
    """What llama3 scaling divides each RoPE frequency by: (head_dim / 2,) float32.

    Source: `rope_type: llama3` in transformers' modeling_rope_utils.py, with the low and high
    frequency factors 1 and 4 that every Llama 3 release uses.
    """
    low_freq_factor, high_freq_factor = 1.0, 4.0
    freqs = shape.rope_base ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
    turns_per_context = shape.rope_original_context * freqs / (2 * math.pi)
    smooth = (turns_per_context - low_freq_factor) / (high_freq_factor - low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    factors: np.ndarray = 1.0 / ((1.0 - smooth) / shape.rope_factor + smooth)
    return factors.astype(np.float32)


def _add_tokenizer(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """A byte-level BPE that takes any text: a token per byte, and filler words up to size."""
    if shape.vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocabulary: need {MIN_VOCAB_SIZE} tokens, have {shape.vocab_size}")
    tokens = ["<|bos|>", "<|im_end|>", "<|im_start|>", *_byte_tokens(), "\u0120a"]
    # Filler words are ordinary tokens, so that random output is visible text: a stream of empty
    # pieces would look like a hung server.
    tokens += [f"\u0120w{index}" for index in range(len(tokens), shape.vocab_size)]
    types = [int(gguf.TokenType.CONTROL)] * NUM_CONTROL_TOKENS
    types += [int(gguf.TokenType.NORMAL)] * (len(tokens) - NUM_CONTROL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["\u0120 a"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    # As the published files do: llama prompts start with a BOS, qwen prompts don't.
    writer.add_add_bos_token(shape.architecture == "llama")
    writer.add_chat_template(CHAT_TEMPLATE)


def _byte_tokens() -> list[str]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 itself, the rest from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]
