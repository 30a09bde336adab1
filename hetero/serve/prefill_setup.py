"""Which engine a prefill node reads with: the one asked for, or the best this machine has."""

import logging
from pathlib import Path

from hetero.errors import ConfigError, ModelError, PlanError
from hetero.kv.layout import KVLayout
from hetero.messages import Fingerprint
from hetero.prefill.engine import PrefillEngine
from hetero.serve.config import DEFAULT_CHUNK_TOKENS, PrefillConfig
from hetero.serve.replay_setup import make_replay_engine

logger = logging.getLogger(__name__)


def make_prefill_engine(config: PrefillConfig, fingerprint: Fingerprint) -> PrefillEngine:
    """Unasked, torch on a GPU that Triton serves too, else llama.cpp: on older GPUs torch lacks
    fused attention and bfloat16, and llama.cpp has kernels of its own. A replay is never unasked.

    Raises: ConfigError, ModelError or PlanError if the engine asked for can't.
    """
    layout = fingerprint.layout
    if config.engine in ("llama", "replay"):
        for name, value in (("attention", config.attention), ("residency", config.residency)):
            if value != "auto":
                raise ConfigError(
                    f"{name} {value}: is the torch engine's, have engine {config.engine}; leave "
                    "it out"
                )
    if config.engine == "replay":
        return make_replay_engine(config, fingerprint)
    for name, path in (("recording", config.recording), ("pace", config.pace)):
        if path is not None:
            raise ConfigError(
                f"{name} {path}: is a replay's, have engine {config.engine}; leave it out, or set "
                "`engine: replay`"
            )
    if config.engine == "llama":
        return _llama_engine(config, layout)
    if config.engine == "torch" or config.attention != "auto" or config.residency != "auto":
        return _torch_engine(config)
    problem = _why_not_torch(config)
    if problem is None:
        try:
            return _torch_engine(config)
        except (ModelError, PlanError) as error:
            problem = str(error)
    logger.info("prefill by llama.cpp, not torch: %s", problem)
    return _llama_engine(config, layout)


def _why_not_torch(config: PrefillConfig) -> str | None:
    """Why torch is not the engine to take unasked, or None."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.version.hip is not None:
        return "this torch is built for AMD GPUs, which its engine was never run on"
    if config.device == "cpu" or not torch.cuda.is_available():
        return "it finds no GPU"
    from hetero.prefill.triton_support import MIN_CAPABILITY

    device = torch.device("cuda" if config.device == "auto" else config.device)
    have = torch.cuda.get_device_capability(device)
    if have < MIN_CAPABILITY:
        need = "{}.{}".format(*MIN_CAPABILITY)
        name = torch.cuda.get_device_name(device)
        return f"need compute capability {need}, {name} has {have[0]}.{have[1]}"
    return None


def _llama_engine(config: PrefillConfig, layout: KVLayout) -> PrefillEngine:
    from hetero.prefill.llama_engine import LlamaEngine

    return LlamaEngine(
        Path(config.model),
        layout,
        context_tokens=config.context_tokens,
        num_threads=config.threads,
        chunk_tokens=config.chunk_tokens or DEFAULT_CHUNK_TOKENS,
        gpu_layers=config.gpu_layers,
        load=config.load,
    )


def _torch_engine(config: PrefillConfig) -> PrefillEngine:
    try:
        import torch

        from hetero.prefill.torch_setup import TorchOptions, make_torch_engine
    except ImportError as error:
        raise ConfigError(
            f"prefill engine torch: need the torch package, have none ({error}): "
            "pip install 'hetero[torch]', or use --prefill llama"
        ) from None
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and torch.version.hip is None else "cpu"
    options = TorchOptions(
        device=device,
        dtype=None if config.dtype == "auto" else config.dtype,
        attention=config.attention,
        residency=config.residency,
        context_tokens=config.context_tokens,
        chunk_tokens=config.chunk_tokens,
        num_threads=config.threads,
    )
    return make_torch_engine(config.model, (config.kv_k, config.kv_v), options)
