"""Figure `restore`: bytes per second of `Context.restore_sequence`, as a share of memcpy's.

Ceiling: 1. A restore copies a blob into the cache once, in as many pieces as there are layers; what
it adds is a look at every cell and a check of every header.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.figures import Figure, Say, at_least
from hetero.experiment.models import layout_of, model_file
from hetero.experiment.turns import flat, ratios, take_turns
from hetero.kv.types import kv_type
from hetero.llama.context import Context, ContextConfig
from hetero.llama.model import Model
from hetero.profile.states import States

_KV_TYPE = "q8_0"
_NUM_SEQUENCES = 4


def measure(settings: Settings, say: Say) -> list[Figure]:
    path = model_file(settings.folder, settings.restore_shape, "q8_0", say)
    layout = layout_of(path, _KV_TYPE)
    ggml_type = kv_type(_KV_TYPE).ggml_id
    config = ContextConfig(
        num_sequences=_NUM_SEQUENCES,
        tokens_per_sequence=max(settings.restore_tokens),
        unified=False,
        k_ggml_type=ggml_type,
        v_ggml_type=ggml_type,
        num_threads=settings.num_threads,
    )
    figures = []
    with Model(path) as model, Context(model, config) as context:
        states = States(model, layout, num_threads=settings.num_threads)
        for num_tokens in settings.restore_tokens:
            figures.append(_measure(settings, context, states, num_tokens, say))
    return figures


def _measure(
    settings: Settings, context: Context, states: States, num_tokens: int, say: Say
) -> Figure:
    blob = states.make(num_tokens, _NUM_SEQUENCES, seed=0)
    # A buffer per sequence, so that neither arm finds its target in the caches more than the other.
    buffers = [np.zeros_like(blob) for _ in range(_NUM_SEQUENCES)]
    megabytes = blob.nbytes / 1e6

    def turn(copy: Callable[[int], None]) -> list[float]:
        seconds = []
        for index in range(settings.num_copies):
            started = time.perf_counter()
            copy(index % _NUM_SEQUENCES)
            seconds.append(time.perf_counter() - started)
        return seconds

    say(f"restore of {megabytes:.0f} MB: the ceiling is memcpy of the same bytes, beside it")
    rounds = take_turns(
        {
            "memcpy": lambda: turn(lambda target: np.copyto(buffers[target], blob)),
            "restore": lambda: turn(lambda target: context.restore_sequence(target, blob)),
        },
        settings.num_rounds,
    )
    shares = ratios(rounds["memcpy"], rounds["restore"])
    return Figure(
        name=f"restore_{megabytes:.0f}_mb",
        says="bytes per second of a restore over those of memcpy",
        value=median(shares),
        unit="ratio",
        target=at_least(0.7),
        arms={
            "round_ratio": shares,
            "restore_gb_per_s": [blob.nbytes / 1e9 / s for s in flat(rounds["restore"])],
            "memcpy_gb_per_s": [blob.nbytes / 1e9 / s for s in flat(rounds["memcpy"])],
        },
        parameters={
            "blob_bytes": blob.nbytes,
            "tokens": num_tokens,
            "token_bytes": states.layout.token_bytes,
            "kv_type": _KV_TYPE,
        },
    )
