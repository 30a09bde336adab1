"""Figure `sampling`: drawing and bookkeeping at a 128k vocabulary, as a share of an 8B step.

Physics: a step computes every row with every weight, and shares it among cores; a draw visits the
whole vocabulary once per row on one core, more often if the candidates must be sorted. The step
is *estimated*: two models of a few of the 32 layers are timed over full contexts, and what a layer
adds is taken 30 times or so, the embedding and output matrix once.
"""

import time
from functools import partial
from statistics import median

from hetero.experiment.engine_bench.bare_loop import BareLoop
from hetero.experiment.engine_bench.call_timers import CallTimers
from hetero.experiment.engine_bench.driven_engine import (
    GREEDY,
    DrivenEngine,
    running_engines,
)
from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.figures import Figure, Say, at_most
from hetero.experiment.models import layout_of, model_file
from hetero.experiment.turns import flat, take_turns, timed_steps
from hetero.llama.model import Model
from hetero.messages import Sampling
from hetero.profile.states import States

_KV_TYPE = "q8_0"
_LARGE_STEPS = 3
_SMALL_STEPS = 6

_SAMPLINGS = {
    "greedy": GREEDY,
    "temperature_top_k": Sampling(temperature=0.8, top_k=40, ignore_eos=True),
    # Nothing cuts the candidates down before they are sorted: the dearest that people ask for.
    "top_p_alone": Sampling(temperature=0.8, top_k=0, top_p=0.95, min_p=0.0, ignore_eos=True),
}


def measure(settings: Settings, say: Say) -> list[Figure]:
    size = settings.python_batch
    step_s, layer_times = _estimated_step_s(settings, say)
    say(f"sampling at batch {size}: an 8B-shaped step takes about {step_s:.2f} s, 5% of it is ours")
    rounds = _sampling_s(settings, say)
    return [
        Figure(
            name=f"sampling_{name}",
            says="drawing and bookkeeping of a step over an estimated 8B-shaped step",
            value=median(flat(samples)) / step_s,
            unit="ratio",
            target=at_most(0.05),
            arms={"sampling_s": flat(samples), **layer_times},
            parameters={
                "batch": size,
                "vocabulary": settings.vocabulary_shape.vocab_size,
                "step_s_estimated": step_s,
                "layers_measured": settings.large_layers,
                "layers_estimated": settings.large_all_layers,
                "context_tokens": settings.context_tokens,
                "step_threads": settings.num_threads,
                "sampling_threads": 1,
                "sampling": name,
            },
        )
        for name, samples in rounds.items()
    ]


def _estimated_step_s(settings: Settings, say: Say) -> tuple[float, dict[str, list[float]]]:
    arms = {
        f"step_of_{layers}_layers_s": _large_step_s(settings, layers, say)
        for layers in settings.large_layers
    }
    few, many = settings.large_layers
    few_s, many_s = (median(samples) for samples in arms.values())
    layer_s = (many_s - few_s) / (many - few)
    return few_s + (settings.large_all_layers - few) * layer_s, arms


def _large_step_s(settings: Settings, layers: int, say: Say) -> list[float]:
    path = model_file(settings.folder, settings.large_shape(layers), settings.quant, say)
    layout = layout_of(path, _KV_TYPE)
    size, num_tokens = settings.python_batch, settings.context_tokens
    say(f"sampling: a step of {layers} of {settings.large_all_layers} layers")
    with Model(path) as model:
        states = States(model, layout, num_threads=settings.num_threads)
        with BareLoop(
            model,
            layout,
            num_sequences=size,
            tokens_per_sequence=num_tokens + settings.headroom_tokens,
            unified=False,
            num_threads=settings.num_threads,
        ) as bare:
            for seed in range(size):
                bare.restore(seed, states.make(num_tokens, size, seed), num_tokens)
            return timed_steps(lambda: bare.step(size), _LARGE_STEPS)


def _sampling_s(settings: Settings, say: Say) -> dict[str, list[list[float]]]:
    """Seconds a step spends outside of llama_decode, by way of sampling."""
    size = settings.python_batch
    path = model_file(settings.folder, settings.vocabulary_shape, "q8_0", say)
    layout = layout_of(path, _KV_TYPE)
    num_steps = (1 + settings.num_rounds) * _SMALL_STEPS
    with (
        running_engines(path, layout, _SAMPLINGS, size, num_steps, settings.num_threads) as engines,
        CallTimers("llama_decode") as timers,
    ):
        return take_turns(
            {name: partial(_turn, driven, timers) for name, driven in engines.items()},
            settings.num_rounds,
        )


def _turn(driven: DrivenEngine, timers: CallTimers) -> list[float]:
    seconds = []
    for _ in range(_SMALL_STEPS):
        timers.reset()
        started = time.perf_counter()
        driven.engine.step()
        seconds.append(timers.outside_s(time.perf_counter() - started))
    return seconds
