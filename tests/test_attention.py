import numpy as np
import pytest
import torch
from float64_reference import relative_error
from torch.nn.attention import SDPBackend, sdpa_kernel

from hetero.prefill.attention import SdpaAttention
from hetero.prefill.span import Span


def written_out(q_THD, k_PGD, v_PGD):
    """Causal attention with every score in memory, float64."""
    q, k, v = (x.double().numpy() for x in (q_THD, k_PGD, v_PGD))
    num_new, num_heads, head_dim = q.shape
    visible = np.arange(len(k)) <= np.arange(len(k) - num_new, len(k))[:, None]
    out = np.empty_like(q)
    for head in range(num_heads):
        group = head * k.shape[1] // num_heads
        odds = np.exp(q[:, head] @ k[:, group].T / np.sqrt(head_dim)) * visible
        out[:, head] = odds / odds.sum(-1, keepdims=True) @ v[:, group]
    return out


def attend(q, k, v, *spans):
    attention = SdpaAttention()
    return attention(q, k, v, attention.plan(spans, q.device))


def random_qkv(*, new, tokens, heads, kv_heads, head_dim):
    generator = torch.manual_seed(0)
    q = torch.randn(new, heads, head_dim, generator=generator)
    k, v = (torch.randn(tokens, kv_heads, head_dim, generator=generator) for _ in "kv")
    return q, k, v


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize(("new", "tokens"), [(40, 40), (40, 100), (1, 77), (1, 1)])
def test_new_tokens_see_what_came_before_them(head_dim, heads, kv_heads, new, tokens):
    q, k, v = random_qkv(new=new, tokens=tokens, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    have = attend(q, k, v, Span(cell=0, first=tokens - new, end=tokens))
    assert have.shape == q.shape
    assert relative_error(have, written_out(q, k, v)) < 1e-5


def test_prompts_packed_together_see_only_their_own_cells():
    q, k, v = random_qkv(new=60, tokens=120, heads=4, kv_heads=2, head_dim=64)
    spans = [Span(cell=70, first=10, end=45), Span(cell=3, first=0, end=25)]
    k[:3] = k[28:70] = v[:3] = v[28:70] = torch.nan
    have = attend(q, k, v, *spans)
    want = [
        written_out(q[:35], k[70:115], v[70:115]),
        written_out(q[35:], k[3:28], v[3:28]),
    ]
    assert relative_error(have, np.concatenate(want)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [64, 200])
def test_cpu_never_stores_the_scores(tokens, dtype):
    q, k, v = random_qkv(new=64, tokens=tokens, heads=8, kv_heads=2, head_dim=128)
    span = Span(cell=0, first=tokens - 64, end=tokens)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where only another kernel would do
        attend(q.to(dtype), k.to(dtype), v.to(dtype), span)
