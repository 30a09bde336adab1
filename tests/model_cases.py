"""The models that both prefill engines are held to llama.cpp with."""

from tiny_models import write_tiny_model

# Every value of each column beside every architecture; mqa, gqa, mha are 1, some, all KV heads.
# qwen2 files need hidden = heads * head_dim.
MODELS = [
    # architecture, head_dim, heads, kv_heads, hidden, tied, weights, RoPE scaling
    ("llama", 64, 4, 2, 256, False, "f16", None),
    ("llama", 96, 4, 4, 256, True, "q8_0", "llama3"),
    ("llama", 128, 4, 1, 256, False, "q4_0", "yarn"),
    ("llama", 64, 4, 4, 256, True, "q4_k", "linear"),
    ("llama", 128, 4, 2, 256, True, "f16", "llama3"),
    ("qwen2", 64, 4, 1, 256, True, "q4_0", None),
    ("qwen2", 96, 8, 2, 768, False, "q4_k", None),
    ("qwen2", 128, 2, 2, 256, False, "f16", "yarn"),
    ("qwen2", 64, 4, 2, 256, False, "q8_0", "linear"),
    ("qwen3", 128, 4, 4, 256, False, "q8_0", None),
    ("qwen3", 96, 4, 1, 256, False, "f16", None),
    ("qwen3", 128, 4, 2, 256, True, "q4_k", "yarn"),
    ("qwen3", 96, 4, 2, 256, True, "q4_0", "linear"),
    ("qwen3", 64, 4, 2, 256, False, "f16", None),
]


def write_model(path, model):
    architecture, head_dim, heads, kv_heads, hidden, tied, weight_type, rope_scaling = model
    return write_tiny_model(
        path,
        architecture=architecture,
        head_dim=head_dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        hidden=hidden,
        tied=tied,
        weight_type=weight_type,
        rope_scaling=rope_scaling,
    )
