"""Prefill on this machine's GPUs: llama.cpp's, where layers are to be offloaded, and the torch
engine's on each kind of GPU that it serves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from hetero.kv.layout import KVLayout
from hetero.llama.load_mode import LoadMode
from hetero.prefill.engine import PrefillEngine
from hetero.prefill.llama_engine import LlamaEngine
from hetero.profile.facts.report import Facts
from hetero.profile.node.read_fit import ClosedEngine, ReadFit, measure_read

# Of the budget, of each engine: torch's is for all its GPUs together.
_LLAMA_SHARE = 0.2
_TORCH_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class PrefillSizes:
    """A prefill node's. chunk_tokens: llama.cpp's; torch measures what is best on a GPU."""

    model: Path
    layout: KVLayout
    vocab_size: int
    context_tokens: int
    chunk_tokens: int
    threads: int
    load: LoadMode
    gpu_layers: int  # 0: llama.cpp stays on the CPU


def measure_gpu_prefill(
    sizes: PrefillSizes, facts: Facts, budget_s: float, say: Callable[[str], None]
) -> list[ReadFit]:
    """One engine after the other, each closed before the next is opened."""
    found = [
        measure_read(closed, sizes.context_tokens, share * budget_s, say)
        for closed, share in gpu_engines(sizes, facts)
    ]
    return [each for each in found if each is not None]


def gpu_engines(sizes: PrefillSizes, facts: Facts) -> list[tuple[ClosedEngine, float]]:
    """With the share of the budget that each may take; none without a GPU."""
    devices = torch_devices(facts)
    # llama.cpp before torch, which keeps what it has taken of a GPU's memory.
    by_llama = [(llama_on_gpu(sizes), _LLAMA_SHARE)] if sizes.gpu_layers else []
    share = _TORCH_SHARE / max(1, len(devices))
    return by_llama + [(torch_on(device, sizes), share) for device in devices]


def llama_on_gpu(sizes: PrefillSizes) -> ClosedEngine:
    return ClosedEngine(
        name=f"llama.cpp's prefill with {sizes.gpu_layers} layers on a GPU",
        device=offload_device(sizes.gpu_layers, sizes.layout.num_layers),
        threads=sizes.threads,
        unified=True,
        vocab_size=sizes.vocab_size,
        open=lambda: LlamaEngine(
            sizes.model,
            sizes.layout,
            context_tokens=sizes.context_tokens,
            num_threads=sizes.threads,
            chunk_tokens=sizes.chunk_tokens,
            gpu_layers=sizes.gpu_layers,
            load=sizes.load,
        ),
    )


def torch_on(device: str, sizes: PrefillSizes) -> ClosedEngine:
    return ClosedEngine(
        name=f"the torch engine's prefill on {device}",
        device=device,
        threads=sizes.threads,
        unified=False,
        vocab_size=sizes.vocab_size,
        open=partial(_torch_engine, device, sizes),
    )


def offload_device(gpu_layers: int, num_layers: int) -> str:
    """A fit's, of llama.cpp: it spreads layers over all GPUs that it sees, and counts the head as
    one more. Profiles of other numbers of layers are of other devices."""
    if gpu_layers > num_layers:
        return "gpu"
    return f"gpu, {gpu_layers} of {num_layers + 1} layers"


def torch_devices(facts: Facts) -> list[str]:
    """The first GPU of each kind that torch and Triton serve. AMD's are llama.cpp's."""
    # Without a GPU torch is not even imported: it takes more memory than a small model.
    if not facts.gpus or find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available() or torch.version.hip is not None:
        return []
    from hetero.prefill.triton_support import MIN_CAPABILITY

    first: dict[tuple[str, int, int], str] = {}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        if (about.major, about.minor) >= MIN_CAPABILITY:
            # Some cards of one name differ in cores and memory.
            kind = (about.name, about.multi_processor_count, round(about.total_memory / 2**30))
            first.setdefault(kind, f"cuda:{index}")
    return list(first.values())


def _torch_engine(device: str, sizes: PrefillSizes) -> PrefillEngine:
    from hetero.prefill.torch_setup import TorchOptions, make_torch_engine

    options = TorchOptions(
        device=device, context_tokens=sizes.context_tokens, num_threads=sizes.threads
    )
    return make_torch_engine(sizes.model, (sizes.layout.k_type, sizes.layout.v_type), options)
