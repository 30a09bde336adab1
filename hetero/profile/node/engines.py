"""llama.cpp on one loaded model: threads, steps, codecs and co-running, and what came of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from hetero.errors import HeteroError, PlanError
from hetero.kv.layout import KVLayout
from hetero.llama.library import Owned
from hetero.llama.model import Model
from hetero.profile.node.cache import Cache
from hetero.profile.node.co_running import (
    copies_beside_decode,
    prefill_beside_decode,
    receive_beside_decode,
    restore_beside_decode,
)
from hetero.profile.node.codecs import measure_codecs
from hetero.profile.node.engine_survey import ROLES, EngineSurvey
from hetero.profile.node.first_token import first_token_s
from hetero.profile.node.gpu_copies import gpu_copier
from hetero.profile.node.interval import interval_of
from hetero.profile.node.pilot import Pilots
from hetero.profile.node.points import Domain
from hetero.profile.node.rig import StepRig
from hetero.profile.node.soak import soak
from hetero.profile.node.threads import best, candidates, time_threads
from hetero.profile.node_profile import (
    CodecRates,
    CoRun,
    EngineFit,
    Noise,
    Role,
    Soak,
)
from hetero.profile.states import States
from hetero.profile.tiling import Tiling

KVTypes = tuple[str, str]  # of K and of V
_MeasureCoRun = Callable[[StepRig, int, int], CoRun]  # sequences that decode, cells of each

# What llama.cpp's engine for CPUs attends to in tiles.
_TILED: KVTypes = ("f16", "f16")

# What threads are tried on: a few sequences, a short chunk.
_TRIED_ROWS: dict[Role, int] = {"decode": 4, "prefill": 64}
_TRIED_CELLS = 512
_CO_RUN_SEQUENCES = 4
_RESTORED_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """threads: None: those that are found best, of `num_cores`."""

    domain: Domain
    num_cores: int
    threads: int | None


class Engines(Owned):
    """Call in the order in which the methods stand."""

    def __init__(
        self, model: Model, layouts: Mapping[KVTypes, KVLayout], options: EngineOptions
    ) -> None:
        self._model = model
        self._layouts = layouts
        self._options = options
        self._states = {
            types: States(model, layout, num_threads=options.num_cores)
            for types, layout in layouts.items()
        }
        self._first = Cache(False, *next(iter(layouts)))
        self.threads: dict[Role, int] = {}
        self.tried: dict[Role, dict[int, float]] = {}
        self.request_s = first_token_s(model)
        self._opened = ExitStack()

    def close(self) -> None:
        self._opened.close()

    def find_threads(self, until: float) -> None:
        """until: of `time.monotonic`; what is begun is finished, and something is tried."""
        domain, options = self._options.domain, self._options
        counts = candidates(options.num_cores) if options.threads is None else [options.threads]
        with self._rig(self._first) as rig:
            cells = min(_TRIED_CELLS, domain.context_tokens // 2)
            for role in ROLES:
                rows = min(_TRIED_ROWS[role], domain.most_rows(role))
                rig.hold([cells] * (rows if role == "decode" else 1))
                step = partial(rig.time_step if role == "decode" else rig.time_chunk, rows)
                self.tried[role] = time_threads(counts, rig.set_threads, step, until=until)
                self.threads[role] = best(self.tried[role])

    def survey(self, seconds: float, progress: Callable[[float], None]) -> int:
        """How many of the steps that were planned were left out: too long, or too late."""
        # At a pilot's few cells the types make no difference.
        layout = next(iter(self._layouts.values()))
        self.pilots = self._opened.enter_context(Pilots(self._model, layout, threads=self.threads))
        tiling = Tiling(heads=self._model.num_heads, threads=self.threads["prefill"])
        caches = [
            Cache(unified, *types, tiling if types == _TILED else None)
            for unified in (False, True)
            for types in self._layouts
        ]
        self._survey = EngineSurvey(
            self._rig,
            caches,
            self._options.domain,
            self.pilots,
            self.threads,
            np.random.default_rng(),
        )
        self._survey.run(seconds, progress)
        return self._survey.num_left_out

    def measure_codecs(self) -> list[CodecRates]:
        num_tokens = min(_RESTORED_TOKENS, self._options.domain.context_tokens)
        rates = []
        for types, layout in self._layouts.items():
            with self._rig(Cache(False, *types)) as rig:
                rates.append(measure_codecs(rig, layout, num_tokens))
        return rates

    def measure_co_runs(self, say: Callable[[str], None], *, has_gpu: bool) -> list[CoRun]:
        """What could not be measured is said."""
        domain = self._options.domain
        has_other = domain.max_sequences > 1
        # One sequence is left for what needs one beside those that decode.
        size = min(_CO_RUN_SEQUENCES, domain.max_sequences - has_other)
        cells = min(_TRIED_CELLS, domain.context_tokens // 2)
        measures: dict[str, _MeasureCoRun] = {
            "prefill beside decode": prefill_beside_decode if has_other else _lacks_slot,
            "restores beside decode": restore_beside_decode if has_other else _lacks_slot,
            "KV arriving beside decode": receive_beside_decode,
        }
        # Without a GPU torch is not even imported: it takes more memory than a small model.
        if has_gpu:
            measures["GPU copies beside decode"] = _copies_beside_decode
        found = []
        with self._rig(self._first) as rig:
            rig.set_threads(self.threads["decode"])
            for name, measure in measures.items():
                try:
                    found.append(measure(rig, size, cells))
                except HeteroError as error:
                    say(f"{name}: not measured: {error}")
        return found

    def soak(self, seconds: float, cpus: list[int], say: Callable[[str], None]) -> Soak:
        """Decode steps of a full batch."""
        domain = self._options.domain
        cells = min(_TRIED_CELLS, domain.context_tokens // 2)
        with self._rig(self._first) as rig:
            rig.set_threads(self.threads["decode"])
            rig.hold([cells] * domain.max_sequences)
            return soak(lambda: rig.time_step(domain.max_sequences), seconds, cpus, say)

    def fits(self, noise: Noise) -> list[EngineFit]:
        fits = []
        for role in ROLES:
            survey = self._survey.surveys[role]
            found = survey.fits()
            for cache, cost in found.costs.items():
                fits.append(
                    EngineFit(
                        source="fitted",
                        role=role,
                        engine="llama",
                        attention="llama",
                        device="cpu",
                        unified=cache.unified,
                        kv_k=cache.kv_k,
                        kv_v=cache.kv_v,
                        threads=self.threads[role],
                        chunk_tokens=self._options.domain.chunk_tokens,
                        cost=cost,
                        request_s=self.request_s,
                        interval=interval_of(found.overall, noise),
                        error=found.errors[cache],
                        samples=survey.samples[cache],
                    )
                )
        return fits

    @contextmanager
    def _rig(self, cache: Cache) -> Iterator[StepRig]:
        domain, types = self._options.domain, (cache.kv_k, cache.kv_v)
        with StepRig(
            self._model,
            self._layouts[types],
            num_sequences=domain.max_sequences,
            context_tokens=domain.context_tokens,
            unified=cache.unified,
            num_threads=self._options.num_cores,
            chunk_tokens=domain.chunk_tokens,
            states=self._states[types],
        ) as rig:
            yield rig


def _lacks_slot(rig: StepRig, num_sequences: int, cells: int) -> CoRun:
    raise PlanError(f"need 2 slots, have {rig.num_sequences}: raise --slots")


def _copies_beside_decode(rig: StepRig, num_sequences: int, cells: int) -> CoRun:
    copy = gpu_copier()
    if copy is None:
        raise PlanError("need a GPU that torch sees, and some of its memory, have none")
    return copies_beside_decode(rig, num_sequences, cells, copy)
