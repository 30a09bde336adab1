"""Which GPU, which packages: what then reads prompts and attends, and what is said about it."""

import importlib.util
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from test_cli import hetero

from hetero.errors import ConfigError
from hetero.kv.layout import kv_layout
from hetero.messages import Fingerprint, ModelFingerprint
from hetero.model.demo import DEMO_MODEL_PATH
from hetero.prefill import torch_setup
from hetero.prefill.triton_support import capability, triton_problem
from hetero.serve import prefill_setup
from hetero.serve.config import PrefillConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DEMO = {"num_layers": 3, "num_kv_heads": 2, "head_dim_k": 64, "head_dim_v": 64}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that can be asked what it is, and no more. Returns how to set what it is."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def is_a(name, major, minor):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)

    is_a("NVIDIA GeForce RTX 3090", 8, 6)
    return is_a


def test_a_gpu_that_triton_serves_has_no_problem(gpu, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert triton_problem(GPU) is None
    assert capability(GPU) == 86


@pytest.mark.parametrize(
    ("name", "major", "minor"), [("Tesla P40", 6, 1), ("Tesla V100", 7, 0), ("RTX 2080", 7, 5)]
)
def test_a_gpu_too_old_is_named_with_its_capability(gpu, name, major, minor):
    gpu(name, major, minor)
    problem = triton_problem(GPU)
    assert problem == f"Triton needs compute capability 8.0, {name} has {major}.{minor}"


def test_missing_triton_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton_problem(GPU) == "Triton is not installed: pip install triton"


def test_a_missing_c_compiler_is_said(gpu, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "needs a C compiler" in triton_problem(GPU)


def test_the_interpreter_is_for_machines_without_a_gpu(gpu, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_problem(CPU) is None
    assert "unset it" in triton_problem(GPU)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "on a CPU set TRITON_INTERPRET=1" in triton_problem(CPU)


def spec_like(head_dim=64):
    return SimpleNamespace(num_heads=4, num_kv_heads=2, head_dim_k=head_dim)


def test_auto_falls_back_to_sdpa_and_says_why_once(caplog):
    with caplog.at_level(logging.WARNING):
        attention = torch_setup._attention("auto", spec_like(), GPU, "Triton is not installed")
    assert attention.name == "sdpa"
    assert caplog.messages == ["attention by torch's SDPA: Triton is not installed"]


def test_triton_asked_for_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="attention triton: Triton is not installed; or use"):
        torch_setup._attention("triton", spec_like(), GPU, "Triton is not installed")


def test_on_a_cpu_auto_is_sdpa_without_a_word(caplog):
    with caplog.at_level(logging.INFO):
        assert torch_setup._attention("auto", spec_like(), CPU, None).name == "sdpa"
    assert caplog.messages == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("verb", [["generate", "-p", "a"], ["up", "--local"]])
def test_the_command_refuses_triton_on_a_cpu_before_anything_starts(verb):
    run = hetero(*verb, "-m", "demo", "--attention", "triton", TRITON_INTERPRET="0")
    assert run.returncode == 2
    assert run.stderr == (
        "hetero: error: attention triton: Triton needs a GPU; on a CPU set TRITON_INTERPRET=1, "
        "for tests: it is very slow; or use --attention sdpa\n"
    )


def config(**options):
    return PrefillConfig(
        name="p",
        model=str(DEMO_MODEL_PATH),
        router="tcp://127.0.0.1:1",
        router_key="",
        key="",
        **options,
    )


def engine_for(**options):
    served = Fingerprint(
        model=ModelFingerprint(hyperparameters="", tokenizer="", chat_template="", tensors=""),
        layout=kv_layout(**DEMO, k_type="q8_0", v_type="q8_0"),
    )
    engine = prefill_setup.make_prefill_engine(config(context_tokens=256, **options), served)
    engine.close()
    return engine


def test_unasked_an_old_gpu_is_left_to_llama_cpp_and_that_is_said(gpu, caplog):
    gpu("Tesla P40", 6, 1)
    with caplog.at_level(logging.INFO, "hetero"):
        engine = engine_for()
    assert (engine.name, engine.attention) == ("llama", "llama")
    assert caplog.messages == [
        "prefill by llama.cpp, not torch: need compute capability 8.0, Tesla P40 has 6.1"
    ]


def test_unasked_a_cpu_is_left_to_llama_cpp():
    assert engine_for(device="cpu").name == "llama"


@pytest.mark.parametrize("setting", [{"attention": "sdpa"}, {"residency": "streamed"}])
def test_settings_of_the_torch_engine_are_refused_by_llama_cpps(setting):
    with pytest.raises(ConfigError, match="is the torch engine's, have engine llama"):
        engine_for(engine="llama", **setting)


def test_an_attention_asked_for_means_the_torch_engine():
    engine = engine_for(device="cpu", attention="sdpa")
    assert (engine.name, engine.attention) == ("torch", "sdpa")
