"""What a recipe's types can't say: names that must exist, and settings that exclude each other."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from hetero.errors import ConfigError
from hetero.experiment.load.slo import parse_slo
from hetero.experiment.recipe.arms import AnySettings, arm_text, arms_of, num_arms, settings_of
from hetero.experiment.recipe.check_answers import answer_problems
from hetero.experiment.recipe.explain import problems
from hetero.experiment.recipe.figures import Value
from hetero.experiment.recipe.inputs import input_problems
from hetero.experiment.recipe.recipe import (
    FRONT,
    Candidate,
    Cluster,
    Lab,
    Model,
    Quality,
    Recipe,
    Serving,
    Settings,
)
from hetero.kv.types import kv_type
from hetero.launch.lab.shaping import parse_rate
from hetero.model.shapes import QUANTS, parse_shape
from hetero.near import near
from hetero.profile.presets import load_preset
from hetero.workload.named import load_workload

# More than a week's work at some seconds each.
_MAX_ARMS = 10_000

_FRONT_IS_TAKEN = f"need another name, have {FRONT}, where router and load generator run"


def recipe_problems(recipe: Recipe) -> Iterator[str]:
    """A line each, beginning with the field's path."""
    # A load that can't be read is a problem of its own.
    found = [*_parts(recipe), *_settings(recipe)] or list(input_problems(recipe))
    # What follows needs arms, which only settings that exist can make.
    if not found and num_arms(recipe) > _MAX_ARMS:
        found = [f"vary: need at most {_MAX_ARMS} arms, have {num_arms(recipe)}"]
    yield from found or [*_arms(recipe), *answer_problems(recipe)]


def _parts(recipe: Recipe) -> Iterator[str]:
    if isinstance(recipe, Serving | Quality):
        yield from _model(recipe.model)
    if isinstance(recipe, Quality) and recipe.model.shape is not None:
        yield "model.shape: need a model that has learned something: demo or file"
    if isinstance(recipe, Quality) and recipe.model.file is not None and not recipe.texts:
        yield "texts: need UTF-8 files for a model other than the demo, have none"
    if isinstance(recipe, Serving):
        yield from _cluster(recipe.cluster)
        for name, candidate in recipe.candidates.items():
            yield from _candidate(f"candidates.{name}", candidate, recipe.cluster.lab)
        yield from _refusal("load", load_workload, recipe.load)
        if recipe.beside is not None:
            yield from _refusal("beside", load_workload, recipe.beside)
        try:
            parse_slo(recipe.slo)
        except ConfigError as error:
            yield str(error)


def _model(model: Model) -> Iterator[str]:
    ways = {
        "demo": model.demo,
        "file": model.file is not None,
        "shape": model.shape is not None,
    }
    have = [way for way, is_there in ways.items() if is_there]
    if len(have) != 1:
        yield f"model: need one of demo, file, shape, have {' and '.join(have) or 'none'}"
        return
    if model.file is not None and model.hash is None:
        yield "model.hash: need the blake3 of the file, so that others use the same: `b3sum FILE`"
    if model.file is None and model.hash is not None:
        yield "model.hash: need a file it is of, have none"
    if model.shape is None and (model.quant, model.seed) != (Model().quant, Model().seed):
        yield f"model: quant and seed are of a shape's random weights, have a {have[0]}"
    if model.quant not in QUANTS:
        yield f"model.quant: no such quant as {model.quant}{near(model.quant, QUANTS)}"
    if isinstance(model.shape, str):
        yield from _shape("model.shape", model.shape)


def _cluster(cluster: Cluster) -> Iterator[str]:
    if cluster.file is not None:
        yield "cluster.file: real hosts come with `hetero up`; use a lab, or leave it out"
    if cluster.lab is not None:
        yield from _rate("cluster.lab.rate", cluster.lab.rate)
        if FRONT in cluster.lab.hosts:
            yield f"cluster.lab.hosts.{FRONT}: {_FRONT_IS_TAKEN}"


def _candidate(place: str, candidate: Candidate, lab: Lab | None) -> Iterator[str]:
    if candidate.peer is None:
        if not candidate.decode:
            yield f"{place}: need decode hosts, or a peer, have neither"
    else:
        roles = ("prefill", "decode", "emulated")
        have = [role for role in roles if getattr(candidate, role)]
        if have:
            yield f"{place}: need hosts of ours or a peer, have {' and '.join(have)} and a peer"
        host = candidate.peer.host
        if host is not None:
            yield from _host(f"{place}.peer.host", host, lab)
        elif lab is not None and len(lab.hosts) > 1:
            yield f"{place}.peer.host: need one of {', '.join(lab.hosts)}, have none"
    for role, hosts in (("prefill", candidate.prefill), ("decode", candidate.decode)):
        for host in hosts:
            yield from _host(f"{place}.{role}", host, lab)
        yield from _once(f"{place}.{role}", hosts)
    for host, emulated in candidate.emulated.items():
        if host not in candidate.prefill:
            have_hosts = ", ".join(candidate.prefill) or "none"
            yield f"{place}.emulated.{host}: need one of its prefill hosts, have {have_hosts}"
        yield from _refusal(f"{place}.emulated.{host}", load_preset, emulated.preset)


def _host(place: str, host: str, lab: Lab | None) -> Iterator[str]:
    if lab is not None and host not in lab.hosts:
        yield f"{place}: no host {host} in the lab{near(host, lab.hosts)}"
    if lab is None and host == FRONT:
        yield f"{place}: {_FRONT_IS_TAKEN}"


def _settings(recipe: Recipe) -> Iterator[str]:
    kind = type(recipe.settings)
    for name, value in msgspec.structs.asdict(recipe.settings).items():
        if value is not None:
            yield from _words(f"settings.{name}", name, value)
    for name, values in recipe.vary.items():
        place = f"vary.{name}"
        if name == "candidate":
            yield f"{place}: candidates are varied as they are: leave it out"
            continue
        found = [
            problem
            for index, value in enumerate(values)
            for problem in _setting(f"{place}[{index}]", name, value, kind)
        ]
        # A name that there is not is wrong once, however many values it has.
        yield from (
            dict.fromkeys(found)
            if name in kind.__struct_fields__
            else [f"{place}: no such setting{near(name, kind.__struct_fields__)}"]
        )
        yield from _once(place, values)
    if isinstance(recipe, Serving):
        for candidate_name, candidate in recipe.candidates.items():
            yield from _own_settings(f"candidates.{candidate_name}", candidate, recipe)


def _own_settings(place: str, candidate: Candidate, recipe: Serving) -> Iterator[str]:
    for name in candidate.ignores:
        if name not in recipe.vary:
            hint = near(name, recipe.vary, "" if recipe.vary else "; nothing is varied")
            yield f"{place}.ignores: no varied setting {name}{hint}"
    yield from _once(f"{place}.ignores", candidate.ignores)
    for name, value in candidate.settings.items():
        yield from _setting(f"{place}.settings.{name}", name, value, Settings)
        if name in recipe.vary and name not in candidate.ignores:
            yield (
                f"{place}.settings.{name}: it is varied, and that counts; let the candidate ignore "
                "it, or leave it out here"
            )


def _setting(place: str, name: str, value: Value, kind: type[AnySettings]) -> Iterator[str]:
    fields = {each.encode_name: each.type for each in msgspec.structs.fields(kind)}
    if name not in fields:
        yield f"{place}: no such setting{near(name, fields)}"
        return
    wrong = list(problems(value, fields[name], place))
    yield from wrong or _words(place, name, value)


def _words(place: str, name: str, value: Any) -> Iterator[str]:
    """Settings that are text with a meaning."""
    if name in ("k", "v"):
        yield from _refusal(place, kv_type, value)
    elif name == "kv":
        pair = value.split("/")
        if len(pair) > 2:
            yield f"{place}: need a type, or two as q8_0/q4_0, have {value!r}"
            return
        for each in dict.fromkeys(pair):
            yield from _refusal(place, kv_type, each)
    elif name == "link_rate":
        yield from _rate(place, value)
    elif name == "shape":
        yield from _shape(place, value)


def _arms(recipe: Recipe) -> Iterator[str]:
    """Of what arms are set to, all in all: a problem once, with the first arm that has it."""
    if not isinstance(recipe, Serving):
        return
    seen = set()
    has_beside = False
    for arm in arms_of(recipe):
        settings = settings_of(recipe, arm)
        assert isinstance(settings, Settings)
        has_beside |= bool(settings.beside_rate)
        for problem in _arm(settings, recipe.candidates[str(arm["candidate"])], recipe):
            if problem not in seen:
                seen.add(problem)
                yield f"arm {arm_text(arm)}: {problem}"
    if recipe.beside is not None and not has_beside:
        yield "beside: need a setting beside_rate above 0 in some arm, have none, so it never runs"


def _arm(settings: Settings, candidate: Candidate, recipe: Serving) -> Iterator[str]:
    if settings.concurrency is not None and settings.rate is not None:
        yield "need concurrency (closed loop) or rate (open loop), have both"
    if settings.link_rate is not None and settings.wire_ratio is not None:
        yield "need link_rate or wire_ratio, have both"
    for name in ("link_rate", "wire_ratio"):
        if getattr(settings, name) is not None and recipe.cluster.lab is None:
            yield f"{name}: need a lab for that, have this machine as it is"
    if settings.wire_ratio is not None and not candidate.prefill:
        yield (
            "wire_ratio: need prefill hosts, whose speed it is measured by, have none; let the "
            "candidate ignore it where it is varied, else set it for those with such hosts only"
        )
    if settings.beside_rate is not None and recipe.beside is None:
        yield "beside_rate: need a load `beside`, have none"
    tokens = (settings.prompt_tokens or 0) + (settings.output_tokens or 0)
    if tokens > settings.context_tokens:
        yield (
            f"context_tokens: need {tokens} for prompt_tokens and output_tokens, "
            f"have {settings.context_tokens}"
        )


def _once(place: str, values: list[Any]) -> Iterator[str]:
    for index, value in enumerate(values):
        if value in values[:index]:
            yield f"{place}: need {value} once, have it again"


def _shape(place: str, name: str) -> Iterator[str]:
    try:
        shape, quant = parse_shape(name)
    except ConfigError as error:
        yield f"{place}: {error}"
        return
    if shape.name != name.lower():
        yield f"{place}: need {shape.name} alone, have {name}; its quant, {quant}, is of `quant`"


def _rate(place: str, text: str) -> Iterator[str]:
    try:
        parse_rate(place, text)
    except ConfigError as error:
        yield str(error)


def _refusal(place: str, read: Callable[[Any], object], value: object) -> Iterator[str]:
    try:
        read(value)
    except ConfigError as error:
        yield f"{place}: {error}"
