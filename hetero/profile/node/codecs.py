"""How fast KV becomes rows of the wire, and rows become cells."""

from statistics import median

from hetero.kv.layout import KVLayout
from hetero.profile.link.packed_prompt import packed_prompt
from hetero.profile.node.rig import StepRig
from hetero.profile.node_profile import CodecRates

_PACK_TOKENS = 256
_NUM_RESTORES = 5
_LONG_S = 1.0  # of a large state one is enough
_FEW_CELLS = 1


def measure_codecs(rig: StepRig, layout: KVLayout, num_tokens: int) -> CodecRates:
    """num_tokens: of the restored state, no more than the rig's sequences hold."""
    few_s = _restore_s(rig, _FEW_CELLS)
    many_s = _restore_s(rig, num_tokens)
    num_bytes = (num_tokens - _FEW_CELLS) * layout.token_bytes
    rates = packed_prompt(layout, _PACK_TOKENS).pack_bytes_per_s
    return CodecRates(
        source="measured",
        kv_k=layout.k_type,
        kv_v=layout.v_type,
        pack_gb_s=1e-9 * median(rates),
        # Noise must not make a copy take no time at all.
        restore_gb_s=1e-9 * num_bytes / max(many_s - few_s, 0.1 * many_s),
        restore_s=few_s,
    )


def _restore_s(rig: StepRig, num_tokens: int) -> float:
    seconds: list[float] = []
    while len(seconds) < _NUM_RESTORES and sum(seconds) < _LONG_S:
        seconds.append(rig.restore_s(num_tokens))
    return median(seconds)
