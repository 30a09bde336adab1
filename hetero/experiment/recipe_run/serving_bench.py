"""Arms of a serving recipe: a candidate brought up on the recipe's hosts, and load on it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import msgspec

from hetero.errors import ConfigError
from hetero.experiment.deploy.deployment import Deployment
from hetero.experiment.deploy.node_configs import kv_pair
from hetero.experiment.deploy.site import Site
from hetero.experiment.load.metrics import PromptLengths, measure
from hetero.experiment.load.plan import LoadPlan
from hetero.experiment.load.record import RequestRecord
from hetero.experiment.load.steady import enough_requests
from hetero.experiment.outcome.measured import Measured
from hetero.experiment.recipe.arms import deployment_of, settings_of
from hetero.experiment.recipe.figures import Arm
from hetero.experiment.recipe.recipe import Serving, Settings
from hetero.experiment.recipe_run.cpu_log import CPULog
from hetero.experiment.recipe_run.load_child import Loaded, load_from_front
from hetero.experiment.recipe_run.run_folder import RunFolder
from hetero.experiment.recipe_run.runner import Say
from hetero.kv.layout import model_layout
from hetero.launch.lab.shaping import parse_rate, rate_text
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.workload.named import load_workload
from hetero.workload.schedule import Schedule
from hetero.workload.trace import Trace

# Before each load, on top of what a node does when it starts: pages, caches, connections.
_WARM_UP_REQUESTS = 2

# Prompts that a fresh deployment reads, so that the wire's rate can follow from how fast it does.
_CALIBRATION_REQUESTS = 6

# A tokenizer splits a letter over two tokens now and then.
_MOST_TOKENS_A_PIECE = 1.02

# Enough for the load beside: it is repeated while the main one lasts.
_BESIDE_SESSIONS = 64


class ServingBench:
    """A deployment stays up while arms share it, and not into the next repetition: where its
    memory lies is part of what differs between repetitions."""

    is_timed = True

    def __init__(
        self, recipe: Serving, site: Site, model: Path, folder: RunFolder, say: Say
    ) -> None:
        self._recipe = recipe
        self._site = site
        self._model = model
        self._folder = folder
        self._logs = folder.path / "logs"
        self._say = say
        self._load = load_workload(recipe.load)
        self._beside = None if recipe.beside is None else load_workload(recipe.beside)
        self._spec = gguf_to_spec(GGUFFile.open(model))
        self._up = ExitStack()
        self._deployment: Deployment | None = None
        self._key: tuple[Arm, int] | None = None

    def measure(self, arm: Arm, repetition: int) -> Measured:
        settings = settings_of(self._recipe, arm)
        assert isinstance(settings, Settings)
        candidate = self._recipe.candidates[str(arm["candidate"])]
        deployment = self._deployed(arm, repetition, settings)
        # Other prompts in each repetition, the same for all arms of one.
        seed = 1000 * self._recipe.seed + repetition
        schedule = self._schedule(settings, seed)
        used = msgspec.to_builtins(settings) | {"versions": deployment.versions}
        used |= self._set_link(settings, deployment, repetition)
        with CPULog(deployment.cpu_seconds) as log:
            loaded = self._run(deployment, self._plan(deployment, settings, schedule, seed))
        told = loaded.summary
        places = None if schedule.is_open else settings.concurrency or 1
        found = measure(loaded.records, concurrency=places)
        taken = log.cores(told.began_s, told.began_s + told.share.seconds)
        lengths = told.prompt_lengths
        used |= {"prompts": told.prompt_kind, "prompt_lengths": msgspec.to_builtins(lengths)}
        emulated = candidate.emulated.items()
        marks = [f"emulated: {device.preset} (host {host})" for host, device in emulated]
        if schedule.num_clipped or schedule.num_dropped:
            marks.append(
                f"in a context of {settings.context_tokens} tokens {schedule.num_clipped} prompts "
                f"were cut short, and {schedule.num_dropped} requests left out"
            )
        return Measured(
            scalars=told.scalars | {f"{name}_cores": cores for name, cores in taken.items()},
            samples=found.samples,
            per_request=found.per_request,
            records=loaded.records,
            settings=used,
            marks=[*marks, *_odd_lengths(lengths), *_odd_pieces(loaded.records)],
            aiperf=told.aiperf,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._key = self._deployment = None
        self._up.__exit__(kind, error, trace)
        with suppress(OSError):  # some are there after an error, or there never were any
            self._logs.rmdir()

    def _deployed(self, arm: Arm, repetition: int, settings: Settings) -> Deployment:
        key = (deployment_of(arm), repetition)
        if self._deployment is None or key != self._key:
            self._key = self._deployment = None
            self._up.close()
            candidate = self._recipe.candidates[str(arm["candidate"])]
            logs = self._logs / str(arm["candidate"])
            self._deployment = self._up.enter_context(
                Deployment(self._site, self._model, candidate, settings, logs, _quiet)
            )
            self._key = key
        return self._deployment

    def _run(self, deployment: Deployment, plan: LoadPlan) -> Loaded:
        loaded = load_from_front(self._site, plan)
        deployment.check_alive()
        return loaded

    def _plan(
        self, deployment: Deployment, settings: Settings, schedule: Schedule, seed: int
    ) -> LoadPlan:
        beside = None
        if self._beside is not None and settings.beside_rate:
            beside = self._beside.draw(
                seed,
                num_sessions=_BESIDE_SESSIONS,
                rate=settings.beside_rate,
                max_tokens_per_sequence=settings.context_tokens,
            )
        return LoadPlan(
            url=deployment.url,
            schedule=schedule,
            concurrency=settings.concurrency or 1,
            beside=beside,
            warmup=max(_WARM_UP_REQUESTS, settings.concurrency or 1),
            seed=seed,
            route=None if settings.route == "auto" else settings.route,
            slo=self._recipe.slo,
        )

    def _schedule(self, settings: Settings, seed: int, num_requests: int | None = None) -> Schedule:
        """At the load's own rate, where neither a rate nor a concurrency is said; then a trace is
        taken whole, unless a number of requests is."""
        rate = settings.rate
        if rate is None and settings.concurrency is None:
            rate = self._load.rate
        requests = num_requests or settings.requests
        if requests is None and not (isinstance(self._load, Trace) and rate is not None):
            requests = enough_requests(settings.concurrency or 1)
        return self._load.draw(
            seed,
            num_requests=requests,
            rate=rate if num_requests is None else None,
            prompt_tokens=settings.prompt_tokens,
            output_tokens=settings.output_tokens,
            max_tokens_per_sequence=settings.context_tokens,
        )

    def _set_link(
        self, settings: Settings, deployment: Deployment, repetition: int
    ) -> dict[str, int]:
        """For every arm of a lab: the one before may have had another rate."""
        lab = self._recipe.cluster.lab
        if lab is None:
            return {}
        rate = parse_rate("link_rate", settings.link_rate or lab.rate)
        if settings.wire_ratio is not None:
            yielded = self._kv_bytes_per_s(settings, deployment, repetition, lab.rate)
            rate = round(8 * yielded / settings.wire_ratio)
        self._site.set_link(rate_text(rate))
        return {"link_bits_per_s": rate}

    def _kv_bytes_per_s(
        self, settings: Settings, deployment: Deployment, repetition: int, fast_link: str
    ) -> float:
        """What prefill yields of this load's prompts, at these types; measured once for each
        repetition, so that how sure it is shows in how they differ."""
        name = f"kv_bytes_per_s {settings.kv} repetition {repetition + 1}"
        known = self._folder.header.calibration.get(name)
        if known is not None:
            return known
        self._site.set_link(fast_link)
        seed = 1000 * self._recipe.seed + repetition
        schedule = self._schedule(settings, seed, _CALIBRATION_REQUESTS)
        plan = LoadPlan(url=deployment.url, schedule=schedule, warmup=1, route="split")
        records = self._run(deployment, plan).records
        rates = [self._rate_of(record, settings.kv) for record in records if record.is_ok]
        if not rates:
            raise ConfigError("wire_ratio: need a split request to set the link by, have none")
        rate = median(rates)
        self._folder.calibrate(name, rate)
        return rate

    def _rate_of(self, record: RequestRecord, kv: str) -> float:
        layout = model_layout(self._spec, *kv_pair(kv))
        stages = record.stages
        seconds = float(stages["prefill_s"]) + float(stages["pack_s"])
        return record.prompt_tokens * layout.token_bytes / seconds


def _odd_lengths(lengths: PromptLengths) -> Iterator[str]:
    if lengths.exact < lengths.counted:
        yield (
            f"{lengths.counted - lengths.exact} of {lengths.counted} prompts were not as long as "
            f"asked for, by {lengths.worst} tokens at most"
        )


def _odd_pieces(records: Sequence[RequestRecord]) -> Iterator[str]:
    """Where a piece is several tokens, the gaps between pieces are not between tokens."""
    pieces = sum(len(record.piece_tokens) for record in records)
    tokens = sum(sum(record.piece_tokens) for record in records)
    if tokens > _MOST_TOKENS_A_PIECE * pieces:
        yield f"text came in pieces of {tokens / pieces:.2f} tokens on average"


def _quiet(line: str) -> None:
    """Nodes coming up are no news in a run of hundreds of arms."""
