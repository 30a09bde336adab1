"""An emulated prefill node's engine: rows from a recording, its pace from a device's profile."""

import logging
from pathlib import Path

from hetero.errors import ConfigError
from hetero.messages import Fingerprint
from hetero.prefill.recording import Recording
from hetero.prefill.replay_engine import ReplayEngine
from hetero.profile.document import read_node_profile
from hetero.profile.node_profile import EngineFit, NodeProfile
from hetero.serve.config import PrefillConfig

logger = logging.getLogger(__name__)

_LONG_PROMPT_TOKENS = 8192


def make_replay_engine(config: PrefillConfig, fingerprint: Fingerprint) -> ReplayEngine:
    """Raises: ConfigError for files that are missing, damaged or of no use here, ModelError for a
    recording of another model."""
    if config.recording is None or config.pace is None:
        missing = "recording" if config.recording is None else "pace"
        raise ConfigError(
            f"engine replay: need `recording` and `pace`, have no {missing}; docs/emulation.md "
            "says how to make them"
        )
    profile = read_node_profile(Path(config.pace))
    fit = _prefill_fit(config.pace, profile, fingerprint)
    engine = ReplayEngine(
        Recording(Path(config.recording), fingerprint),
        fit,
        device=profile.host,
        context_tokens=config.context_tokens,
        chunk_tokens=config.chunk_tokens or fit.chunk_tokens,
    )
    logger.warning(
        "EMULATED: %s computes nothing; it sends rows of %s in the time that %s (%s) gives, and "
        "answers other prompts than the recorded one with nonsense",
        engine.name,
        config.recording,
        config.pace,
        fit.source,
    )
    return engine


def _prefill_fit(path: str, profile: NodeProfile, fingerprint: Fingerprint) -> EngineFit:
    """Of several engines on the same cache, the one that reads a long prompt soonest."""
    if profile.model.fingerprint != fingerprint.model:
        raise ConfigError(
            f"pace {path}: need a profile of the model that is served, have one of "
            f"{profile.model.name}; make it with `hetero profile estimate PRESET -m MODEL -o FILE`"
        )
    need = (fingerprint.layout.k_type, fingerprint.layout.v_type)
    fits = [fit for fit in profile.fits if fit.role == "prefill"]
    fitting = [fit for fit in fits if (fit.kv_k, fit.kv_v) == need]
    if not fitting:
        have = ", ".join(sorted({f"{fit.kv_k}/{fit.kv_v}" for fit in fits})) or "none"
        raise ConfigError(
            f"pace {path}: need prefill with a cache of {'/'.join(need)}, have {have}; make it "
            "with `--kv-k` and `--kv-v`"
        )
    return min(fitting, key=lambda fit: fit.prefill_s(_LONG_PROMPT_TOKENS))
