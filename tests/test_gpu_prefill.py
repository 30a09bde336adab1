"""Prefill on GPUs as `hetero profile node` surveys it: which engines, and each from its opening to
its fit. Without a GPU: the CPU stands in for it under real engines, and torch.cuda's answers are
made up.
"""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import llama_cpp
import msgspec
import pytest
import torch
from node_profiles import gpu_ceilings, node_profile

from hetero.cli import main
from hetero.cli.model import model_path
from hetero.errors import EngineError
from hetero.kv.layout import model_layout
from hetero.llama.context import Context
from hetero.llama.model import Model
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.prefill.llama_engine import LlamaEngine
from hetero.profile.agreement import agreement
from hetero.profile.document import read_profile
from hetero.profile.facts.report import GPU
from hetero.profile.node.gpu_prefill import (
    PrefillSizes,
    gpu_engines,
    llama_on_gpu,
    measure_gpu_prefill,
    offload_device,
    torch_devices,
    torch_on,
)
from hetero.profile.node.read_fit import measure_read
from hetero.profile.rates import fit_name, prefill_rate, roof

PROFILE = node_profile()
QUIET = PROFILE.noise
GIB = 2**30


@pytest.fixture
def sizes():
    path = model_path("demo")
    spec = gguf_to_spec(GGUFFile.open(path))
    return PrefillSizes(
        model=path,
        layout=model_layout(spec, "q8_0", "f16"),
        vocab_size=spec.vocab_size,
        context_tokens=256,
        chunk_tokens=32,
        threads=1,
        load="read",
        gpu_layers=0,
    )


def card(name, capability=(8, 6), cores=82, gib=24.0):
    major, minor = capability
    return SimpleNamespace(
        name=name,
        major=major,
        minor=minor,
        multi_processor_count=cores,
        total_memory=int(gib * GIB),
    )


@pytest.fixture
def with_cards(monkeypatch):
    """Facts of a machine on which torch sees these cards."""

    def facts(*cards):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
        seen = GPU(
            index=0,
            name="any",
            vendor="nvidia",
            memory_bytes=None,
            compute_capability=None,
            pcie_generation=None,
            pcie_width=None,
            numa_node=None,
            power_limit_watts=None,
            driver=None,
        )
        return msgspec.structs.replace(PROFILE.facts, gpus=[seen for _ in cards])

    return facts


@pytest.mark.parametrize(
    ("cards", "devices"),
    [
        ([], []),
        ([card("RTX 3090")], ["cuda:0"]),
        ([card("RTX 3090"), card("RTX 3090", gib=23.9)], ["cuda:0"]),
        ([card("RTX 3090"), card("RTX 3090"), card("A100", (8, 0), 108, 40)], ["cuda:0", "cuda:2"]),
        (
            [card("RTX 3080", cores=68, gib=10), card("RTX 3080", cores=70, gib=12)],
            ["cuda:0", "cuda:1"],
        ),
        # llama.cpp's: Triton has no kernels for it.
        ([card("Tesla P100", (6, 0), 56, 16), card("RTX 3090")], ["cuda:1"]),
        ([card("Tesla P40", (6, 1), 30, 24)], []),
    ],
)
def test_torch_is_surveyed_once_on_each_kind_of_gpu_that_it_serves(with_cards, cards, devices):
    assert torch_devices(with_cards(*cards)) == devices


def test_amds_gpus_are_left_to_llama(with_cards, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert torch_devices(with_cards(card("MI210", (9, 0)))) == []


def test_gpus_share_torchs_part_of_the_budget(with_cards, sizes):
    [(_, whole)] = gpu_engines(sizes, with_cards(card("RTX 3090")))
    facts = with_cards(card("RTX 3090"), card("A100", (8, 0)))
    found = gpu_engines(replace(sizes, gpu_layers=99), facts)
    assert [(each.device, share) for each, share in found] == [
        ("gpu", 0.2),
        ("cuda:0", whole / 2),
        ("cuda:1", whole / 2),
    ]
    assert gpu_engines(sizes, with_cards()) == []


def test_without_a_gpu_torch_is_not_imported():
    code = (
        "import sys; sys.path.insert(0, 'tests'); from node_profiles import node_profile; "
        "import msgspec, hetero.profile.node.run; "
        "from hetero.profile.node.gpu_prefill import torch_devices; "
        "assert torch_devices(msgspec.structs.replace(node_profile().facts, gpus=[])) == []; "
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_layers_are_of_the_model_and_its_head():
    assert offload_device(99, 32) == offload_device(33, 32) == "gpu"
    assert offload_device(32, 32) == "gpu, 32 of 33 layers"


@pytest.mark.parametrize("closed", [
    lambda sizes: llama_on_gpu(replace(sizes, gpu_layers=99)), lambda sizes: torch_on("cpu", sizes)
])  # fmt: skip
def test_an_engines_prompts_become_a_fit_of_its_device(closed, sizes):
    threads, said = torch.get_num_threads(), []
    engine = closed(sizes)
    try:
        found = measure_read(engine, sizes.context_tokens, 2.0, said.append)
    finally:
        torch.set_num_threads(threads)
    assert said == [f"surveying {engine.name}"]
    [fit] = found.fits(QUIET, 0.001)
    assert (fit.role, fit.source, fit.device) == ("prefill", "fitted", engine.device)
    assert (fit.kv_k, fit.kv_v, fit.threads) == ("q8_0", "f16", 1)
    assert fit.unified == (fit.engine == "llama")
    assert fit.samples
    assert fit.prefill_s(200) > fit.prefill_s(10) > fit.request_s == 0.001
    assert len(found.pilot.seconds) > 3


class Failing(LlamaEngine):
    """After a few steps. Tells when it is closed."""

    steps_left = 8
    is_closed = False

    def read(self, slices):
        if not self.steps_left:
            raise EngineError("llama_decode failed with status -3")
        self.steps_left -= 1
        return super().read(slices)

    def close(self):
        super().close()
        self.is_closed = True


def test_an_engine_that_fails_on_the_way_is_closed_and_leaves_its_samples(sizes):
    said, opened = [], []

    def open_failing():
        opened.append(
            Failing(sizes.model, sizes.layout, context_tokens=256, num_threads=1, chunk_tokens=32)
        )
        return opened[0]

    found = measure_read(replace(llama_on_gpu(sizes), open=open_failing), 256, 60.0, said.append)
    assert "not measured further: llama_decode failed with status -3" in said[-1]
    assert opened[0].is_closed
    [fit] = found.fits(QUIET, 0.0)
    assert 1 <= len(fit.samples) <= 8


def test_what_torch_or_triton_raise_is_said_with_its_type_and_the_samples_stay(sizes):
    said = []

    class Compiling(Failing):
        def read(self, slices):
            if not self.steps_left:
                raise RuntimeError("CUDA error: no kernel image")
            return super().read(slices)

    def open_failing():
        return Compiling(
            sizes.model, sizes.layout, context_tokens=256, num_threads=1, chunk_tokens=32
        )

    found = measure_read(replace(llama_on_gpu(sizes), open=open_failing), 256, 60.0, said.append)
    assert said[-1].endswith("not measured further: RuntimeError: CUDA error: no kernel image")
    assert found.fits(QUIET, 0.0)


@pytest.mark.parametrize("error", [RuntimeError("no driver"), OSError("no compiler")])
def test_an_engine_that_fails_to_open_in_its_own_way_is_said(sizes, error):
    said = []

    def failing():
        raise error

    assert (
        measure_read(replace(torch_on("cuda:0", sizes), open=failing), 256, 1, said.append) is None
    )
    [line] = said
    assert line.endswith(f"not measured: {type(error).__name__}: {error}")


def test_an_interrupt_ends_the_profile(sizes):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_read(replace(llama_on_gpu(sizes), open=interrupted), 256, 1.0, print)


def test_an_engine_that_can_not_be_made_is_said_and_gives_its_memory_back(sizes, monkeypatch):
    freed, said = [], []
    for owned in (Model, Context):
        close = owned.close
        monkeypatch.setattr(
            owned, "close", lambda self, close=close: (freed.append(type(self)), close(self))
        )
    wrong = msgspec.structs.replace(sizes.layout, num_kv_heads=sizes.layout.num_kv_heads + 1)
    sizes = replace(sizes, layout=wrong, gpu_layers=1)
    assert measure_gpu_prefill(sizes, PROFILE.facts, 10.0, said.append) == []
    assert [line.split(": ")[1] for line in said] == ["not measured"]
    assert freed == [Context, Model]


def test_gpu_layers_without_a_gpu_are_refused_before_anything_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    assert main.main(["profile", "node", "-m", "demo", "--gpu-layers", "33"]) == 2
    complaint = capsys.readouterr().err
    assert "gpu layers 33: need a GPU and a llama.cpp built for it, have" in complaint
    assert "CMAKE_ARGS=-DGGML_CUDA=on" in complaint


@pytest.mark.skipif(llama_cpp.llama_supports_gpu_offload(), reason="has a GPU")
def test_a_profile_holds_llamas_prefill_on_a_gpu_beside_the_cpus(tmp_path, monkeypatch):
    """llama.cpp is said to see a GPU, and has none: its layers stay on the CPU."""
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    path = tmp_path / "p.yaml"
    options = ["--budget", "6", "--slots", "2", "--context", "256", "--chunk", "64"]
    options += ["--threads", "1", "--kv", "q8_0", "--gpu-layers", "99", "-o", str(path)]
    assert main.main(["profile", "node", "-m", "demo", *options]) == 0
    profile = read_profile(path)
    measured = [fit for fit in profile.fits if fit.source == "fitted"]
    [on_gpu] = [fit for fit in measured if fit.device == "gpu"]
    assert fit_name(on_gpu) == "llama gpu q8_0/q8_0 unified"
    assert on_gpu.chunk_tokens == 64
    # Once, for every device: the three pairs that it lacks.
    estimated = [(fit.role, fit_name(fit)) for fit in profile.fits if fit.source == "estimated"]
    assert len(estimated) == len(set(estimated)) == 5 * 3
    assert sum("gpu" in name for _, name in estimated) == 3
    assert {(fit.role, fit.unified) for fit in measured if fit.device == "cpu"} == {
        (role, unified) for role in ("decode", "prefill") for unified in (False, True)
    }
    assert set(profile.noise.pilot_s) == {"memory", "compute", "gpu"}
    # Each in units of its own pilot.
    assert agreement(profile, profile).unmatched == []


def test_shares_are_of_one_kind_of_gpu_that_holds_all_layers():
    """What several kinds give together, or a GPU with the CPU, is not known."""
    one, other = gpu_ceilings(), msgspec.structs.replace(gpu_ceilings(), name="another")

    def with_gpus(*gpus):
        ceilings = msgspec.structs.replace(PROFILE.ceilings, gpus=list(gpus))
        return msgspec.structs.replace(PROFILE, ceilings=ceilings)

    alone = with_gpus(one).ceilings
    assert roof(alone, "gpu").flops_per_s == roof(alone, "cuda:0").flops_per_s
    assert roof(alone, "gpu").device == "gpu"
    assert roof(with_gpus(one, one).ceilings, "gpu") is not None
    for ceilings, device in (
        (with_gpus().ceilings, "gpu"),
        (with_gpus(one, other).ceilings, "gpu"),
        (alone, "gpu, 20 of 33 layers"),
    ):
        assert roof(ceilings, device) is None
    prefill = next(fit for fit in PROFILE.fits if fit.role == "prefill")
    some = msgspec.structs.replace(prefill, device="gpu, 20 of 33 layers")
    assert prefill_rate(with_gpus(one), some, 512).share is None
