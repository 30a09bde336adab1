"""Arms of a serving recipe: a candidate brought up on the recipe's hosts, and load on it."""

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from hetero.errors import ConfigError
from hetero.experiment.deploy.deployment import Deployment
from hetero.experiment.deploy.node_configs import kv_pair
from hetero.experiment.deploy.site import Site
from hetero.experiment.load.metrics import measure
from hetero.experiment.load.plan import LoadPlan
from hetero.experiment.load.record import RequestRecord
from hetero.experiment.load.slo import parse_slo
from hetero.experiment.outcome.arm_run import Arm
from hetero.experiment.outcome.measured import Measured
from hetero.experiment.recipe.arms import deployment_of, settings_of
from hetero.experiment.recipe.recipe import Serving, Settings
from hetero.experiment.recipe_run.load_child import Loaded, run_load
from hetero.experiment.recipe_run.run_folder import RunFolder
from hetero.experiment.recipe_run.runner import Say
from hetero.kv.layout import model_layout
from hetero.launch.lab.shaping import parse_rate, rate_text
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.workload.named import load_workload
from hetero.workload.schedule import Schedule

# Before each load, on top of what a node does when it starts: pages, caches, connections.
_WARM_UP_REQUESTS = 2

# Prompts that a fresh deployment reads, so that the wire's rate can follow from how fast it does.
_CALIBRATION_REQUESTS = 3

# Enough for the load beside: it is repeated while the main one lasts.
_BESIDE_SESSIONS = 64


class ServingBench:
    """A deployment stays up while arms share it, and not into the next repetition: where its
    memory lies is part of what differs between repetitions."""

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
        self._bounds = parse_slo(recipe.slo)
        self._spec = gguf_to_spec(GGUFFile.open(model))
        self._up = ExitStack()
        self._deployment: Deployment | None = None
        self._key: tuple[Arm, int] | None = None

    def measure(self, arm: Arm, repetition: int) -> Measured:
        settings = settings_of(self._recipe, arm)
        assert isinstance(settings, Settings)
        candidate = self._recipe.candidates[str(arm["candidate"])]
        deployment = self._deployed(arm, repetition, settings)
        used = msgspec.to_builtins(settings) | {"versions": deployment.versions}
        link = self._link_bits_per_s(settings, deployment)
        if link is not None:
            self._site.set_link(rate_text(link))
            used["link_bits_per_s"] = link
        before, clock = deployment.cpu_seconds(), time.monotonic()
        loaded = self._run(deployment, self._plan(deployment, settings, repetition))
        seconds = time.monotonic() - clock
        after = deployment.cpu_seconds()
        found = measure(loaded.records, self._bounds)
        cores = {f"{name}_cores": (after[name] - before[name]) / seconds for name in after}
        marks = [
            f"emulated: {device.preset} (host {host})"
            for host, device in candidate.emulated.items()
        ]
        return Measured(
            scalars=loaded.scalars | found.scalars | cores,
            samples=found.samples,
            records=loaded.records,
            settings=used,
            marks=marks,
            aiperf=loaded.aiperf,
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
        loaded = run_load(self._site, plan)
        deployment.check_alive()
        return loaded

    def _plan(self, deployment: Deployment, settings: Settings, repetition: int) -> LoadPlan:
        """Other prompts in each repetition, the same for all arms of one."""
        seed = 1000 * self._recipe.seed + repetition
        beside = None
        if self._beside is not None and settings.beside_rate:
            beside = self._beside.draw(
                seed, num_sessions=_BESIDE_SESSIONS, rate=settings.beside_rate
            )
        return LoadPlan(
            url=deployment.url,
            schedule=self._schedule(settings, seed),
            concurrency=settings.concurrency or 1,
            beside=beside,
            warmup=_WARM_UP_REQUESTS,
            seed=seed,
            route=None if settings.route == "auto" else settings.route,
            slo=self._recipe.slo,
        )

    def _schedule(self, settings: Settings, seed: int) -> Schedule:
        return self._load.draw(
            seed,
            num_requests=settings.requests or max(8, 2 * (settings.concurrency or 1)),
            rate=settings.rate,
            prompt_tokens=settings.prompt_tokens,
            output_tokens=settings.output_tokens,
            max_tokens_per_sequence=settings.context_tokens,
        )

    def _link_bits_per_s(self, settings: Settings, deployment: Deployment) -> int | None:
        if settings.link_rate is not None:
            return parse_rate("link_rate", settings.link_rate)
        if settings.wire_ratio is None:
            return None
        return round(8 * self._kv_bytes_per_s(settings, deployment) / settings.wire_ratio)

    def _kv_bytes_per_s(self, settings: Settings, deployment: Deployment) -> float:
        """What prefill yields, at these types; measured once for a run, since the links of all of
        its arms follow from it."""
        name = f"kv_bytes_per_s {settings.kv}"
        known = self._folder.header.calibration.get(name)
        if known is not None:
            return known
        lab = self._recipe.cluster.lab
        assert lab is not None, "wire_ratio without a lab was refused"
        self._site.set_link(lab.rate)
        schedule = self._load.draw(
            self._recipe.seed, num_requests=_CALIBRATION_REQUESTS, output_tokens=2
        )
        plan = LoadPlan(url=deployment.url, schedule=schedule, warmup=1, route="split")
        records = self._run(deployment, plan).records
        rates = [self._rate_of(record, settings.kv) for record in records if record.is_ok]
        if not rates:
            raise ConfigError("wire_ratio: need a split request to set the link by, have none")
        rate = sorted(rates)[len(rates) // 2]
        self._say(f"prefill yields {8e-6 * rate:.0f} Mbit/s of KV at {settings.kv}")
        self._folder.calibrate(name, rate)
        return rate

    def _rate_of(self, record: RequestRecord, kv: str) -> float:
        layout = model_layout(self._spec, *kv_pair(kv))
        stages = record.stages
        seconds = float(stages["prefill_s"]) + float(stages["pack_s"])
        return record.prompt_tokens * layout.token_bytes / seconds


def _quiet(line: str) -> None:
    """Nodes coming up are no news in a run of hundreds of arms."""
