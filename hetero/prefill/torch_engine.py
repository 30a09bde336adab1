"""The torch prefill engine: a prompt in, packed cache rows out while later layers still compute."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hetero.errors import ConfigError, EngineError, PlanError
from hetero.kv.layout import kv_layout
from hetero.kv.rows import Kind, RowFrame, pack_rows
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.prefill.attention import attention_named
from hetero.prefill.frame_plan import layer_groups, token_ranges
from hetero.prefill.torch_model import PromptCache, TorchModel
from hetero.prefill.torch_weights import check_supported, load_weights

DEFAULT_CHUNK_TOKENS = 512

# At 10 Gbit/s 1.7 ms of wire: the last frame is what the client waits for, and smaller ones would
# spend more on headers and wake-ups than they save.
DEFAULT_FRAME_BYTES = 2 * 2**20

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEngine:
    """A `PrefillEngine`. Holds the weights; each prompt's KV lives in its run."""

    name = "torch"

    def __init__(
        self,
        path: Path | str,
        layout_types: tuple[str, str],
        *,
        device: str = "cpu",
        dtype: str | None = None,
        attention: str = "sdpa",
        chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
        frame_bytes: int = DEFAULT_FRAME_BYTES,
        num_threads: int | None = None,
    ) -> None:
        """`layout_types`: K and V cache types of the receiver. `num_threads` is process-wide.

        `dtype` is the type of weights, activations and KV: float32 on a CPU; on CUDA bfloat16,
        even for float16 files, because activations of some models overflow float16.
        Raises: ConfigError for options, ModelError for the file.
        """
        sizes = {"chunk_tokens": chunk_tokens, "frame_bytes": frame_bytes}
        for option, value in (sizes | {"num_threads": num_threads}).items():
            if value is not None and value < 1:
                raise ConfigError(f"{option}: need 1 or more, have {value}")
        attend = attention_named(attention)
        torch_device = _device(device)
        self.dtype = _dtype(dtype or ("float32" if torch_device.type == "cpu" else "bfloat16"))
        file = GGUFFile.open(path)
        spec = gguf_to_spec(file)
        check_supported(spec)
        k_type, v_type = layout_types
        self.layout = kv_layout(
            num_layers=spec.num_layers,
            num_kv_heads=spec.num_kv_heads,
            head_dim_k=spec.head_dim_k,
            head_dim_v=spec.head_dim_v,
            k_type=k_type,
            v_type=v_type,
        )
        self.attention = attention
        self.max_prompt_tokens = spec.context_length
        self.chunk_tokens = chunk_tokens
        self.frame_bytes = frame_bytes
        self._vocab_size = spec.vocab_size
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        weights = load_weights(file, spec, self.dtype, torch_device)
        self._model: TorchModel | None = TorchModel(spec, weights, attend)

    def start(self, tokens: Sequence[int], *, want_rows: bool = True) -> "TorchRun":
        """Raises: ConfigError for tokens the model does not have, PlanError for too many."""
        assert self._model is not None, "start() after close()"
        if not tokens:
            raise ConfigError("prompt: need at least 1 token, have none")
        if len(tokens) > self.max_prompt_tokens:
            raise PlanError(
                f"prompt: need a context of {len(tokens)} tokens, "
                f"have {self.max_prompt_tokens}: shorten it"
            )
        for token in (min(tokens), max(tokens)):
            if not 0 <= token < self._vocab_size:
                raise ConfigError(
                    f"prompt: need token ids from 0 to {self._vocab_size - 1}, have {token}"
                )
        return TorchRun(self, self._model, tokens, want_rows)

    def close(self) -> None:
        """Let go of the weights."""
        self._model = None


class TorchRun:
    """A `PrefillRun`: the layer loop as a generator."""

    def __init__(
        self, engine: TorchEngine, model: TorchModel, tokens: Sequence[int], want_rows: bool
    ) -> None:
        self.pack_s = 0.0
        self._engine = engine
        self._model = model
        self._tokens = tokens
        self._want_rows = want_rows
        self._logits: npt.NDArray[np.float32] | None = None

    def __iter__(self) -> Iterator[RowFrame]:
        engine, model, tokens = self._engine, self._model, self._tokens
        cache = model.new_cache(len(tokens))
        for first in range(0, len(tokens), engine.chunk_tokens):
            chunk = model.embed(tokens[first : first + engine.chunk_tokens], first)
            num_tokens = chunk.end - chunk.first
            for layers in layer_groups(engine.layout, num_tokens, engine.frame_bytes):
                for layer in layers:
                    model.run_layer(layer, chunk, cache)
                if self._want_rows:
                    yield from self._frames(cache, layers, chunk.first, chunk.end)
        logits = model.last_logits(chunk)
        if not np.isfinite(logits).all():
            raise EngineError(
                f"logits: need finite values, have inf or nan computing in {engine.dtype}: "
                "use bfloat16 or float32"
            )
        self._logits = logits

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        if self._logits is None:
            raise EngineError("prefill: need the run read to its end before its logits")
        return self._logits

    def _frames(
        self, cache: PromptCache, layers: range, first: int, end: int
    ) -> Iterator[RowFrame]:
        layout = self._engine.layout
        kinds: tuple[tuple[Kind, torch.Tensor], ...] = (("k", cache.k_LPGD), ("v", cache.v_LPGD))
        for kind, cache_LPGD in kinds:
            token_bytes = len(layers) * layout.row_bytes(kind)
            for tokens in token_ranges(first, end, token_bytes, self._engine.frame_bytes):
                values_LTGD = cache_LPGD[layers.start : layers.stop, tokens.start : tokens.stop]
                values = values_LTGD.to("cpu", torch.float32).numpy()
                started = time.perf_counter()
                rows = pack_rows(values, kind, layout)
                self.pack_s += time.perf_counter() - started
                yield RowFrame(
                    kind=kind,
                    first_layer=layers.start,
                    end_layer=layers.stop,
                    first_token=tokens.start,
                    end_token=tokens.stop,
                    rows=rows,
                )


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
    return device


def _dtype(name: str) -> torch.dtype:
    try:
        return DTYPES[name]
    except KeyError:
        raise ConfigError(f"dtype {name!r}: need one of {', '.join(DTYPES)}") from None
