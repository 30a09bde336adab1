"""The kernel benchmark: that it counts and compares as it says, on sizes too small to mean much."""

import json
import os
import subprocess
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_cli import hetero

from hetero.errors import ConfigError, EngineError
from hetero.experiment.figures import Figure, at_least
from hetero.experiment.kernel_bench import device, suite
from hetero.experiment.kernel_bench.ceilings import Ceilings
from hetero.experiment.kernel_bench.compile_table import markdown
from hetero.experiment.kernel_bench.compiling import SHARED_BYTES
from hetero.experiment.kernel_bench.race import Bench, disagreement, race
from hetero.experiment.kernel_bench.settings import full_settings, quick_settings
from hetero.experiment.kernel_bench.stopwatch import Arm, GpuStopwatch, WallStopwatch
from hetero.experiment.kernel_bench.torch_pack import torch_pack_q8_0
from hetero.kv.codecs import encode
from hetero.kv.rotation import rotate

RESULTS = Path(__file__).parent.parent / "results" / "kernel_bench"
CPU = torch.device("cpu")
CEILINGS = Ceilings(
    copy_bytes_per_s=1e9,
    matmul_flops_per_s=1e12,
    host_to_device_bytes_per_s=1e9,
    device_to_host_bytes_per_s=1e9,
)
KINDS = (
    *("iq4_nl", "iq4_xs", "q2_k", "q3_k", "q4_0", "q4_1"),
    *("q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0"),
)
PREFILLS = ("prefill_resident", "prefill_quantized", "prefill_streamed")
NAMES = {
    *("attention_48", "attention_head_dim_64", "attention_chunk", "attention_packed"),
    *("pack_q8_0_head_dim_128", "pack_q4_0_head_dim_128", "pack_f16_head_dim_128"),
    *("pack_q8_0_head_dim_64", "pack_q8_0_head_dim_256"),
    *(f"dequantize_{kind}" for kind in KINDS),
    *("op_rms_norm", "op_add_rms_norm", "op_silu_mul", "op_rope_and_store"),
    *PREFILLS,
    *(f"{name}_rows" for name in PREFILLS),
}


@pytest.fixture
def bench(tmp_path):
    settings = quick_settings(tmp_path)
    return Bench(
        settings=settings,
        device=CPU,
        capability=80,
        stopwatch=WallStopwatch(),
        ceilings=CEILINGS,
        say=lambda line: None,
    )


def test_every_figure_is_measured_and_reported(tmp_path):
    written = tmp_path / "report.json"
    run = hetero(
        *("bench", "kernels", "--quick", "--json", "-o", str(written)), XDG_CACHE_HOME=str(tmp_path)
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report == json.loads(written.read_text())
    assert report["failures"] == []
    measured = {entry["name"] for entry in report["figures"]}
    assert {name for name in measured if not name.endswith("_memory")} == NAMES
    assert all(rate > 0 for rate in report["ceilings"].values())
    announced = run.stderr.index("bf16 matrix product")
    assert announced < run.stderr.index("attention_48")
    for entry in report["figures"]:
        if not entry["name"].endswith(("_rows", "_memory")):
            assert entry["arms"]["ours_s"]["min"] > 0
            peers = entry["parameters"]["times_faster_than"]
            assert {f"{peer}_s" for peer in peers} | {"ours_s"} == set(entry["arms"])
            assert entry["parameters"]["share"] > 0
    by_name = {entry["name"]: entry for entry in report["figures"]}
    assert by_name["attention_48"]["target"] == {"relation": ">=", "bound": 0.75}
    assert by_name["attention_chunk"]["target"] is None
    assert by_name["pack_q8_0_head_dim_128"]["target"]["bound"] == 0.8
    bounds = [by_name[name]["target"]["bound"] for name in PREFILLS]
    assert bounds == [0.7, 0.6, 0.9]
    # Every peer whose package is here computed what the kernels compute.
    for name, entry in by_name.items():
        if name.startswith(("dequantize", "pack", "op")):
            assert entry["parameters"]["refused"] == {}, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_is_refused_with_what_can_be_done():
    run = hetero("bench", "kernels", TRITON_INTERPRET="0")
    assert run.returncode == 2
    assert "bench kernels: need a GPU, have none: --quick with TRITON_INTERPRET=1" in run.stderr
    run = hetero("bench", "kernels", "--quick", TRITON_INTERPRET="0")
    assert run.returncode == 2
    assert "on a CPU set TRITON_INTERPRET=1" in run.stderr


def test_nothing_is_compiled_where_triton_is_interpreted():
    run = hetero("bench", "kernels", "--compile", TRITON_INTERPRET="1")
    assert run.returncode == 2
    assert "unset TRITON_INTERPRET" in run.stderr


def test_a_gpu_too_old_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "triton_problem", lambda where: f"{where.type} is too old")
    with pytest.raises(ConfigError, match="bench kernels: cuda is too old"):
        device.bench_device(quick=True)


def test_an_unknown_figure_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"need some of attention, .*, have speed"):
        suite.measure_kernels(quick_settings(tmp_path), CPU, ["speed"], print)


def test_whatever_a_figure_raises_the_others_go_on_and_are_kept(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("misaligned address")

    works = Figure(name="f", says="", value=1.0, unit="ratio", target=None, arms={"ours_s": [1.0]})
    figures = {"mine": lambda bench: iter([("broken", broken), ("works", lambda: [works])])}
    monkeypatch.setattr(suite, "FIGURES", figures)
    said, kept = [], []
    report = suite.measure_kernels(
        quick_settings(tmp_path),
        CPU,
        [],
        said.append,
        keep=lambda so_far: kept.append(json.dumps(so_far)),
    )
    assert report["failures"] == [{"name": "broken", "error": "RuntimeError: misaligned address"}]
    assert [entry["name"] for entry in report["figures"]] == ["f"]
    assert any("in broken" in line for line in said)  # where it happened
    assert [len(json.loads(text)["figures"]) for text in kept] == [0, 1]


def test_a_figure_without_a_target_is_neither_met_nor_missed():
    fields = {"says": "", "value": 0.5, "unit": "ratio", "arms": {"a_s": [1.0]}}
    stated = Figure(name="f", target=None, **fields)
    assert stated.line() == "f: 0.5 ratio"
    assert (stated.to_json()["target"], stated.to_json()["met"]) == (None, None)
    assert Figure(name="f", target=at_least(1), **fields).to_json()["met"] is False


def test_the_full_sizes_are_those_of_the_targets(tmp_path):
    full = full_settings(tmp_path)
    assert full.attention_tokens == (4096, 8192, 16384, 32768)
    assert (full.num_heads, full.num_kv_heads, full.head_dim) == (32, 8, 128)
    assert full.chunk == (6144, 8192)
    assert len(set(full.packed_lengths)) == 16
    assert full.matrix_shape == (4096, 14336)
    assert (full.shape.name, full.quant, full.prompt_tokens) == ("llama-3.1-8b", "q4_k_m", 8192)


def calls_that(name, log, result=1.0):
    def call(index):
        log.append((name, index))
        return torch.tensor([result])

    return [lambda: call(0), lambda: call(1)]


def test_arms_take_turns_on_alternating_inputs(bench):
    log = []
    result = race(bench, calls_that("a", log), {"b": calls_that("b", log)})
    # Each arm is tried and sized by three calls; then turns, of which the first is dropped.
    names = "".join(name for name, _ in log)
    assert names == "aaa" + "bbb" + "ab" * (1 + bench.settings.num_rounds)
    for arm in "ab":
        indices = [index for name, index in log if name == arm]
        assert indices == [n % 2 for n in range(len(indices))]
    assert set(result.samples()) == {"ours_s", "b_s"}
    assert result.times_faster("b") == pytest.approx(result.seconds("b") / result.seconds())


def test_a_peer_that_refuses_is_left_out_with_its_reason(bench):
    def refuses():
        raise RuntimeError("No available kernel.\nAborting execution.")

    result = race(bench, calls_that("a", []), {"b": [refuses], "c": calls_that("c", [])})
    assert result.refused == {"b": "RuntimeError: No available kernel."}
    assert set(result.rounds) == {"ours", "c"}


def test_a_peer_that_computes_something_else_is_left_out(bench):
    peers = {"near": calls_that("b", [], 1.01), "far": calls_that("c", [], 1.5)}
    result = race(bench, calls_that("a", []), peers)
    assert set(result.rounds) == {"ours", "near"}
    assert "differs from ours by 0.33" in result.refused["far"]
    assert set(race(bench, calls_that("a", []), peers, compare=False).rounds) == {
        *("ours", "near", "far")
    }


def test_if_no_peer_gives_our_result_ours_is_wrong(bench):
    peers = {"b": calls_that("b", [], 1.5), "c": calls_that("c", [], 1.5)}
    with pytest.raises(EngineError, match="our result is not that of b or c"):
        race(bench, calls_that("a", []), peers)


def test_disagreement_is_a_share_of_bytes_or_of_the_norm():
    a = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
    assert disagreement(a, torch.tensor([1, 2, 3, 5], dtype=torch.uint8)) == 0.25
    assert disagreement(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(
        0.5 / (9 + 4.5**2) ** 0.5
    )
    nan = torch.tensor([float("nan")])
    assert not disagreement(nan, nan) <= 1
    with pytest.raises(EngineError, match="need shape"):
        disagreement(a, a[:2])


def test_a_turn_has_as_many_calls_as_its_time_allows():
    class Clock:
        def seconds(self, calls, num_calls, held):
            counts.append(num_calls)
            return 0.1

    for turn_s, num_calls in ((0.0, 1), (0.45, 4), (99.0, 6)):
        counts = []
        arm = Arm(Clock(), calls_that("a", []), turn_s, most_calls=6)
        arm.warm_up()
        arm.turn()
        assert counts == [1, 1, num_calls]


def test_a_gpus_clock_stands_around_the_calls_alone(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def synchronize(self):
            log.append("waited")

        def elapsed_time(self, end):
            return 6.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    runway = SimpleNamespace(zero_=lambda: log.append("busy"))
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: runway)
    stopwatch = GpuStopwatch(torch.device("cuda"), 1)
    held = deque(maxlen=1)
    seconds = stopwatch.seconds(iter([lambda: log.append("call")] * 3), 3, held)
    assert seconds == pytest.approx(0.002)
    assert log[-6:] == ["event", "call", "call", "call", "event", "waited"]
    assert set(log[:-6]) == {"busy"}


def test_results_keep_their_memory_until_their_turn_is_round():
    """So that outputs lie in as many places as inputs do."""
    arm = Arm(WallStopwatch(), [lambda: torch.ones(1)] * 3, 1.0, most_calls=10)
    arm.warm_up()
    arm.turn()
    assert len({tensor.data_ptr() for tensor in arm._held}) == 3


def test_inputs_are_as_many_as_fill_the_caches(bench):
    assert bench.num_sets(10**12) == 2
    full = full_settings(bench.settings.folder)
    large = Bench(**{**vars(bench), "settings": full})
    assert large.num_sets(50 * 2**20) == 11


@pytest.mark.parametrize("rotation", [64, 128, 256])
def test_torchs_packing_is_the_codecs(rotation):
    values = torch.randn(2, 3, 2, rotation, generator=torch.manual_seed(0))
    rows = torch_pack_q8_0(values, rotation)
    rotated = rotate(values.reshape(6, -1).numpy(), rotation)
    expected = torch.from_numpy(encode(rotated, "q8_0")).view(rows.shape)
    # Sums in another order: a code may be the next one.
    assert disagreement(rows, expected) < 0.01


def row(case, capability, *, registers=32, stack=0, shared=0):
    return {
        "case": case,
        "kernel": "k",
        "capability": capability,
        "registers": registers,
        "stack_bytes": stack,
        "shared_bytes": shared,
    }


def test_the_table_has_a_line_per_kernel_and_a_column_per_chip():
    rows = [row("a", 80), row("b", 80, shared=65536), row("b", 90, registers=255, stack=16)]
    report = {
        "versions": {"triton": "3.7.1"},
        "shared_limit_bytes": {"80": 163 * 1024, "90": 227 * 1024},
        "kernels": rows,
    }
    origin, _, title, _, *table = markdown(report).splitlines()
    assert "no GPU ran this" in origin
    assert title.endswith("Triton 3.7.1.")
    assert table == [
        "| kernel | 80 | 90 |",
        "|---|---|---|",
        "| *at most* | 255, 163 KiB | 255, 227 KiB |",
        "| a | 32 | - |",
        "| b | 32, 64 KiB | 255, **16 B spilled** |",
    ]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_kernel_compiles_for_every_chip_and_the_committed_table_says_so(tmp_path):
    written = tmp_path / "compiled.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "hetero", "bench", "kernels", "--compile", "-o", written],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(written.read_text())
    assert {row["capability"] for row in report["kernels"]} == set(SHARED_BYTES)
    for row in report["kernels"]:
        assert row["shared_bytes"] <= SHARED_BYTES[row["capability"]], row
        if row["case"].startswith("attention"):
            assert row["stack_bytes"] == 0, row
    committed = json.loads((RESULTS / "compiled.json").read_text())
    assert (RESULTS / "compiled.md").read_text() == markdown(committed)
    assert _comparable(committed, report) == _comparable(report, committed), (
        "kernels have changed: python tools/compile_kernels.py, and commit what it writes"
    )


def _comparable(report, other):
    """Names always; numbers where the same Triton compiled them."""
    rows = report["kernels"]
    if report["versions"] == other["versions"]:
        return {(row["case"], row["capability"]): row for row in rows}
    return {(row["case"], row["capability"]) for row in rows}
