"""`hetero profile node`, from a model file to a NodeProfile, within a time budget."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hetero.errors import HeteroError
from hetero.kv.layout import KVLayout, model_layout
from hetero.llama.model import Model
from hetero.llama.offload import check_offload
from hetero.machine.interleaving import interleave
from hetero.messages import ModelFingerprint
from hetero.model.spec import ModelSpec
from hetero.profile.ceilings.measure import measure_ceilings
from hetero.profile.facts.collect import collect_facts
from hetero.profile.facts.meters import throttle_counts, throttled_between
from hetero.profile.facts.report import Facts
from hetero.profile.facts.state import settings_now
from hetero.profile.model_sizes import model_shape
from hetero.profile.node.all_nodes import nodes_co_runs
from hetero.profile.node.cores import engine_cpus
from hetero.profile.node.engines import EngineOptions, Engines, KVTypes
from hetero.profile.node.experts import measure_experts
from hetero.profile.node.gpu_prefill import PrefillSizes, measure_gpu_prefill
from hetero.profile.node.memory import check_memory
from hetero.profile.node.noise import CPUWatch, judge
from hetero.profile.node.place import FoundPlace, Job, find_place
from hetero.profile.node.points import Domain
from hetero.profile.node.settings import role_settings
from hetero.profile.node_profile import (
    Ceilings,
    ExpertUnion,
    MachineProfile,
    NodeProfile,
    Provenance,
)
from hetero.profile.other_types import estimated_fits
from hetero.profile.provenance import provenance

# Of the budget. The rest is for loading the model, for its codecs, and for what can't be planned.
_CEILINGS_SHARE = 0.1
_PLACE_SHARE = 0.2  # most models take far less
_THREADS_SHARE = 0.06
_AFTER_SURVEY_SHARE = 0.08
_LEAST_SURVEY_SHARE = 0.2

# What ceilings may take of memory in any case; no more than the node will, where that is known.
_CEILINGS_BYTES = 2**31

Say = Callable[[str], None]
Progress = Callable[[float], None]  # share of the whole that is done, the soak included


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """What to measure, as a node would be configured.

    threads: None: what is found best. gpu_layers: with so many on a GPU llama.cpp's prefill is
    measured, too; 0: it is not.
    """

    budget_s: float
    slots: int
    context_tokens: int
    chunk_tokens: int
    kv_types: Sequence[KVTypes]
    threads: int | None
    gpu_layers: int
    soak_s: float  # after everything else, and beside the budget; 0: not at all
    disk_folder: Path


@dataclass(frozen=True)
class ModelFile:
    """fingerprint: None for random weights."""

    path: Path
    spec: ModelSpec
    fingerprint: ModelFingerprint | None


def profile_machine(options: NodeOptions, say: Say) -> MachineProfile:
    """Facts and ceilings alone."""
    started = time.monotonic()
    facts = collect_facts()
    ceilings = _measure_ceilings(facts, options, None, _CEILINGS_BYTES, say)
    return MachineProfile(
        host=socket.gethostname(),
        date=_now(),
        facts=facts,
        ceilings=ceilings,
        provenance=_provenance(started, options, settings_now()),
    )


def check_fits(spec: ModelSpec, options: NodeOptions) -> int:
    """Bytes of memory that a node of these options takes. Raises: PlanError if they aren't free."""
    return check_memory(spec, _layouts(spec, options).values(), _domain(options))


def profile_node(
    model: ModelFile, options: NodeOptions, say: Say, progress: Progress
) -> NodeProfile:
    """Raises: HeteroError if the model can't be run here."""
    started = time.monotonic()
    check_offload(options.gpu_layers)
    layouts, domain = _layouts(model.spec, options), _domain(options)
    need_bytes = check_fits(model.spec, options)
    throttles = throttle_counts()
    # As they are before this process is settled on one node.
    facts, settings = collect_facts(), settings_now()
    found = _find_place(facts, need_bytes, model, layouts, domain, options, say)
    place = found.place
    ceilings = _measure_ceilings(facts, options, place.node, max(need_bytes, _CEILINGS_BYTES), say)
    nodes_at_once = nodes_co_runs(
        model.path,
        model.spec.weight_bytes,
        layouts[options.kv_types[0]],
        facts,
        engine_cpus(facts),
        say,
    )
    if place.node is not None:
        # Before anything is allocated: memory lies where the thread that touches it first runs.
        os.sched_setaffinity(0, place.cpus)
    interleave(place.interleave)
    shape = model_shape(model.spec, model.fingerprint)
    on_gpus = measure_gpu_prefill(
        PrefillSizes(
            model=model.path,
            layout=layouts[options.kv_types[0]],
            vocab_size=model.spec.vocab_size,
            context_tokens=options.context_tokens,
            chunk_tokens=domain.chunk_tokens,
            # All: which number is best is found later, on the CPU.
            threads=options.threads or len(place.cpus),
            load=place.load,
            gpu_layers=options.gpu_layers,
        ),
        facts,
        options.budget_s,
        say,
    )
    say(f"loading {model.path.name}")
    with (
        Model(model.path, load=place.load) as loaded,
        Engines(
            loaded,
            layouts,
            EngineOptions(domain=domain, num_cores=len(place.cpus), threads=options.threads),
        ) as engines,
    ):
        engines.find_threads(time.monotonic() + _THREADS_SHARE * options.budget_s)
        say(", ".join(f"{role}: {count} threads" for role, count in engines.threads.items()))
        experts = _measure_experts(loaded, model, domain, engines.threads["decode"], say)
        watch = CPUWatch()
        _survey(engines, options, started, say, progress)
        others = watch.taken()
        codecs = engines.measure_codecs()
        co_runs = engines.measure_co_runs(say, has_gpu=bool(facts.gpus)) + nodes_at_once
        throttled = throttled_between(throttles, throttle_counts())
        logs = {str(name): log for name, log in engines.pilots.logs.items()}
        logs |= {on_gpu.device: on_gpu.pilot for on_gpu in on_gpus}
        noise = judge(logs, others, throttled, facts.power)
        soak = None
        if options.soak_s:
            say(f"soaking for {options.soak_s:g} s")
            soak = engines.soak(options.soak_s, list(place.cpus), say)
        fits = engines.fits(noise)
        for on_gpu in on_gpus:
            fits += on_gpu.fits(noise, engines.request_s)
        fits += estimated_fits(fits, shape, ceilings)
        best = role_settings(found, engines.threads, engines.tried, fits, domain)
    progress(1.0)
    return NodeProfile(
        host=socket.gethostname(),
        date=_now(),
        model=shape,
        facts=facts,
        ceilings=ceilings,
        fits=fits,
        codecs=codecs,
        co_runs=co_runs,
        settings=best,
        noise=noise,
        soak=soak,
        experts=experts,
        provenance=_provenance(started, options, settings),
    )


def _layouts(spec: ModelSpec, options: NodeOptions) -> dict[KVTypes, KVLayout]:
    return {types: model_layout(spec, *types) for types in options.kv_types}


def _domain(options: NodeOptions) -> Domain:
    chunk_tokens = min(options.chunk_tokens, options.context_tokens)
    return Domain(options.slots, options.context_tokens, chunk_tokens)


def _measure_ceilings(
    facts: Facts, options: NodeOptions, engine_node: int | None, max_bytes: int, say: Say
) -> Ceilings:
    return measure_ceilings(
        numa=engine_cpus(facts),
        folder=options.disk_folder,
        seconds=_CEILINGS_SHARE * options.budget_s,
        max_bytes=max_bytes,
        say=say,
        engine_node=engine_node,
    )


def _find_place(
    facts: Facts,
    need_bytes: int,
    model: ModelFile,
    layouts: dict[KVTypes, KVLayout],
    domain: Domain,
    options: NodeOptions,
    say: Say,
) -> FoundPlace:
    types, layout = next(iter(layouts.items()))
    roomy = [node.node for node in facts.numa if node.memory_bytes > need_bytes]
    return find_place(
        engine_cpus(facts),
        roomy if hasattr(os, "sched_setaffinity") else [],
        Job(model=model.path, types=types, layout=layout, domain=domain, threads=options.threads),
        _PLACE_SHARE * options.budget_s,
        say,
    )


def _survey(
    engines: Engines, options: NodeOptions, started: float, say: Say, progress: Progress
) -> None:
    """With what is left of the budget, and a part of it in any case."""
    budget_s, spent_s = options.budget_s, time.monotonic() - started
    survey_s = max((1 - _AFTER_SURVEY_SHARE) * budget_s - spent_s, _LEAST_SURVEY_SHARE * budget_s)
    say(f"surveying steps for {survey_s:.0f} s at most")

    def tell(share: float) -> None:
        progress((spent_s + share * survey_s) / (budget_s + options.soak_s))

    num_left_out = engines.survey(survey_s, tell)
    if num_left_out:
        say(
            f"left out {num_left_out} steps that {budget_s:.0f} s are too short for: extrapolated; "
            "a longer --budget measures more of them"
        )
    tell(1.0)  # it may have been done early


def _measure_experts(
    loaded: Model, model: ModelFile, domain: Domain, threads: int, say: Say
) -> ExpertUnion | None:
    """None for dense models, too."""
    if model.spec.num_experts:
        say("reading passages for the experts that they wake")
    try:
        return measure_experts(
            loaded,
            model.spec,
            num_sequences=domain.max_sequences,
            num_threads=threads,
            is_random=model.fingerprint is None,
        )
    except HeteroError as error:
        say(f"experts of a batch: not measured: {error}")
        return None


def _provenance(
    started: float, options: NodeOptions, settings: dict[str, str | None]
) -> Provenance:
    about = provenance()
    return Provenance(
        commit=about["commit"],
        versions=about["versions"],
        settings=settings,
        seconds=time.monotonic() - started,
        budget_s=options.budget_s,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
