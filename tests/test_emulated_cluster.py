"""An emulated prefill node among real ones: who takes it, what it hands over, what it is called."""

import os
from pathlib import Path

import httpx
import msgspec
import pytest
from llama_reference import Reference
from test_cli import hetero

from hetero.errors import ConfigError
from hetero.experiment.deploy import emulated
from hetero.experiment.deploy.emulated import emulated_prefill
from hetero.experiment.models import layout_of
from hetero.launch.local import LocalCluster, LocalPlan
from hetero.messages import Fingerprint
from hetero.model.demo import DEMO_MODEL_PATH
from hetero.model.fingerprint import fingerprint_model
from hetero.prefill.recording import Recording
from hetero.profile.document import read_node_profile
from hetero.serve.config import PrefillConfig, RouterConfig
from hetero.serve.prefill_setup import make_prefill_engine

NUM_RECORDED = 1024
SERVED = Fingerprint(
    model=fingerprint_model(DEMO_MODEL_PATH), layout=layout_of(DEMO_MODEL_PATH, "q8_0")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        # One, as the reference has: llama.cpp rounds differently with other numbers of threads.
        patch.setattr(emulated, "num_usable_cores", lambda: 1)
        yield tmp_path_factory.mktemp("emulated")


def made(folder, preset="rtx-3090", num_tokens=NUM_RECORDED, **options):
    said = []
    types = {"kv_k": "q8_0", "kv_v": "q8_0"} | options
    fields = emulated_prefill(
        DEMO_MODEL_PATH,
        preset,
        **types,
        context_tokens=num_tokens,
        cache=folder,
        say=said.append,
    )
    return fields, said


@pytest.fixture(scope="module")
def fields(folder):
    return made(folder)[0]


class EmulatedCluster(LocalCluster):
    def __init__(self, plan, fields):
        super().__init__(plan, lambda line: None)
        self._fields = fields

    def _launch(self, name, config, **options):
        if isinstance(config, PrefillConfig):
            config = msgspec.structs.replace(config, **self._fields)
        if isinstance(config, RouterConfig):
            config = msgspec.structs.replace(config, allow_emulated=True)
        super()._launch(name, config, **options)


@pytest.fixture(scope="module")
def running(fields):
    plan = LocalPlan(
        name="emulated-test", model=DEMO_MODEL_PATH, context_tokens=2048, threads=1, temporary=True
    )
    with EmulatedCluster(plan, fields) as up:
        yield up


def ask(running, prompt, **options):
    body = {"prompt": prompt, "temperature": 0, "return_tokens": True, "ignore_eos": True}
    answer = httpx.post(f"{running.url}/v1/completions", json=body | options, timeout=60).json()
    return answer["choices"][0]["tokens"], answer["route"], answer["timings"]


def test_the_recorded_prompt_is_answered_as_by_llama_cpp_alone(running, fields):
    prompt = Recording(Path(fields["recording"]), SERVED).header.tokens
    kinds = {"k_type": "q8_0", "v_type": "q8_0", "unified": False, "context_tokens": 2048}
    with Reference(DEMO_MODEL_PATH, **kinds) as alone:
        expected, _ = alone.greedy(alone.prefill(prompt), len(prompt), 24)
    tokens, route, timings = ask(running, list(prompt), max_tokens=24)
    assert (route["kind"], timings["kv_bytes"]) == ("split", 816 * len(prompt))
    assert tokens == expected


def test_longer_prompts_are_taken_and_the_device_takes_its_time(running, fields):
    fit = next(f for f in read_node_profile(Path(fields["pace"])).fits if f.role == "prefill")
    tokens, route, timings = ask(running, [5] * 1500, max_tokens=8)
    assert (len(tokens), route["kind"]) == (8, "split")
    assert timings["prefill_s"] >= fit.chunk_s(1500)


def test_whatever_an_emulated_node_touches_says_so(running):
    _, _, timings = ask(running, [5] * 600, max_tokens=2)
    assert timings["prefill_engine"] == "emulated rtx-3090 (torch)"
    assert (timings["emulated"], timings["attention"]) == ("rtx-3090", "emulated")
    _, _, timings = ask(running, [5] * 600, max_tokens=2, route="local")
    assert timings["prefill_engine"] == "llama"
    assert "emulated" not in timings
    metrics = httpx.get(f"{running.url}/metrics").text
    assert 'hetero_requests_total{outcome="ok",route="split-emulated"}' in metrics
    assert 'hetero_requests_total{outcome="ok",route="local"} 1.0' in metrics
    assert 'route="split"' not in metrics
    nodes = {n["name"]: n for n in httpx.get(f"{running.url}/status").json()["nodes"]}
    assert nodes["prefill-0"]["emulated"] == "rtx-3090"
    assert nodes["decode-0"]["emulated"] is None
    table = hetero("status", "--url", running.url).stdout
    assert "prefill-0: emulated rtx-3090 (torch): what it reads is nonsense" in table
    log = running.run_directory / "prefill-0.log"
    assert "EMULATED: emulated rtx-3090 (torch) computes nothing" in log.read_text()
    assert "node prefill-0 is EMULATED" in (running.run_directory / "router.log").read_text()


def test_a_recording_is_made_once_and_again_when_it_is_damaged(folder):
    fields, said = made(folder, "p40", num_tokens=64)
    assert said == ["recording 64 tokens of demo.gguf for emulated devices"]
    assert fields["chunk_tokens"] == 512
    again, said = made(folder, "p40", num_tokens=64)
    assert (again, said) == (fields, [])
    os.truncate(fields["recording"], 1000)
    _, (why, _) = made(folder, "p40", num_tokens=64)
    assert why.startswith("recording again: recording ")


def test_what_can_not_be_emulated_is_said(folder):
    with pytest.raises(ConfigError, match="preset 'rtx-3091': no such preset, near: rtx-3090"):
        made(folder, "rtx-3091")
    with pytest.raises(ConfigError, match="KV type 'q9'"):
        made(folder, kv_k="q9")


def config(**options):
    return PrefillConfig(
        name="p", model=str(DEMO_MODEL_PATH), router="tcp://127.0.0.1:1", router_key="", key="",
        **options,
    )  # fmt: skip


def test_nothing_but_engine_replay_makes_one(fields, folder):
    pace = {"pace": fields["pace"]}
    files = pace | {"recording": fields["recording"]}
    for engine in ("auto", "torch", "llama"):
        with pytest.raises(ConfigError, match=f"is a replay's, have engine {engine}"):
            make_prefill_engine(config(engine=engine, **files), SERVED)
    with pytest.raises(ConfigError, match="need `recording` and `pace`, have no recording"):
        make_prefill_engine(config(engine="replay", **pace), SERVED)
    with pytest.raises(ConfigError, match="attention sdpa: is the torch engine's"):
        make_prefill_engine(config(engine="replay", attention="sdpa", **files), SERVED)


def test_a_pace_must_be_of_this_model_and_these_types(fields, folder):
    f16 = Fingerprint(model=SERVED.model, layout=layout_of(DEMO_MODEL_PATH, "f16"))
    replay = config(engine="replay", recording=fields["recording"], pace=fields["pace"])
    with pytest.raises(ConfigError, match="need prefill with a cache of f16/f16, have q8_0/q8_0"):
        make_prefill_engine(replay, f16)
    other = msgspec.structs.replace(SERVED.model, tensors="x")
    with pytest.raises(ConfigError, match="need a profile of the model that is served"):
        make_prefill_engine(replay, msgspec.structs.replace(SERVED, model=other))
