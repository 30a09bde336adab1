"""`hetero profile compare`: two profiles side by side, and whether two runs agree."""

import json
from functools import partial

import msgspec
import pytest
from node_profiles import (
    FINGERPRINT,
    MODEL,
    gpu_ceilings,
    node_profile,
    with_fits,
)
from profile_commands import call, called, write_profiles
from test_profile_document import link_profile

from hetero.errors import ConfigError
from hetero.profile.agreement import LEAST_POINTS, agreement, doubts
from hetero.profile.comparison import compare
from hetero.profile.work import step_work

PROFILE = node_profile()
replace = msgspec.structs.replace
ON_GPU = with_fits(
    replace(PROFILE, ceilings=replace(PROFILE.ceilings, gpus=[gpu_ceilings()])), device="cuda:0"
)


@pytest.fixture
def written(tmp_path):
    """Writes profiles; returns their paths."""
    return partial(write_profiles, tmp_path)


def test_one_machine_twice_as_slow_all_the_while_agrees_with_itself():
    found = agreement(PROFILE, node_profile(slower=2.0))
    assert len(found.fits) == 4
    assert found.unmatched == []
    assert found.worst_deviation == pytest.approx(0, abs=1e-9)


def test_slower_beside_equal_pilots_is_a_deviation():
    a, b = PROFILE, node_profile(slower=1.25)
    found = agreement(a, replace(b, noise=a.noise))
    assert found.median_deviation == pytest.approx(0.25)
    assert all(point.ratio == pytest.approx(1.25) for fit in found.fits for point in fit.points)
    back = agreement(replace(b, noise=a.noise), a)
    assert back.median_deviation == pytest.approx(0.25)


def test_each_role_has_its_own_pilot():
    pilots = {"memory": 0.004, "compute": 0.006}
    found = agreement(PROFILE, replace(PROFILE, noise=replace(PROFILE.noise, pilot_s=pilots)))
    for fit in found.fits:
        expected = 0.0 if fit.role == "decode" else 1.0
        assert fit.worst_deviation == pytest.approx(expected)


@pytest.mark.parametrize("unified", [False, True])
def test_predictions_are_compared_inside_both_runs_samples(unified):
    a = node_profile(unified=unified)
    few = [sample for sample in a.fits[0].samples if sample.work.rows <= 4]
    b = replace(a, fits=[replace(a.fits[0], samples=few), *a.fits[1:]])
    found = agreement(a, b)
    # Batches of 1 to 4, at 128, 256, 512, 1k, 2k and 4k; and one such context among shorter ones,
    # which in streams would be padded further than any sample was.
    assert len(found.fits[0].points) == 24 + (18 if unified else 0)
    for fit, ours, theirs in zip(found.fits, a.fits, b.fits, strict=True):
        for samples in (ours.samples, theirs.samples):
            assert {point.work.rows for point in fit.points} <= set(
                range(min(s.work.rows for s in samples), max(s.work.rows for s in samples) + 1)
            )
            most = max(sample.work.masked for sample in samples)
            assert all(point.work.masked <= most * (1 + 1e-9) for point in fit.points)
    assert max(point.work.rows for point in found.fits[0].points) == 4


def test_fits_of_one_run_only_are_named():
    found = agreement(PROFILE, replace(PROFILE, fits=PROFILE.fits[1:]))
    assert found.in_one_only == ["decode llama cpu q8_0/q8_0 streams"]
    assert (found.apart, len(found.fits)) == ([], 3)


def deep_only(fit):
    """Samples of contexts that no other run has."""
    work = step_work([100_000], 0, unified=False)
    return replace(fit, samples=[replace(fit.samples[0], work=work)])


def test_a_fit_of_both_runs_without_samples_in_common_is_not_in_one_only(written, capsys):
    other = replace(PROFILE, fits=[deep_only(PROFILE.fits[0]), *PROFILE.fits[1:]])
    found = agreement(PROFILE, other)
    assert found.apart == found.unmatched == ["decode llama cpu q8_0/q8_0 streams"]
    assert found.in_one_only == []
    shown = called(capsys, "compare", *written(PROFILE, other))
    assert "no samples in common: decode llama cpu q8_0/q8_0 streams" in shown
    assert "in one of them only" not in shown


def test_a_point_or_two_are_no_agreement(written, capsys):
    one = replace(PROFILE, fits=[replace(PROFILE.fits[0], samples=PROFILE.fits[0].samples[:1])])
    found = agreement(one, PROFILE)
    assert 0 < found.num_points < LEAST_POINTS
    shown = called(capsys, "compare", *written(one, PROFILE))
    assert (
        f"too few samples in common: need 10 points of the grid, have {found.num_points};" in shown
    )
    assert "agree within" not in shown
    found = json.loads(called(capsys, "compare", *written(one, PROFILE), "--json"))
    assert found["no_agreement"].startswith("too few samples in common")


def test_a_noisy_run_is_said_to_be_so_last(written, capsys):
    noise = replace(PROFILE.noise, is_noisy=True, reasons=["throttled: heat", "on battery"])
    paths = written(PROFILE, replace(PROFILE, noise=noise))
    last = called(capsys, "compare", *paths).splitlines()[-1]
    assert last == "B was noisy: throttled: heat; on battery"
    assert json.loads(called(capsys, "compare", *paths, "--json"))["doubts"] == [last]


def test_pilots_of_another_speed_are_a_doubt_on_one_machine_only():
    assert doubts(PROFILE, node_profile(slower=1.19)) == []
    for slower in (17.0, 1 / 17):
        assert doubts(PROFILE, node_profile(slower=slower)) == [
            f"not one speed: undisturbed, B's {name} pilot took {slower:.3g} times A's seconds"
            for name in ("compute", "memory")
        ]
    assert doubts(PROFILE, node_profile(slower=17.0, host="r740")) == []
    assert doubts(PROFILE, replace(PROFILE, noise=None)) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"host": "r740"}, "host: need two runs on one, have r730 and r740"),
        ({"model": replace(MODEL, fingerprint=None)}, "model: need two runs on one"),
        ({"noise": None}, "noise.pilot_s of r730: need memory, have none"),
        ({"fits": []}, "fits: need one with samples in common, have none"),
    ],
)
def test_what_can_not_agree_is_refused(change, complaint):
    with pytest.raises(ConfigError, match=complaint):
        agreement(PROFILE, replace(PROFILE, **change))


def test_a_renamed_file_is_the_same_model():
    renamed = replace(PROFILE, model=replace(MODEL, name="llama"))
    assert agreement(PROFILE, renamed).worst_deviation == 0


def test_two_runs_stand_side_by_side(written, capsys):
    paths = written(PROFILE, node_profile(seed=2, slower=1.25))
    shown = called(capsys, "compare", *paths)
    line = next(line for line in shown.splitlines() if "memory, read" in line)
    assert line.split() == ["ceilings", "memory,", "read", "58", "46.4", "GB/s", "0.800"]
    assert "0.yaml, r730, 2026-11-02T19:30:00+00:00, quiet" in shown.splitlines()[0]
    assert "agree within 0.0%, half of them within 0.0%" in shown
    assert "pilot took 1.25 times A's seconds" in shown.splitlines()[-1]
    found = json.loads(called(capsys, "compare", *paths, "--json"))
    assert found["agreement"]["worst_deviation"] < 1e-9
    assert found["no_agreement"] is None
    by_name = {figure["name"]: figure for figure in found["figures"]}
    assert by_name["f32 flops"]["ratio"] == pytest.approx(0.8)


def test_what_was_not_measured_in_either_run_is_noted():
    name = "llama cpu q8_0/q8_0 streams, batch 1 at "
    estimated = with_fits(PROFILE, source="estimated", samples=[], error=None)
    notes = {figure.name: figure.note for figure in compare(PROFILE, PROFILE)}
    assert (notes[name + "2k"], notes[name + "8k"]) == ("", "beyond the samples")
    notes = {figure.name: figure.note for figure in compare(PROFILE, estimated)}
    assert notes[name + "2k"] == "B estimated"
    assert notes[name + "8k"] == "A beyond the samples, B estimated"


def test_other_machines_are_compared_by_their_figures_alone(written, capsys):
    paths = written(PROFILE, replace(ON_GPU, host="desktop"))
    shown = called(capsys, "compare", *paths)
    assert "not compared: host: need two runs on one, have r730 and desktop" in shown
    found = json.loads(called(capsys, "compare", *paths, "--json"))
    assert found["agreement"] is None
    one = next(each for each in found["figures"] if each["name"] == "cuda:0, copy")
    assert (one["a"], one["b"], one["ratio"]) == (None, 840.0, None)


def test_figures_of_a_section_stay_together():
    sections = [figure.section for figure in compare(PROFILE, ON_GPU)]
    assert sections == sorted(sections, key=sections.index)
    names = [(figure.section, figure.name) for figure in compare(PROFILE, ON_GPU)]
    assert len(names) == len(set(names))


def test_links_are_compared_too(written, capsys):
    faster = replace(
        link_profile(),
        pack_bytes_per_s=replace(link_profile().pack_bytes_per_s, median=2.0),
    )
    found = json.loads(called(capsys, "compare", *written(link_profile(), faster), "--json"))
    ratios = {figure["name"]: figure["ratio"] for figure in found["figures"]}
    assert ratios == {"plain TCP": 1, "KV, aead": 1, "round trip": 1, "packing": 2}
    shown = called(capsys, "compare", *written(link_profile(), faster))
    assert "0.yaml, desktop to r730, 2026-11-02" in shown
    assert "predictions" not in shown


OTHER = replace(PROFILE, model=replace(MODEL, fingerprint=replace(FINGERPRINT, tensors="55" * 32)))
SHAPE = replace(PROFILE, model=replace(MODEL, fingerprint=None))
OTHER_SHAPE = replace(PROFILE, model=replace(MODEL, fingerprint=None, name="qwen"))


@pytest.mark.parametrize(
    ("a", "b", "complaint"),
    [
        (PROFILE, OTHER, "llama-3.1-8b-q4_k_m, whose tensors differ"),
        (PROFILE, SHAPE, "have one of random weights of the shape llama-3.1-8b-q4_k_m"),
        (SHAPE, PROFILE, "have one of random weights of the shape llama-3.1-8b-q4_k_m"),
        (SHAPE, OTHER_SHAPE, "need a profile of llama-3.1-8b-q4_k_m, have one of qwen"),
    ],
)
def test_another_models_profile_is_refused_unless_asked_for(written, capsys, a, b, complaint):
    paths = written(a, b)
    status, out, err = call(capsys, "compare", *paths)
    assert (status, out) == (2, "")
    assert complaint in err
    assert "--any-model" in err
    assert "model: need two runs on one" in called(capsys, "compare", *paths, "--any-model")
