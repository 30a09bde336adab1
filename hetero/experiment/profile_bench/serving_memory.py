"""What a decode node of the same sizes takes when every slot is full, at the largest types and in
the larger of the cache modes that a profile measures."""

from pathlib import Path

from hetero.experiment.engine_bench.child import result_from_child
from hetero.experiment.engine_bench.driven_engine import DrivenEngine
from hetero.experiment.models import layout_of
from hetero.experiment.profile_bench.settings import Settings
from hetero.profile.states import States

_KV_TYPE = "f16"
_ROOM_TOKENS = 32


def serving_peak_bytes(settings: Settings, path: Path) -> int:
    """Of a process of its own. Raises: EngineError if it can't be run."""
    return max(
        result_from_child(_fill, path, settings.slots, settings.context_tokens, unified)
        for unified in (False, True)
    )


def _fill(path: Path, slots: int, context_tokens: int, unified: bool) -> int:
    import resource

    layout = layout_of(path, _KV_TYPE)
    length = context_tokens - _ROOM_TOKENS
    with DrivenEngine(
        path,
        layout,
        num_slots=slots,
        context_tokens=context_tokens,
        num_threads=1,
        unified=unified,
    ) as driven:
        states = States(driven.engine.model, layout, num_threads=1)
        for seed in range(slots):
            driven.arrive(states.make(length, driven.num_streams, seed), length)
            driven.fill(seed + 1)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
