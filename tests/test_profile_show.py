"""`hetero profile show`: what people and programs are told of a profile."""

import json
import subprocess
import sys
from functools import partial

import msgspec
import pytest
from matplotlib.figure import Figure
from node_profiles import MODEL, gpu_ceilings, machine_profile, node_profile, with_fits
from profile_commands import call, called, write_profiles
from test_profile_document import link_profile

from hetero.profile.document import document
from hetero.profile.facts.report import GPU
from hetero.profile.node_report import facts_lines, headline, noise_lines, tables
from hetero.profile.plot.ratio_panel import draw_ratios
from hetero.profile.plot.roofline import draw_roofline
from hetero.profile.plot.style import fit_colours
from hetero.profile.rates import decode_rate, first_choice, matrix_flops, prefill_rate, rates, roof
from hetero.profile.work import step_work

PROFILE = node_profile()
PNG = b"\x89PNG\r\n\x1a\n"
replace = msgspec.structs.replace


@pytest.fixture
def written(tmp_path):
    """Writes profiles; returns their paths."""
    return partial(write_profiles, tmp_path)


# Without what a machine may keep to itself.
BARE_FACTS = replace(
    PROFILE.facts,
    product=None,
    cpu=replace(PROFILE.facts.cpu, isa=[], governor=None, max_mhz=None, power_limit_watts=None),
    memory=replace(
        PROFILE.facts.memory, channels=None, kind=None, mega_transfers=None, huge_page_bytes=None
    ),
    usable=replace(PROFILE.facts.usable, cpus=[0, 1], cpu_quota=1.5),
    power=replace(PROFILE.facts.power, on_battery=True),
    nics=[],
    disks=[],
)
ON_GPU = with_fits(
    replace(PROFILE, ceilings=replace(PROFILE.ceilings, gpus=[gpu_ceilings()])), device="cuda:0"
)
BRIEF = replace(PROFILE, fits=[PROFILE.fits[0], PROFILE.fits[2]])  # drawn in half the time
VARIANTS = {
    "whole": PROFILE,
    "nothing measured": replace(
        BRIEF, fits=[], codecs=[], co_runs=[], settings={}, noise=None, soak=None
    ),
    "bare": replace(BRIEF, facts=BARE_FACTS),
    "estimated": with_fits(replace(BRIEF, noise=None), source="estimated", samples=[], error=None),
    "on a GPU": with_fits(replace(BRIEF, ceilings=ON_GPU.ceilings), device="cuda:0"),
    "on an unknown GPU": with_fits(BRIEF, device="cuda:0"),
    "unified": node_profile(unified=True),
    "experts": replace(BRIEF, model=replace(MODEL, num_experts=8)),
    "no flops known": replace(BRIEF, ceilings=replace(BRIEF.ceilings, tflops={}, numa={})),
    "random weights": replace(BRIEF, model=replace(MODEL, fingerprint=None)),
    "one sample": with_fits(BRIEF, samples=BRIEF.fits[0].samples[:1]),
    "only drawn": with_fits(BRIEF, samples=[replace(BRIEF.fits[0].samples[0], drawn=True)]),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_profile_can_be_shown_and_drawn(name, written, tmp_path, capsys):
    picture = tmp_path / "p.png"
    shown = called(capsys, "show", *written(VARIANTS[name]), "--plot-file", picture)
    assert shown.startswith("r730, llama-3.1-8b-q4_k_m")
    assert "nan" not in shown
    assert picture.read_bytes().startswith(PNG)


def test_a_picture_lies_beside_its_profile_unless_told(written, tmp_path, capsys):
    status, _, err = call(capsys, "show", *written(BRIEF), "--plot")
    assert (status, err) == (0, f"drawn: {tmp_path / '0.png'}\n")
    assert (tmp_path / "0.png").read_bytes().startswith(PNG)


def test_what_is_read_first_is_how_fast_and_how_near_the_ceiling(written, capsys):
    shown = called(capsys, "show", *written(PROFILE)).splitlines()
    assert shown[0] == (
        "r730, llama-3.1-8b-q4_k_m, 4.58 GiB, 2026-11-02T19:30:00+00:00, took 171 s of 180"
    )
    assert shown[2] == "quiet: a fixed step ran at 97% to 102% of its undisturbed speed"
    assert shown[1] == (
        "prefill 82.9 tok/s at 2k (66% of f32 flops, -5% +5%, q8_0, fitted); "
        "decode 9.07 tok/s at 2k (74% of read bandwidth, -5% +5%, q8_0, fitted)"
    )
    text = "\n".join(shown)
    for words in (
        "2 x Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz, 28 cores (avx2), 256 GiB DDR4-2400",
        "on 8 channels (154 GB/s nominal)",
        "llama cpu f16/f16 streams",
        "2.1%, p90 4.4%",
        "memory, NUMA node 1",
        "K q8_0, V q8_0",
        "decode beside prefill on the same engine",
        "28 threads",
        "* beyond the samples",
        "facts not seen: 1",
    ):
        assert words in text
    everything = called(capsys, "show", *written(PROFILE), "--all")
    assert "not seen: power of the memory: need root, have none" in everything


def test_estimates_of_other_types_are_shown_if_asked_for(written, capsys):
    """Where there is nothing else they are shown in any case."""
    estimate = replace(PROFILE.fits[0], kv_k="q4_0", kv_v="q4_0", source="estimated")
    paths = written(replace(PROFILE, fits=[*PROFILE.fits, estimate]))
    assert "q4_0/q4_0" not in called(capsys, "show", *paths)
    assert "q4_0/q4_0" in called(capsys, "show", *paths, "--all")
    assert "q4_0/q4_0" in called(capsys, "show", *written(replace(PROFILE, fits=[estimate])))


def test_a_rate_is_lowest_where_seconds_are_longest():
    fit = replace(PROFILE.fits[0], interval=(0.8, 1.25))  # of seconds
    assert "-20% +25%" in headline(replace(PROFILE, fits=[fit]))
    fit = replace(fit, interval=(0.5, 4.0))
    assert "-75% +100%" in headline(replace(PROFILE, fits=[fit]))


def test_what_was_never_tested_is_no_headline(written, capsys):
    """A step of one row tells nothing of a prompt."""
    fits = [replace(fit, error=None) if fit.role == "prefill" else fit for fit in PROFILE.fits]
    profile = replace(PROFILE, fits=fits)
    count = len(next(fit for fit in fits if fit.role == "prefill").samples)
    assert headline(profile).startswith(f"prefill not known: {count} samples are too few; decode 9")
    assert "too few samples" in called(capsys, "show", *written(profile))


def test_the_fit_that_is_named_is_what_would_be_run():
    """Of the first types, in the cache that was found best: not the one that looks quickest."""
    q8, f16 = (fit for fit in PROFILE.fits if fit.role == "decode")
    quick = replace(q8, cost=replace(q8.cost, rows_s=[0.01, 0.02, 0.03]))
    settings = {"decode": replace(PROFILE.settings["decode"], unified=True)}
    unified = replace(q8, unified=True)
    profile = replace(PROFILE, settings=settings, fits=[quick, unified, replace(quick, kv_k="f16")])
    assert first_choice(profile, "decode") == unified
    gpu = replace(quick, device="cuda:0")
    assert first_choice(replace(profile, fits=[quick, unified, gpu]), "decode") == gpu
    assert first_choice(replace(profile, settings={}, fits=[f16, quick]), "decode") == quick


def test_a_decode_steps_share_is_bytes_over_seconds_over_bandwidth():
    fit = PROFILE.fits[0]
    # Of 8.03e9 parameters all but the embedding's 128256 x 4096, at 4.92 bytes for 8.03; and 2048
    # cells of 32 layers x 2 x 8 x 128 values in q8_0's 34 bytes for 32.
    num_bytes = 4_598_125_037 + 142_606_336
    seconds = 0.1103008  # 0.106 + 2048 x 2.1e-6
    rate = decode_rate(PROFILE, fit, [2048])
    assert rate.seconds == pytest.approx(seconds)
    assert rate.tokens_per_s == pytest.approx(1 / seconds)
    assert rate.share == pytest.approx(num_bytes / seconds / 58e9)
    assert rate.is_sampled
    assert not decode_rate(PROFILE, fit, [8192]).is_sampled
    assert not decode_rate(PROFILE, fit, [128] * 17).is_sampled


def test_a_prompts_share_is_of_its_rows_through_the_layers_and_one_through_the_head():
    fit = next(fit for fit in PROFILE.fits if fit.role == "prefill")
    rate = prefill_rate(PROFILE, fit, 512)
    seconds = 5.7464608  # 0.002 for the request, 5.6 for rows, 131,328 pairs at 1.1e-6
    assert rate.seconds == pytest.approx(seconds)
    # 8.03e9 less embedding and head of 525,336,576 each, 512 times; and the head once.
    flops = 2 * (512 * 6_979_326_848 + 525_336_576)
    assert rate.share == pytest.approx(flops / seconds / 1.75e12)
    assert rate.is_sampled
    assert not prefill_rate(PROFILE, fit, 8192).is_sampled


def test_a_table_shared_with_the_head_is_read_but_for_prefill_chunks_without_logits():
    # 1e9 parameters at a byte each, of them 1e8 the table.
    table = replace(
        MODEL,
        num_parameters=10**9,
        weight_bytes=10**9,
        vocab_size=100_000,
        hidden_size=1000,
        tied_embeddings=True,
    )
    assert table.read_bytes(4, with_head=True) == pytest.approx(1e9)
    assert table.read_bytes(4, with_head=False) == pytest.approx(9e8)
    assert matrix_flops(table, 4, 1) == pytest.approx(2 * (4 * 9e8 + 1e8))
    two = replace(table, tied_embeddings=False)
    assert two.read_bytes(4, with_head=True) == pytest.approx(9e8)
    assert matrix_flops(two, 4, 4) == pytest.approx(2 * 4 * 9e8)


def test_each_device_has_its_own_roof():
    gpu = roof(ON_GPU.ceilings, "cuda:0")
    assert (gpu.bytes_per_s, gpu.flops_per_s, gpu.flops_type) == (840e9, 71e12, "f16")
    assert roof(ON_GPU.ceilings, "cpu").flops_type == "f32"
    assert roof(ON_GPU.ceilings, "cuda:1") is None
    assert all(rate.share is None for rate in rates(VARIANTS["on an unknown GPU"], ON_GPU.fits[0]))


def test_a_roofline_shows_steps_by_operations_and_bytes():
    axes = Figure().subplots()
    draw_roofline(axes, PROFILE, fit_colours(PROFILE.fits))
    lines = {line.get_label(): line for line in axes.get_lines()}
    decode = lines["decode at 2k, by batch: q8_0/q8_0, llama cpu"]
    # Layers and head once, 7,504,663,424 products; over the bytes and seconds worked out above.
    assert decode.get_xdata()[0] == pytest.approx(15.009327e9 / 4.740731e9, rel=1e-6)
    assert decode.get_ydata()[0] == pytest.approx(15.009327e9 / 0.1103008 / 1e12, rel=1e-6)
    prefill = lines["prefill, by tokens of a chunk: q8_0/q8_0, llama cpu"]
    # A prompt of one chunk: 512 rows and one for the head; weights, and 512 cells of 69,632 bytes.
    assert prefill.get_xdata()[-1] == pytest.approx(7147.8814e9 / 4.633777e9, rel=1e-6)
    assert prefill.get_ydata()[-1] == pytest.approx(7147.8814e9 / 5.7444608 / 1e12, rel=1e-6)


def test_samples_stand_at_measured_over_fitted():
    fit = PROFILE.fits[0]
    # Two cells a row of batch 1: 0.106 s and 2 x 2.1 us; a clock of 0.9 means 0.9 of the seconds.
    work = step_work([2], 0, unified=False)
    drawn = replace(fit.samples[0], work=work, seconds=0.1060042 * 1.2, speed=0.9, drawn=True)
    placed = replace(drawn, seconds=0.1060042, speed=1.0, drawn=False)
    axes = Figure().subplots()
    draw_ratios(axes, [replace(fit, samples=[placed, drawn])], fit_colours(PROFILE.fits))
    shown = [points for each in axes.collections for points in each.get_offsets()[:, 0].tolist()]
    assert shown == pytest.approx([1.0, 1.08])
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["placed", "drawn at random"]
    [tick] = axes.get_yticklabels()
    assert tick.get_text().endswith("cross-validated 2.1%")


def test_of_a_mixture_of_experts_no_share_is_claimed():
    profile = VARIANTS["experts"]
    assert all(rate.share is None for fit in profile.fits for rate in rates(profile, fit))
    assert "% of" not in headline(profile)


def test_the_measured_is_named_before_the_estimated():
    slow, fast = PROFILE.fits[0], replace(PROFILE.fits[1], source="estimated")
    fast = replace(fast, cost=replace(fast.cost, rows_s=[0.01, 0.02, 0.03]))
    assert "fitted" in headline(replace(PROFILE, fits=[fast, slow]))
    assert "estimated" in headline(replace(PROFILE, fits=[fast]))
    assert headline(replace(PROFILE, fits=[])) == "no engine was measured"


def test_what_may_be_used_of_a_machine_is_said():
    assert facts_lines(BARE_FACTS)[1] == "usable: 2 of 56 logical cores, 1.5 cores' time, 256 GiB"
    assert "on battery" in facts_lines(BARE_FACTS)[2]
    assert not any(line.startswith("usable") for line in facts_lines(PROFILE.facts))
    gpu = GPU(
        index=0,
        name="RTX 3090",
        vendor="nvidia",
        memory_bytes=24 * 2**30,
        compute_capability="8.6",
        pcie_generation=4,
        pcie_width=8,
        numa_node=0,
        power_limit_watts=350.0,
        driver="580",
    )
    lines = facts_lines(replace(PROFILE.facts, gpus=[gpu]))
    assert "GPU 0: RTX 3090, 24 GiB, compute capability 8.6, PCIe 4 x8" in lines


@pytest.mark.parametrize(
    ("node", "interleave", "shown"),
    [(None, [], "any"), (1, [], "1"), (None, [0, 1], "0, 1 in turn")],
)
def test_the_nodes_that_memory_lies_on_are_shown(node, interleave, shown):
    found = replace(PROFILE.settings["decode"], numa_node=node, interleave=interleave)
    profile = replace(PROFILE, settings={"decode": found})
    [table] = [
        table
        for table in tables(profile, with_estimates=True)
        if table.title == "settings found best"
    ]
    [row] = table.rows
    assert row[table.heads.index("NUMA node")] == shown


def test_a_noisy_machine_is_said_to_be_so():
    noise = replace(
        PROFILE.noise,
        is_noisy=True,
        reasons=["throttled: heat", "others took 31%"],
        throttled=["heat"],
    )
    assert noise_lines(noise) == [
        "NOISY, measure again when it is idle: a fixed step ran at 97% to 102% of its undisturbed "
        "speed; the intervals allow for it",
        "- throttled: heat",
        "- others took 31%",
    ]
    assert noise_lines(None) == ["estimated: nothing ran on the machine"]


@pytest.mark.parametrize("name", VARIANTS)
def test_tables_are_rectangular(name):
    for table in tables(VARIANTS[name], with_estimates=True):
        assert {len(row) for row in table.rows} == {len(table.heads)}, table.title


def test_json_is_the_profile_and_its_rates(written, capsys):
    found = json.loads(called(capsys, "show", *written(PROFILE), "--json"))
    shares = found.pop("rates")
    assert found == json.loads(json.dumps(document(PROFILE)))
    assert [len(each) for each in shares] == [4, 4, 3, 3]
    assert shares[0][0]["what"] == "batch 1 at 2k"
    assert shares[0][0]["share"] == pytest.approx(0.741, abs=0.0005)


def test_a_links_profile_is_shown_too(written, capsys):
    paths = written(link_profile())
    assert "KV, aead" in called(capsys, "show", *paths)
    assert json.loads(called(capsys, "show", *paths, "--json"))["kind"] == "link"


def test_bad_usage_is_named(written, tmp_path, capsys):
    node, link, machine = written(PROFILE, link_profile(), machine_profile())
    text = tmp_path / "t.yaml"
    text.write_text("- a\n")
    for arguments, complaint in [
        (["show"], "Missing argument"),
        (["show", tmp_path / "none.yaml"], "can't read it: no such file"),
        (["show", text], "need a profile's YAML, have ['a']"),
        (["show", link, "--plot-file", tmp_path / "p.png"], "kind: need a node's profile to plot"),
        (["show", node, "--plot-file", tmp_path / "p.jpg"], "plot: need a name that ends in .png"),
        (["show", node, "--plot-file", tmp_path / "no" / "p.png"], "can't write it: no such file"),
        (["compare", node], "Missing argument"),
        (["compare", node, text], "need a profile's YAML"),
        (["show", machine, "--plot"], "have a machine's; measure with `hetero profile node -m"),
        (["compare", node, link], "need two nodes' profiles or two links', have a node's and a l"),
        (["compare", machine, machine], "have two machines'; measure with `hetero profile node -m"),
        (["compare", link, machine], "have a link's and a machine's; measure with"),
    ]:
        status, out, err = call(capsys, *arguments)
        assert (status, out) == (2, ""), arguments
        assert complaint in err, arguments


def test_without_matplotlib_a_picture_says_how_to_get_it(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hetero.profile.plot.node_figure.find_spec", lambda name: None)
    status, _, err = call(capsys, "show", *written(PROFILE), "--plot-file", tmp_path / "p.png")
    assert status == 2
    assert "need the matplotlib package, have none: pip install 'hetero[plot]'" in err


def test_profiles_are_read_and_compared_without_engines_or_plots():
    code = (
        "import sys; import hetero.profile.document, hetero.profile.comparison, "
        "hetero.profile.agreement, hetero.profile.node_report; "
        "heavy = ('torch', 'llama_cpp', 'matplotlib', 'numpy'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
