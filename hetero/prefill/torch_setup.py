"""Makes a torch engine for a model and a device: what attends, where weights live, how much is
read at a time. What is chosen is said once, with the reason.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from hetero.errors import ConfigError
from hetero.kv.layout import model_layout
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import ModelSpec, gguf_to_spec
from hetero.prefill.attention import Attention, SdpaAttention
from hetero.prefill.chunk_size import measure_chunk, warm_up
from hetero.prefill.kv_pool import KVPool
from hetero.prefill.ops import Ops, TorchOps
from hetero.prefill.packing import HostPacker, KernelPacker, Packer
from hetero.prefill.residency import (
    RESIDENCIES,
    FreeMemory,
    MemoryPlan,
    Residency,
    plan_memory,
    weight_bytes,
    work_bytes,
)
from hetero.prefill.torch_engine import DEFAULT_FRAME_BYTES, TorchEngine
from hetero.prefill.torch_model import TorchModel
from hetero.prefill.torch_weights import check_supported
from hetero.prefill.triton_support import capability, triton_problem
from hetero.prefill.weight_loading import WeightLoader

logger = logging.getLogger(__name__)

# On a CPU, where a larger chunk gains little, and on a GPU until it is measured.
_DEFAULT_CHUNK_TOKENS = 512
_LARGEST_CHUNK_TOKENS = 8192

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOptions:
    """`dtype` None: float32 on a CPU; on CUDA bfloat16, even for float16 files, because activations
    of some models overflow float16. `chunk_tokens` None: measured on a GPU. `context_tokens` None:
    what the model was trained for. `num_threads` is process-wide."""

    device: str = "cpu"
    dtype: str | None = None
    attention: str = "auto"  # or sdpa, triton
    residency: str = "auto"  # or one of RESIDENCIES
    context_tokens: int | None = None
    chunk_tokens: int | None = None
    frame_bytes: int = DEFAULT_FRAME_BYTES
    num_threads: int | None = None


def make_torch_engine(
    path: Path | str, layout_types: tuple[str, str], options: TorchOptions = TorchOptions()
) -> TorchEngine:
    """`layout_types`: K and V cache types of the receiver.

    Raises: ConfigError for options, ModelError for the file, PlanError if the model does not fit.
    """
    _check_sizes(options)
    device = _device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where Triton launches; each thread has its own
    dtype = _dtype(options.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    file = GGUFFile.open(path)
    spec = gguf_to_spec(file)
    check_supported(spec)
    layout = model_layout(spec, *layout_types)
    problem = triton_problem(device)
    attention = _attention(options.attention, spec, device, problem)
    use_kernels = attention.name == "triton" or (device.type == "cuda" and problem is None)
    if use_kernels and device.type == "cpu" and dtype == torch.bfloat16:
        raise ConfigError(
            "dtype bfloat16: Triton's interpreter multiplies its bits as integers: use float32"
        )
    context_tokens = min(options.context_tokens or spec.context_length, spec.context_length)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)

    plan = _memory_plan(options, file, spec, device, dtype, context_tokens, use_kernels, problem)
    on_device = use_kernels and (device.type == "cuda" or plan.residency != "resident")
    loader = WeightLoader(file, spec, dtype, device, on_device=on_device)
    pool = KVPool(
        num_layers=spec.num_layers,
        num_cells=plan.num_cells,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim_k,
        dtype=dtype,
        device=device,
    )
    packer: Packer = KernelPacker(layout, device) if use_kernels else HostPacker(layout)
    model = TorchModel(
        spec,
        loader.load(plan.residency),
        attention,
        _ops(use_kernels),
        context_tokens=context_tokens,
        device=device,
    )
    engine = TorchEngine(
        model,
        pool,
        packer,
        attention,
        layout,
        vocab_size=spec.vocab_size,
        context_tokens=context_tokens,
        chunk_tokens=plan.chunk_tokens,
        frame_bytes=options.frame_bytes,
    )
    if device.type == "cuda":
        warm_up(engine, engine.chunk_tokens if options.chunk_tokens else 1)
    if device.type == "cuda" and options.chunk_tokens is None:
        engine.chunk_tokens = measure_chunk(engine, plan.chunk_tokens)
    return engine


def _memory_plan(
    options: TorchOptions,
    file: GGUFFile,
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    context_tokens: int,
    use_kernels: bool,
    problem: str | None,
) -> MemoryPlan:
    """A CPU's memory is not planned: the system gives what is touched, or says that it can't."""
    wanted = _residency(options.residency)
    chunk_tokens = options.chunk_tokens or min(_DEFAULT_CHUNK_TOKENS, context_tokens)
    if device.type == "cpu":
        if wanted in ("quantized", "streamed") and not use_kernels:
            raise ConfigError(
                f"residency {wanted}: need Triton's kernels: {problem or 'attention triton'}; or "
                "leave it out"
            )
        return MemoryPlan(
            residency="resident" if wanted == "auto" else wanted,
            num_cells=2 * context_tokens,
            chunk_tokens=chunk_tokens,
            reason="",
        )
    plan = plan_memory(
        spec.name,
        wanted,
        weight_bytes(file, spec, dtype.itemsize, stored_vocabulary=use_kernels),
        work_bytes(spec, dtype.itemsize),
        FreeMemory(
            gpu_bytes=torch.cuda.mem_get_info(device)[0],
            host_bytes=psutil.virtual_memory().available,
            undequantizable=_undequantizable(file, problem),
        ),
        context_tokens=context_tokens,
        chunk_tokens=chunk_tokens,
        largest_chunk=min(options.chunk_tokens or _LARGEST_CHUNK_TOKENS, context_tokens),
    )
    logger.info("%s", plan.reason)
    return plan


def _undequantizable(file: GGUFFile, problem: str | None) -> str | None:
    """Why stored blocks can't be dequantized on the GPU, or None."""
    if problem is not None:
        return problem
    from hetero.prefill.kernels.dequantize import DEQUANTIZABLE

    for name, tensor in file.tensors.items():
        if name.startswith("blk.") and len(tensor.shape) > 1 and tensor.type not in DEQUANTIZABLE:
            return f"no kernel dequantizes {tensor.type.name} ({name})"
    return None


def _attention(
    wanted: str, spec: ModelSpec, device: torch.device, problem: str | None
) -> Attention:
    """Raises: ConfigError if Triton is asked for and can't run, with the reason."""
    if wanted not in ("auto", "sdpa", "triton"):
        raise ConfigError(f"attention {wanted!r}: need one of auto, sdpa, triton")
    if wanted == "sdpa" or (wanted == "auto" and device.type == "cpu"):
        return SdpaAttention()
    if problem is None:
        from hetero.prefill.kernels.attention import TritonAttention

        try:
            return TritonAttention(
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim_k,
                capability=capability(device),
            )
        except ConfigError as error:
            problem = str(error)
    if wanted == "triton":
        raise ConfigError(f"attention triton: {problem}; or use --attention sdpa")
    logger.warning("attention by torch's SDPA: %s", problem)
    return SdpaAttention()


def _ops(use_kernels: bool) -> Ops:
    if not use_kernels:
        return TorchOps()
    from hetero.prefill.kernels.elementwise import TritonOps

    return TritonOps()


def _residency(name: str) -> Residency | Literal["auto"]:
    if name == "auto":
        return "auto"
    for known in RESIDENCIES:
        if name == known:
            return known
    raise ConfigError(f"residency {name!r}: need one of auto, {', '.join(RESIDENCIES)}")


def _check_sizes(options: TorchOptions) -> None:
    for option in ("context_tokens", "chunk_tokens", "frame_bytes", "num_threads"):
        value = getattr(options, option)
        if value is not None and value < 1:
            raise ConfigError(f"{option}: need 1 or more, have {value}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: need cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r}: need a GPU and torch built for CUDA, have torch {torch.__version__} "
            "that finds none: use device cpu, or --prefill llama"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r}: have GPUs 0 to {torch.cuda.device_count() - 1}")
    return device


def _dtype(name: str) -> torch.dtype:
    try:
        return DTYPES[name]
    except KeyError:
        raise ConfigError(f"dtype {name!r}: need one of {', '.join(DTYPES)}") from None
