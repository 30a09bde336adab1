"""`hetero profile node`, from a model file to a NodeProfile, within a time budget."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from hetero.errors import HeteroError, PlanError
from hetero.kv.layout import KVLayout, model_layout
from hetero.llama.model import Model
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
from hetero.profile.node.noise import CPUWatch, judge
from hetero.profile.node.points import Domain
from hetero.profile.node.torch_fit import TorchFit, torch_device
from hetero.profile.node_profile import ExpertUnion, MachineProfile, NodeProfile, Provenance
from hetero.profile.provenance import provenance

# Of the budget. The rest is for loading the model, for its codecs, and for what can't be planned.
_CEILINGS_SHARE = 0.12
_TORCH_SHARE = 0.2
_AFTER_SURVEY_SHARE = 0.08
_LEAST_SURVEY_SHARE = 0.2

# Without a model to compare with, a node's memory is what ceilings may take.
_CEILINGS_BYTES = 2**30

Say = Callable[[str], None]
Progress = Callable[[float], None]  # share of the budget spent


@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """What to measure, as a node would be configured.

    threads: None: what is found best.
    """

    budget_s: float
    slots: int
    context_tokens: int
    chunk_tokens: int
    kv_types: Sequence[KVTypes]
    threads: int | None
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
    ceilings = measure_ceilings(
        numa=engine_cpus(facts),
        folder=options.disk_folder,
        seconds=_CEILINGS_SHARE * options.budget_s,
        max_bytes=_CEILINGS_BYTES,
        say=say,
    )
    return MachineProfile(
        host=socket.gethostname(),
        date=_now(),
        facts=facts,
        ceilings=ceilings,
        provenance=_provenance(started, options, settings_now()),
    )


def profile_node(
    model: ModelFile, options: NodeOptions, say: Say, progress: Progress
) -> NodeProfile:
    """Raises: HeteroError if the model can't be run here."""
    started = time.monotonic()
    layouts = {types: model_layout(model.spec, *types) for types in options.kv_types}
    chunk_tokens = min(options.chunk_tokens, options.context_tokens)
    domain = Domain(options.slots, options.context_tokens, chunk_tokens)
    need_bytes = _check_memory(model.spec, layouts, domain)
    watch, throttles = CPUWatch(), throttle_counts()
    machine = profile_machine(options, say)
    nodes_at_once = nodes_co_runs(
        model.path,
        model.spec.weight_bytes,
        layouts[options.kv_types[0]],
        machine.facts,
        engine_cpus(machine.facts),
        say,
    )
    home = _settle(machine.facts, need_bytes)
    shape = model_shape(model.spec, model.fingerprint)
    on_gpu = _measure_torch(model, options, say)
    say(f"loading {model.path.name}")
    with (
        Model(model.path) as loaded,
        Engines(
            loaded,
            layouts,
            EngineOptions(domain=domain, num_cores=len(home.cpus), threads=options.threads),
        ) as engines,
    ):
        engines.find_threads()
        say(", ".join(f"{role}: {count} threads" for role, count in engines.threads.items()))
        experts = _measure_experts(loaded, model, domain, engines.threads["decode"], say)
        _survey(engines, options.budget_s, started, say, progress)
        codecs = engines.measure_codecs()
        co_runs = engines.measure_co_runs(has_gpu=bool(machine.facts.gpus)) + nodes_at_once
        throttled = throttled_between(throttles, throttle_counts())
        noise = judge(engines.pilots.log, *watch.shares(), throttled, machine.facts.power)
        soak = None
        if options.soak_s:
            say(f"soaking for {options.soak_s:g} s")
            soak = engines.soak(options.soak_s, home.cpus, say)
        fits = engines.fits(noise, shape)
        if on_gpu is not None:
            fits += on_gpu.fits(noise, engines.request_s, engines.threads["prefill"])
        settings = engines.settings(home.cpus if home.node is not None else [], home.node)
    progress(1.0)
    return NodeProfile(
        host=machine.host,
        date=_now(),
        model=shape,
        facts=machine.facts,
        ceilings=machine.ceilings,
        fits=fits,
        codecs=codecs,
        co_runs=co_runs,
        settings=settings,
        noise=noise,
        soak=soak,
        experts=experts,
        # As they were before this process was settled on one node.
        provenance=_provenance(started, options, machine.provenance.settings),
    )


@dataclass(frozen=True)
class _Home:
    """Where engines run. node: None: on all of them."""

    cpus: list[int]
    node: int | None


def _settle(facts: Facts, need_bytes: int) -> _Home:
    """On the NUMA node that holds the model and its contexts, the one with most cores, before
    anything is allocated: memory lies where the thread that touches it first runs. Anywhere where
    there is but one node, or none is large enough."""
    cpus = engine_cpus(facts)
    everywhere = _Home([cpu for some in cpus.values() for cpu in some], None)
    if len(cpus) < 2 or not hasattr(os, "sched_setaffinity"):
        return everywhere
    roomy = [
        node.node for node in facts.numa if node.node in cpus and node.memory_bytes > need_bytes
    ]
    if not roomy:
        return everywhere
    node = max(roomy, key=lambda each: len(cpus[each]))
    os.sched_setaffinity(0, cpus[node])
    return _Home(cpus[node], node)


def _survey(
    engines: Engines, budget_s: float, started: float, say: Say, progress: Progress
) -> None:
    """With what is left of the budget, and a part of it in any case."""
    spent_s = time.monotonic() - started
    survey_s = max((1 - _AFTER_SURVEY_SHARE) * budget_s - spent_s, _LEAST_SURVEY_SHARE * budget_s)
    say(f"surveying steps for {survey_s:.0f} s at most")
    engines.survey(survey_s, lambda share: progress((spent_s + share * survey_s) / budget_s))


def _measure_torch(model: ModelFile, options: NodeOptions, say: Say) -> TorchFit | None:
    """None where torch has no GPU, or its engine not this model: llama.cpp's prefill is measured
    in any case."""
    device = torch_device()
    if device is None:
        return None
    try:
        found = TorchFit(model.path, options.kv_types[0], device, options.context_tokens)
    except HeteroError as error:
        say(f"torch prefill: not measured: {error}")
        return None
    say("surveying the torch engine's prefill")
    ended_by = found.measure(_TORCH_SHARE * options.budget_s)
    if ended_by is not None:
        say(f"torch prefill: not measured further: {ended_by}")
    return found


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


def _check_memory(spec: ModelSpec, layouts: dict[KVTypes, KVLayout], domain: Domain) -> int:
    """Bytes that a node of these sizes takes, at its largest types. Raises: PlanError"""
    token_bytes = max(layout.token_bytes for layout in layouts.values())
    cells_bytes = domain.max_sequences * domain.context_tokens * token_bytes
    need_bytes = spec.weight_bytes + cells_bytes
    have_bytes = psutil.virtual_memory().available
    if need_bytes > have_bytes:
        raise PlanError(
            f"profile: need {need_bytes / 2**30:.1f} GiB of memory for the weights and "
            f"{domain.max_sequences} contexts of {domain.context_tokens} tokens, have "
            f"{have_bytes / 2**30:.1f} GiB; fewer --slots or a shorter --context"
        )
    return need_bytes


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
