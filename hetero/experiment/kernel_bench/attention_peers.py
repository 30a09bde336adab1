"""Who else computes causal attention with grouped heads: torch's backends, and two libraries.

Axes: T new tokens, P the prompt's tokens so far, H query heads, G KV heads, D head_dim.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from hetero.experiment.kernel_bench.stopwatch import Call
from hetero.prefill.attention import SdpaAttention
from hetero.prefill.span import Span

# (q_THD, k_PGD, v_PGD) -> a call that returns attended_THD.
Peer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Call]

TORCH_BACKENDS: Mapping[str, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def whole_prompt_peers() -> dict[str, Peer]:
    """For T = P: each of torch's backends by itself, and the libraries that are installed."""
    torchs = {name: partial(_one_backend, backend) for name, backend in TORCH_BACKENDS.items()}
    return torchs | _installed()


def any_prompt_peers() -> dict[str, Peer]:
    """For T <= P: what a node does without Triton, and the libraries that are installed."""
    return {"sdpa": _sdpa} | _installed()


def _one_backend(
    backend: SDPBackend, q_THD: torch.Tensor, k_PGD: torch.Tensor, v_PGD: torch.Tensor
) -> Call:
    q_1HTD, k_1GPD, v_1GPD = (x.transpose(0, 1)[None] for x in (q_THD, k_PGD, v_PGD))

    def call() -> torch.Tensor:
        with sdpa_kernel(backend):
            attended_1HTD = F.scaled_dot_product_attention(
                q_1HTD, k_1GPD, v_1GPD, is_causal=True, enable_gqa=True
            )
        return attended_1HTD[0].transpose(0, 1)

    return call


def _sdpa(q_THD: torch.Tensor, k_PGD: torch.Tensor, v_PGD: torch.Tensor) -> Call:
    spans = [Span(cell=0, first=len(k_PGD) - len(q_THD), end=len(k_PGD))]
    return partial(SdpaAttention(), q_THD, k_PGD, v_PGD, spans)


def _installed() -> dict[str, Peer]:
    """Their masks are aligned to the last token, as ours is."""
    known: dict[str, Peer] = {
        "flashinfer": _flashinfer,
        "flash_attn": partial(_flash_attn, "flash_attn"),
        "flash_attn_interface": partial(_flash_attn, "flash_attn_interface"),  # FlashAttention-3
    }
    return {module: peer for module, peer in known.items() if find_spec(module) is not None}


def _flashinfer(q_THD: torch.Tensor, k_PGD: torch.Tensor, v_PGD: torch.Tensor) -> Call:
    def call() -> torch.Tensor:
        attend = import_module("flashinfer").single_prefill_with_kv_cache
        attended_THD: torch.Tensor = attend(q_THD, k_PGD, v_PGD, causal=True)
        return attended_THD

    return call


def _flash_attn(module: str, q_THD: torch.Tensor, k_PGD: torch.Tensor, v_PGD: torch.Tensor) -> Call:
    def call() -> torch.Tensor:
        attend = import_module(module).flash_attn_func
        result = attend(q_THD[None], k_PGD[None], v_PGD[None], causal=True)
        attended_1THD: torch.Tensor = result[0] if isinstance(result, tuple) else result
        return attended_1THD[0]

    return call
