"""Figure `python`: milliseconds of Python per decode step, on a model so small that they show.

Ceiling: 0. A step is one llama_decode and one draw per row; everything else is bookkeeping: slots,
batch arrays, tokens into messages, and the snapshot that the engine's thread takes after it.
"""

import time
from functools import partial
from statistics import median

from hetero.experiment.engine_bench.call_timers import CallTimers
from hetero.experiment.engine_bench.driven_engine import (
    GREEDY,
    DrivenEngine,
    running_engines,
)
from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.figures import Figure, Say, at_most
from hetero.experiment.models import layout_of, model_file
from hetero.experiment.turns import flat, take_turns
from hetero.messages import Sampling

_TARGET_MS = 0.3

_SAMPLINGS = {
    "greedy": GREEDY,
    # A new random generator for every draw, as every request at a temperature needs.
    "temperature": Sampling(temperature=0.8, top_k=40, ignore_eos=True),
}


def measure(settings: Settings, say: Say) -> list[Figure]:
    size = settings.python_batch
    shape = settings.python_shape
    path = model_file(settings.folder, shape, "q8_0", say)
    layout = layout_of(path, "q8_0")
    say(f"python at batch {size}: the ceiling is no work at all, the target {_TARGET_MS} ms a step")
    num_steps = (1 + settings.num_rounds) * settings.python_steps
    with (
        running_engines(path, layout, _SAMPLINGS, size, num_steps, settings.num_threads) as engines,
        CallTimers("llama_decode", "llama_sampler_") as timers,
    ):
        rounds = take_turns(
            {
                name: partial(_turn, driven, timers, settings.python_steps)
                for name, driven in engines.items()
            },
            settings.num_rounds,
        )
    return [
        Figure(
            name=f"python_{name}",
            says="a step's wall time outside of llama_decode and llama_sampler_*",
            value=median(flat(samples)),
            unit="ms",
            target=at_most(_TARGET_MS),
            arms={"python_ms": flat(samples)},
            parameters={"batch": size, "model": shape.name, "sampling": name},
        )
        for name, samples in rounds.items()
    ]


def _turn(driven: DrivenEngine, timers: CallTimers, num_steps: int) -> list[float]:
    engine = driven.engine
    milliseconds = []
    for _ in range(num_steps):
        timers.reset()
        started = time.perf_counter()
        engine.step()
        # EngineThread takes these after every step.
        _ = engine.num_active, engine.num_queued, engine.kv_bytes_held
        milliseconds.append(1000 * timers.outside_s(time.perf_counter() - started))
    return milliseconds
