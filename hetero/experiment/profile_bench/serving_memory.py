"""What a decode node of the same sizes takes once it has read a chunk of its own and every slot is
full, at the largest types and in the larger of the cache modes that a profile measures."""

from pathlib import Path

from hetero.decode.engine import DecodeEngine
from hetero.decode.sequence import Job
from hetero.experiment.child import result_from_child
from hetero.experiment.engine_bench.driven_engine import GREEDY, DrivenEngine
from hetero.experiment.models import layout_of
from hetero.experiment.profile_bench.settings import Settings
from hetero.messages import Finished
from hetero.profile.states import States

_KV_TYPE = "f16"
_ROOM_TOKENS = 32
_TOKEN = 5  # of text, any


def serving_peak_bytes(settings: Settings, path: Path) -> int:
    """Of a process of its own. Raises: EngineError if it can't be run."""
    return max(result_from_child(_fill, path, settings, unified) for unified in (False, True))


def _fill(path: Path, settings: Settings, unified: bool) -> int:
    import resource

    import hetero.serve.start  # noqa: F401  (a node has its sockets' and servers' code, too)

    layout = layout_of(path, _KV_TYPE)
    length = settings.context_tokens - _ROOM_TOKENS
    with DrivenEngine(
        path,
        layout,
        num_slots=settings.slots,
        context_tokens=settings.context_tokens,
        num_threads=1,
        unified=unified,
    ) as driven:
        _read_chunk(driven.engine, min(settings.chunk_tokens, length))
        states = States(driven.engine.model, layout, num_threads=1)
        for seed in range(settings.slots):
            driven.arrive(states.make(length, driven.num_streams, seed), length)
            driven.fill(seed + 1)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _read_chunk(engine: DecodeEngine, num_tokens: int) -> None:
    prompt = (_TOKEN,) * num_tokens
    engine.submit(
        Job(
            request_id="own",
            num_prompt_tokens=num_tokens,
            max_tokens=1,
            num_choices=1,
            sampling=GREEDY,
            prompt=prompt,
        )
    )
    while not any(isinstance(event, Finished) for event in engine.step()):
        pass
