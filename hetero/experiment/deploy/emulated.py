"""What an emulated prefill node reads: a recording of the served model, and a preset's pace.

Both lie in a cache folder, named after the model, the types and the length. A recording takes as
long as this machine needs to read so many tokens, once.
"""

import logging
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from hetero.errors import HeteroError
from hetero.experiment.child import result_from_child
from hetero.experiment.figures import Say
from hetero.experiment.models import spec_of
from hetero.kv.layout import model_layout
from hetero.launch.cores import num_usable_cores
from hetero.messages import Fingerprint
from hetero.model.fingerprint import fingerprint_model
from hetero.model.spec import ModelSpec
from hetero.profile.document import write_profile
from hetero.profile.estimate import estimate_profile
from hetero.profile.model_sizes import model_shape
from hetero.profile.presets import load_preset

# Of an 8B model, 8192 tokens take a desktop's CPU ten minutes.
_RECORD_S = 2 * 3600.0


def emulated_prefill(
    model: Path,
    preset: str,
    *,
    kv_k: str,
    kv_v: str,
    context_tokens: int,
    cache: Path,
    say: Say,
) -> dict[str, Any]:
    """The fields of a `PrefillConfig` that make a node an emulated one; they replace whatever the
    node had, and leave the others as they are. The router needs `allow_emulated`.

    context_tokens: how many are recorded; longer prompts begin the recording again.
    Raises: ConfigError for an unknown preset, types or files, PlanError if the weights don't fit
    the device, EngineError if the model can't be recorded.
    """
    spec = spec_of(model)
    served = Fingerprint(model=fingerprint_model(model), layout=model_layout(spec, kv_k, kv_v))
    pace, chunk_tokens = _pace(spec, preset, served, cache)
    return {
        "engine": "replay",
        "recording": str(_recording(model, spec, served, context_tokens, cache, say)),
        "pace": str(pace),
        "chunk_tokens": chunk_tokens,
        "attention": "auto",
        "residency": "auto",
    }


def _pace(spec: ModelSpec, preset: str, served: Fingerprint, cache: Path) -> tuple[Path, int]:
    """The preset's profile of this model, made anew: the preset may have changed."""
    layout = served.layout
    shape = model_shape(spec, served.model)
    profile = estimate_profile(preset, load_preset(preset), shape, layout.k_type, layout.v_type)
    path = cache / "paces" / f"{preset}_{_digest(served)}.yaml"
    write_profile(profile, path)
    (fit,) = [fit for fit in profile.fits if fit.role == "prefill"]
    return path.resolve(), fit.chunk_tokens


def _recording(
    model: Path, spec: ModelSpec, served: Fingerprint, num_tokens: int, cache: Path, say: Say
) -> Path:
    path = (cache / "recordings" / f"{_digest(served)}_{num_tokens}.rows").resolve()
    if path.exists():
        from hetero.prefill.recording import Recording

        try:
            Recording(path, served)
            return path
        except HeteroError as error:
            say(f"recording again: {error}")
    say(f"recording {num_tokens} tokens of {model.name} for emulated devices")
    failure = result_from_child(
        _record,
        model,
        spec.vocab_size,
        served,
        num_tokens,
        num_usable_cores(),
        path,
        longest_s=_RECORD_S,
    )
    if failure is not None:
        raise failure
    return path


def _record(
    model: Path,
    vocab_size: int,
    served: Fingerprint,
    num_tokens: int,
    num_threads: int,
    path: Path,
) -> HeteroError | None:
    """In a process of its own: its weights and cache go when it ends."""
    from hetero.prefill.llama_engine import LlamaEngine
    from hetero.prefill.recording import record
    from hetero.profile.random_text import RandomText

    logging.basicConfig(level=logging.WARNING)
    try:
        engine = LlamaEngine(
            model, served.layout, context_tokens=num_tokens, num_threads=num_threads
        )
        try:
            record(engine, served.model, RandomText(vocab_size).draw(num_tokens).tolist(), path)
        finally:
            engine.close()
    except HeteroError as error:
        return error
    return None


def _digest(served: Fingerprint) -> str:
    return blake3(msgspec.json.encode(served)).hexdigest(length=8)
