"""Figure `decode`: steps per second of our engine, as a share of a bare loop's over equal contexts.

Ceiling of a step: every weight and every row of every context are read once. Ceiling of the ratio:
1, the bare loop in whichever cache mode is faster here; it adds nothing to llama.cpp but a batch to
fill and a greedy pick per row, which we do as well.
"""

from contextlib import ExitStack
from functools import partial
from statistics import median

from hetero.experiment.engine_bench.bare_loop import BareLoop
from hetero.experiment.engine_bench.driven_engine import DrivenEngine
from hetero.experiment.engine_bench.memory_ceilings import memory_ceilings
from hetero.experiment.engine_bench.settings import Settings
from hetero.experiment.figures import Figure, Say, at_least
from hetero.experiment.models import layout_of, model_file, spec_of
from hetero.experiment.turns import flat, ratios, take_turns, timed_steps
from hetero.profile.states import States

_KV_TYPES = ("f16", "q8_0")

# Steps of each cache mode before the faster is chosen, after one that warms up.
_PILOT_STEPS = 2

# A turn's first step finds the other arm's data in the caches; so there are at least two more.
_FEWEST_STEPS, _MOST_STEPS = 3, 16


def measure(settings: Settings, say: Say) -> list[Figure]:
    figures = []
    for kv_type in _KV_TYPES:
        with ExitStack() as stack:
            duel = _Duel(settings, kv_type, stack, say)
            figures += [duel.measure(size, say) for size in settings.batch_sizes]
    return figures


class _Duel:
    """Our engine and both bare loops on one loaded model; sequence i is as long in each."""

    def __init__(self, settings: Settings, kv_type: str, stack: ExitStack, say: Say) -> None:
        self._settings = settings
        self._kv_type = kv_type
        path = model_file(settings.folder, settings.shape, settings.quant, say)
        self._layout = layout_of(path, kv_type)
        self._weight_bytes = spec_of(path).weight_bytes
        self._read_bytes_per_s = memory_ceilings(quick=settings.quick)["read_bytes_per_s"]
        num_slots = max(settings.batch_sizes)
        cells = settings.context_tokens + settings.headroom_tokens
        self._ours = stack.enter_context(
            DrivenEngine(
                path,
                self._layout,
                num_slots=num_slots,
                context_tokens=cells,
                num_threads=settings.num_threads,
            )
        )
        model = self._ours.engine.model
        self._states = States(model, self._layout, num_threads=settings.num_threads)
        self._bare = {
            name: stack.enter_context(
                BareLoop(
                    model,
                    self._layout,
                    num_sequences=num_slots,
                    tokens_per_sequence=self._ours.engine.context.tokens_per_sequence,
                    unified=name == "unified",
                    num_threads=settings.num_threads,
                )
            )
            for name in ("streams", "unified")
        }

    def measure(self, size: int, say: Say) -> Figure:
        self._fill(size)
        kv_bytes = sum(self._ours.lengths.values()) * self._layout.token_bytes
        floor_s = (self._weight_bytes + kv_bytes) / self._read_bytes_per_s
        say(
            f"decode {self._kv_type} batch {size}: a step reads "
            f"{self._weight_bytes / 1e9:.2f} GB of weights and {kv_bytes / 1e9:.2f} GB of KV, "
            f"at least {1000 * floor_s:.1f} ms on one core"
        )
        pilots = {
            name: median(timed_steps(partial(bare.step, size), _PILOT_STEPS))
            for name, bare in self._bare.items()
        }
        timed_steps(self._ours.step, _PILOT_STEPS)
        better = min(pilots, key=lambda name: pilots[name])
        num_steps = self._settings.rows_per_turn // size
        num_steps = min(max(num_steps, _FEWEST_STEPS), _MOST_STEPS)
        rounds = take_turns(
            {
                "bare": partial(timed_steps, partial(self._bare[better].step, size), num_steps),
                "ours": partial(timed_steps, self._ours.step, num_steps),
            },
            self._settings.num_rounds,
        )
        shares = ratios(rounds["bare"], rounds["ours"])
        return Figure(
            name=f"decode_{self._kv_type}_batch_{size}",
            says="steps per second of our engine over those of a bare llama.cpp loop",
            value=median(shares),
            unit="ratio",
            target=at_least(0.98),
            arms={
                "round_ratio": shares,
                "ours_step_s": flat(rounds["ours"]),
                "bare_step_s": flat(rounds["bare"]),
            },
            parameters={
                "model": self._settings.shape.name,
                "quant": self._settings.quant,
                "kv_type": self._kv_type,
                "batch": size,
                "context_tokens": self._settings.context_tokens,
                "better_cache_mode": better,
                "pilot_step_s": pilots,
                "read_ceiling_step_s": floor_s,
                "tokens_per_s": size / median(flat(rounds["ours"])),
            },
        )

    def _fill(self, size: int) -> None:
        """Let sequences arrive at our engine; then give the bare loops the lengths they have."""
        num_tokens = self._settings.context_tokens
        for seed in range(len(self._ours.lengths), size):
            self._ours.arrive(
                self._states.make(num_tokens, self._ours.num_streams, seed), num_tokens
            )
        self._ours.fill(size)
        for bare in self._bare.values():
            for seed, length in enumerate(self._ours.lengths.values()):
                bare.restore(seed, self._states.make(length, bare.num_streams, seed), length)
