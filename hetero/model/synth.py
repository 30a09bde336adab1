"""GGUF files in the shape of a real model, with random weights: for timing, never for text."""

import math
from typing import TYPE_CHECKING

import numpy as np

from hetero.model.shapes import Shape

if TYPE_CHECKING:
    import gguf

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


def add_metadata(writer: "gguf.GGUFWriter", shape: Shape, file_type: int) -> None:
    """Write everything of the header but the tensors: hyperparameters, tokenizer, template."""
    import gguf

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


def _add_tokenizer(writer: "gguf.GGUFWriter", shape: Shape) -> None:
    """A byte-level BPE that takes any text: a token per byte, and filler words up to size."""
    import gguf

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
