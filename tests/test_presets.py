"""Presets say where their numbers are from, and estimates keep their word on published speeds."""

import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest
import yaml
from typer.testing import CliRunner

import hetero
from hetero.cli.main import app
from hetero.errors import ConfigError, PlanError
from hetero.model.demo import DEMO_MODEL_PATH
from hetero.model.gguf_file import GGUFFile
from hetero.model.shapes import parse_shape
from hetero.model.spec import gguf_to_spec
from hetero.profile.document import read_node_profile, write_profile
from hetero.profile.efficiency import CLASSES
from hetero.profile.estimate import estimate_profile
from hetero.profile.model_sizes import model_shape, named_shape
from hetero.profile.presets import CPU, GPU, Link, Server, load_preset, preset_names, read_preset

ROOT = Path(__file__).parents[1]
POINTS = yaml.safe_load((ROOT / "tests" / "published_points.yaml").read_text())
MACHINES = [name for name in preset_names() if not isinstance(load_preset(name), Link)]
CHIPS = [name for name in MACHINES if not isinstance(load_preset(name), Server)]


def sizes(name="llama-3.1-8b-q4_k_m"):
    return named_shape(*parse_shape(name))


def estimated(name, model="llama-3.1-8b-q4_k_m", preset=None, **settings):
    return estimate_profile(name, preset or load_preset(name), sizes(model), **settings)


@pytest.mark.parametrize("name", preset_names())
def test_every_number_has_a_source(name):
    preset = load_preset(name)
    for field in preset.figures():
        assert len(preset.source_of(field)) > 8, field
    assert preset.idle_watts < preset.load_watts


def test_names_follow_the_scheme():
    assert len(preset_names()) >= 30
    for name in preset_names():
        assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9]+)*", name)
        preset = load_preset(name)
        if isinstance(preset, Server):
            assert name.endswith("-" + preset.cpu)
        elif not isinstance(preset, Link):
            assert preset.device_class in CLASSES


def test_torch_serves_what_triton_compiles_for():
    served = {name for name in MACHINES if load_preset(name).prefill_engine == "torch"}
    assert {"rtx-3090", "rtx-3060-12gb", "h200", "rtx-5090"} <= served
    assert not {"p40", "v100", "t4", "mi50", "rtx-2080-ti", "r730-e5-2690v4"} & served


def test_an_unknown_preset_names_near_ones():
    with pytest.raises(ConfigError, match="rtx-3090"):
        load_preset("rtx3090")
    with pytest.raises(ConfigError) as error:
        load_preset("foo")
    assert str(error.value).endswith("; all: `hetero profile estimate --list`")
    near = str(error.value).partition("near: ")[2].partition(";")[0]
    assert len(near.split(", ")) == 5


def test_an_installed_package_brings_them(tmp_path):
    root = Path(hetero.__file__).parent
    built = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    source = "profiles/hardware"
    target = built["targets"]["wheel"]["force-include"][source]
    ignored = shutil.ignore_patterns("__pycache__", "*.gguf")
    shutil.copytree(root, tmp_path / "hetero", ignore=ignored)
    shutil.copytree(root.parent / source, tmp_path / target)
    code = "from hetero.profile import presets as p; print(p.__file__, *p.preset_names())"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    file, *names = run.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert names == preset_names()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda preset: preset | {"vram": 24}, "vram"),
        (lambda preset: preset | {"idle_watts": "some"}, "idle_watts"),
        (lambda preset: preset | {"sources": {}}, "sources: need one of"),
        (lambda preset: preset | {"sources": preset["sources"] | {"it": ["price"]}}, "price"),
        (lambda preset: preset | {"kind": "toaster"}, "toaster"),
    ],
)
def test_a_bad_preset_is_refused_by_field(tmp_path, change, problem):
    good = msgspec.to_builtins(load_preset("rtx-3090"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(good))
    assert read_preset(path) == load_preset("rtx-3090")
    path.write_text(yaml.safe_dump(change(good)))
    with pytest.raises(ConfigError, match=problem) as refused:
        read_preset(path)
    assert "mine.yaml" in str(refused.value)


@pytest.mark.parametrize("name", MACHINES)
def test_everything_is_marked_estimated(name, tmp_path):
    profile = estimated(name, "llama-3.2-3b-q4_0")
    sources = [section.source for section in (profile.ceilings, *profile.fits, *profile.codecs)]
    assert set(sources) == {"estimated"}
    assert [fit.role for fit in profile.fits] == ["prefill", "decode"]
    write_profile(profile, tmp_path / "it.yaml")
    assert read_node_profile(tmp_path / "it.yaml") == profile


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("model", ["llama-3.2-3b-q4_0", "qwen3-30b-a3b-q4_k_m"])
def test_more_work_is_never_cheaper(name, model):
    if sizes(model).weight_bytes > load_preset(name).memory_bytes:
        pytest.skip("does not fit")
    prefill, decode = estimated(name, model).fits
    prompts = [prefill.prefill_s(tokens) for tokens in range(1, 9000, 37)]
    assert all(shorter < longer for shorter, longer in itertools.pairwise(prompts))
    steps = [decode.step_s([4096] * batch) for batch in range(1, 80)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(steps))
    contexts = [decode.step_s([context]) for context in (1, 100, 10_000)]
    assert contexts == sorted(contexts)
    assert steps[7] < 8 * steps[0], "a batch shares each weight's way"


@pytest.mark.parametrize("name", CHIPS)
def test_a_faster_machine_is_never_slower(name):
    slow = load_preset(name)
    if isinstance(slow, GPU):
        wider = {"bandwidth_gb_s": 1.5 * slow.bandwidth_gb_s}
    else:
        wider = {"memory_channels": 2 * slow.memory_channels}
    stronger = {"tflops": {kind: 2 * rate for kind, rate in slow.tflops.items()}}
    for change in (wider, stronger, wider | stronger):
        fast = msgspec.structs.replace(slow, **change)
        slow_fits, fast_fits = (estimated(name, preset=preset).fits for preset in (slow, fast))
        for before, after in zip(slow_fits, fast_fits, strict=True):
            assert after.prefill_s(4096) <= before.prefill_s(4096)
            assert after.step_s([4096] * 8) <= before.step_s([4096] * 8)


def test_smaller_cells_make_long_contexts_cheaper():
    wide, narrow = (
        estimated("ryzen-7950x", kv_k=kind, kv_v=kind).fits[1] for kind in ("f16", "q4_0")
    )
    assert narrow.step_s([32768]) < wide.step_s([32768])
    assert (narrow.kv_k, narrow.kv_v) == ("q4_0", "q4_0")


def test_a_batch_reads_the_union_of_its_experts():
    model = sizes("qwen3-30b-a3b-q4_k_m")
    # 48 layers' 128 experts of 3 x 2048 x 768: 28.991e9. Their attention, routers and norms:
    # 0.9188e9; the head, and the table once more: 151,936 x 2048 = 0.3112e9.
    assert model.num_parameters == 30_532_122_624
    # Of 128 experts 8, a 16th; of 16 rows 1 - (15/16)^16 = 0.64393.
    assert model.read_parameters(1, with_head=True) == pytest.approx(3.0417e9, rel=1e-4)
    assert model.read_parameters(16, with_head=False) == pytest.approx(19.587e9, rel=1e-4)
    # All but the table.
    assert model.read_parameters(10_000, with_head=True) == pytest.approx(30.2210e9, rel=1e-5)


def test_an_estimate_is_bytes_over_bandwidth_and_operations_over_rate():
    """On a card of 936.2 GB/s, of which its class reaches 0.73, 0.8 on cells; 20 us a layer."""
    # A gigabyte for 1e9 parameters, of them 1e8 a table that is the head, too.
    model = msgspec.structs.replace(
        sizes(),
        num_parameters=10**9,
        weight_bytes=10**9,
        num_layers=10,
        num_heads=8,
        hidden_size=1000,
        vocab_size=100_000,
        tied_embeddings=True,
    )
    prefill, decode = estimate_profile(
        "rtx-3090", load_preset("rtx-3090"), model, "f16", "f16"
    ).fits
    # 0.2 ms for layers, 1.463216 for weights, 0.054689 for 1000 cells of 40,960 bytes.
    assert decode.step_s([1000]) == pytest.approx(1.717905e-3, rel=1e-5)
    # Another row's 2e9 operations at 0.27 of 284.7 Tflop/s: 0.026018 ms.
    assert decode.step_s([1000] * 2) == pytest.approx(1.798612e-3, rel=1e-5)
    # By torch, in ms: 10 for the request, 0.2 for layers, 6.008332 for 0.9 GB read and 3.6 of
    # 16-bit weights written and read at 0.8 of bandwidth, 62.379856 for 2048 rows' 1.8e9 operations
    # at 0.83 of 71.2 Tflop/s, 2.414081 for 2,098,176 pairs' 40,960 at half of 71.2.
    assert prefill.prefill_s(2048) == pytest.approx(81.002269e-3, rel=1e-6)


@pytest.mark.parametrize("name", ["llama-3.1-8b-q4_k_m", "llama-2-7b-q4_0", "qwen3-30b-a3b-q8_0"])
def test_weights_weigh_what_published_files_do(name):
    gib = {
        "llama-3.1-8b-q4_k_m": 4.58,
        "llama-2-7b-q4_0": 3.56,
        "qwen3-30b-a3b-q8_0": 30.25,
    }
    assert sizes(name).weight_bytes / 2**30 == pytest.approx(gib[name], rel=0.01)


def test_a_file_is_estimated_like_its_shape():
    model = model_shape(gguf_to_spec(GGUFFile.open(DEMO_MODEL_PATH)), None)
    profile = estimate_profile("p40", load_preset("p40"), model, "f16", "f16")
    assert profile.model.weight_bytes == model.weight_bytes
    assert profile.fits[1].step_s([100]) > 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(PlanError, match=r"gtx-1080-ti: .* needs .* GiB .* have 11"):
        estimated("gtx-1080-ti", "llama-3.1-70b-q4_0")


def test_a_link_is_no_machine():
    with pytest.raises(ConfigError, match="need a machine"):
        estimated("10gbe")


def test_torch_is_refused_where_it_does_not_run():
    with pytest.raises(ConfigError, match="prefill engine"):
        estimated("p40", prefill_engine="torch")


def preset_of(point):
    preset = load_preset(point["device"])
    return msgspec.structs.replace(preset, **point.get("differs", {}))


def class_of(point):
    preset = load_preset(point["device"])
    return preset.processor().device_class if isinstance(preset, Server) else preset.device_class


def group_of(point):
    """Points whose seconds depend on the same share of a class."""
    is_half = point["phase"] == "prefill" and point["model"].endswith("f16")
    return class_of(point), point["phase"], point.get("engine", "llama"), is_half


def tokens_per_s(point):
    """Estimated, and the interval's ends. llama-bench times steps alone, so no request_s."""
    model = sizes(point["model"])
    if "weight_gib" in point:
        model = msgspec.structs.replace(model, weight_bytes=int(point["weight_gib"] * 2**30))
    prefill, decode = estimate_profile(
        point["device"],
        preset_of(point),
        model,
        point.get("kv_k", "f16"),
        point.get("kv_v", "f16"),
        prefill_engine=point.get("engine", "llama"),
    ).fits
    if point["phase"] == "prefill":
        fit = msgspec.structs.replace(
            prefill, request_s=0.0, chunk_tokens=point.get("chunk", prefill.chunk_tokens)
        )
        rate = point["tokens"] / fit.prefill_s(point["tokens"], point.get("cached", 0))
    else:
        fit, batch = decode, point.get("batch", 1)
        rate = batch / fit.step_s([point["tokens"]] * batch)
    low, high = fit.interval
    return rate, rate / high, rate / low


def is_inside(point):
    _, low, high = tokens_per_s(point)
    return low <= point["tokens_per_s"] <= high


def half_width(point):
    rate, low, high = tokens_per_s(point)
    return (high - low) / 2 / rate


def test_every_point_says_where_it_is_from():
    for point in POINTS:
        assert len(point["source"]) > 15
        assert point["tokens_per_s"] > 0
    assert len({msgspec.json.encode(point) for point in POINTS}) == len(POINTS)


def test_roles_are_dealt_by_rule():
    """So that no point was put where it does no harm."""

    def order(point):
        keys = ("tokens", "cached", "chunk", "batch")
        return point["device"], point["model"], point["phase"], *(point.get(k, 0) for k in keys)

    assert sorted(POINTS, key=order) == POINTS
    dealt = defaultdict(int)
    for point in POINTS:
        group = group_of(point)
        is_long = point["tokens"] > 2048 or point.get("cached", 0) > 0
        if is_long or "doubtful" in point.get("note", ""):
            assert point["role"] == "check"
        else:
            assert point["role"] == ("calibration", "check")[dealt[group] % 2], point
            dealt[group] += 1


def test_shares_are_what_calibration_points_say():
    ratios = defaultdict(list)
    for point in POINTS:
        if point["role"] == "calibration":
            ratios[group_of(point)].append(point["tokens_per_s"] / tokens_per_s(point)[0])
    for group, values in ratios.items():
        assert statistics.geometric_mean(values) == pytest.approx(1, abs=0.03), group


@pytest.mark.parametrize("role", ["check", None])
def test_intervals_hold_what_was_published(role, record_property):
    points = [point for point in POINTS if role in (None, point["role"])]
    assert len(points) >= 15
    share = statistics.mean(is_inside(point) for point in points)
    width = statistics.median(half_width(point) for point in points)
    record_property("inside", share)
    record_property("median_half_width", width)
    missed = [(p["device"], p["model"], p["tokens_per_s"]) for p in points if not is_inside(p)]
    assert share >= 0.8, missed
    assert width <= 0.4


def test_the_docs_state_what_is_computed():
    docs = " ".join((ROOT / "docs" / "profile.md").read_text().split())
    checked = [point for point in POINTS if point["role"] == "check"]
    num_inside = sum(is_inside(point) for point in checked)
    width = statistics.median(half_width(point) for point in POINTS)
    for stated in (
        f"what datasheets say of {len(preset_names())} devices, servers and links",
        f"of {len(POINTS)} points {len(POINTS) - len(checked)} calibrate, {len(checked)} check",
        f"{num_inside} ({num_inside / len(checked):.0%}) lie inside the stated 90% interval",
        f"the median of all intervals is {width:.0%} to a side, both sides averaged",
    ):
        assert stated in docs


def test_every_class_with_points_is_judged():
    judged = {class_of(point) for point in POINTS if point["role"] == "check"}
    assert judged >= {"geforce", "datacenter", "pascal", "turing", "gcn", "desktop", "xeon-avx2"}


def call(*arguments):
    return CliRunner().invoke(app, ["profile", "estimate", *arguments])


def test_the_table_shows_both_phases():
    result = call("rtx-3090", "--shape", "llama-3.1-8b-q4_k_m")
    assert result.exit_code == 0, result.output
    assert re.search(r"prefill, 8k tokens, torch +[\d.]+ s +\d+ tok/s +\d+ to \d+", result.output)
    assert re.search(
        r"decode, batch 16 at 2k, llama +[\d.]+ ms +\d+ tok/s +\d+ to \d+", result.output
    )


def test_a_written_estimate_is_a_profile(tmp_path):
    path = tmp_path / "it.yaml"
    result = call(
        "p40", "--shape", "qwen3-8b", "--kv-k", "f16", "--kv-v", "q8_0", "-o", str(path), "--json"
    )
    assert result.exit_code == 0, result.output
    profile = read_node_profile(path)
    assert profile.host == "p40"
    assert {(fit.kv_k, fit.kv_v) for fit in profile.fits} == {("f16", "q8_0")}
    assert json.loads(result.stdout)["kind"] == "node"


def test_an_estimate_says_where_it_was_written(tmp_path):
    path = tmp_path / "it.yaml"
    for said in ("wrote", "replaced"):
        result = call("p40", "--shape", "qwen3-8b", "--kv-k", "Q8_0", "-o", str(path))
        assert result.exit_code == 0, result.output
        assert f"{said} {path}\n" in result.stderr


def test_a_file_keeps_its_fingerprint(tmp_path):
    path = tmp_path / "it.yaml"
    assert call("r730-e5-2690v4", "-m", "demo", "-o", str(path)).exit_code == 0
    assert read_node_profile(path).model.fingerprint is not None


def test_the_list_names_all():
    result = call("--list")
    assert result.exit_code == 0
    assert all(name in result.output for name in preset_names())


def test_a_planner_reads_watts_from_a_preset():
    assert load_preset("r730-e5-2690v4").load_watts > 2 * load_preset("e5-2690v4").load_watts
    assert isinstance(load_preset("r730-e5-2690v4").processor(), CPU)
    assert math.isclose(load_preset("rtx-3090").load_watts, 350)
