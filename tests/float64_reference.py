"""A transformer forward pass in numpy float64, straight from the formulas: the measure of engines.

It shares no code with hetero: the gguf package reads and dequantizes the file, RoPE comes in closed
form from the papers, attention is a full matrix of scores. Slow and plain on purpose.
"""

from dataclasses import dataclass

import gguf
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Forward:
    logits: np.ndarray  # (vocabulary,) of the last token
    k: np.ndarray  # (layers, tokens, kv_heads, head_dim), after RoPE
    v: np.ndarray


def forward(path, tokens, dtype=np.float64):
    reader = gguf.GGUFReader(path)
    weights = {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(dtype)
        for tensor in reader.tensors
    }
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    arch = metadata["general.architecture"]

    def setting(name, default=None):
        value = metadata.get(f"{arch}.{name}", default)
        assert value is not None, name
        return value

    heads, kv_heads = setting("attention.head_count"), setting("attention.head_count_kv")
    head_dim = setting("attention.key_length")
    eps = setting("attention.layer_norm_rms_epsilon")
    frequencies, magnitude = rope_frequencies(
        dim=setting("rope.dimension_count"),
        base=setting("rope.freq_base"),
        scaling=setting("rope.scaling.type", "none"),
        factor=setting("rope.scaling.factor", 1.0),
        original_context=setting("rope.scaling.original_context_length", 0),
        divisors=weights.get("rope_freqs.weight", 1.0),
    )
    angles = np.arange(len(tokens))[:, None] * frequencies
    causal = np.tril(np.ones((len(tokens), len(tokens)), bool))

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * weights[f"{name}.weight"]

    def rope(x):
        return rotate(x, angles, magnitude, adjacent=arch == "llama")

    x = weights["token_embd.weight"][np.asarray(tokens)]
    all_k, all_v = [], []
    for layer in range(setting("block_count")):
        block = f"blk.{layer}."
        h = norm(x, block + "attn_norm")
        q = linear(h, block + "attn_q").reshape(len(tokens), heads, head_dim)
        k = linear(h, block + "attn_k").reshape(len(tokens), kv_heads, head_dim)
        v = linear(h, block + "attn_v").reshape(len(tokens), kv_heads, head_dim)
        if arch == "qwen3":
            q, k = norm(q, block + "attn_q_norm"), norm(k, block + "attn_k_norm")
        q, k = rope(q), rope(k)
        all_k.append(k)
        all_v.append(v)
        attended = np.empty_like(q)
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, kv_head].T / np.sqrt(head_dim)
            scores = np.where(causal, scores, -np.inf)
            odds = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, head] = odds / odds.sum(-1, keepdims=True) @ v[:, kv_head]
        x = x + linear(attended.reshape(len(tokens), -1), block + "attn_output")
        h = norm(x, block + "ffn_norm")
        gate = linear(h, block + "ffn_gate")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, block + "ffn_up"), block + "ffn_down")
    output = "output" if "output.weight" in weights else "token_embd"
    logits = linear(norm(x[-1], "output_norm"), output)
    return Forward(logits=logits, k=np.stack(all_k), v=np.stack(all_v))


def rope_frequencies(*, dim, base, scaling, factor, original_context, divisors):
    """Radians per position for each pair, and the magnitude of the rotated values.

    Sources: RoFormer, arXiv:2104.09864; linear interpolation, arXiv:2306.15595; YaRN,
    arXiv:2309.00071 sections 3.2-3.4 with its beta_fast 32 and beta_slow 1.
    """
    pairs = np.arange(dim // 2)
    frequencies = base ** (-2.0 * pairs / dim) / divisors
    if scaling == "none":
        return frequencies, 1.0
    if scaling == "linear":
        return frequencies / factor, 1.0

    def pair_with_turns(turns):
        return dim * np.log(original_context / (turns * 2 * np.pi)) / (2 * np.log(base))

    low = max(np.floor(pair_with_turns(32)), 0)
    high = min(np.ceil(pair_with_turns(1)), dim - 1)
    stretched = np.clip((pairs - low) / max(high - low, 0.001), 0, 1)
    return (
        frequencies * (1 - stretched) + frequencies / factor * stretched,
        1 + 0.1 * np.log(factor),
    )


def rotate(x, angles, magnitude, *, adjacent):
    """Multiply pairs as complex numbers. Shapes: x (tokens, heads, dim), angles (tokens, pairs)."""
    turned = np.exp(1j * angles)[:, None] * magnitude
    out = x.copy()
    if adjacent:
        z = (x[..., 0::2] + 1j * x[..., 1::2]) * turned
        out[..., 0::2], out[..., 1::2] = z.real, z.imag
    else:
        half = x.shape[-1] // 2
        z = (x[..., :half] + 1j * x[..., half:]) * turned
        out[..., :half], out[..., half:] = z.real, z.imag
    return out


def relative_error(have, want):
    """Relative L2 distance."""
    want = np.asarray(want, np.float64)
    return np.linalg.norm(np.asarray(have, np.float64) - want) / np.linalg.norm(want)
