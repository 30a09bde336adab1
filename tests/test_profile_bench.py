"""`hetero bench profile` on a tiny model: that it runs and counts, not what came of it."""

import json

import pytest

from hetero.cli import main
from hetero.experiment.profile_bench import held_out
from hetero.experiment.profile_bench.settings import full_settings


def test_a_quick_run_reports_every_figure(tmp_path, capsys):
    out = tmp_path / "profile.json"
    assert main.main(["bench", "profile", "--quick", "--json", "-o", str(out)]) == 0
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    assert [figure["name"] for figure in report["figures"]] == [
        "repeatability_tiny",
        "budget_tiny",
        "memory_tiny",
        "held_out_decode_median_tiny",
        "held_out_decode_p90_tiny",
        "held_out_prefill_median_tiny",
        "held_out_prefill_p90_tiny",
    ]
    decode = report["figures"][3]["arms"]
    assert len(decode["predicted_s"]["samples"]) == 4
    assert all(seconds > 0 for seconds in decode["measured_s"]["samples"])


def test_errors_are_of_predictions_at_the_speed_the_machine_then_had():
    points = [held_out._Point(*each, {}) for each in ((1.0, 2.0), (1.0, 1.0), (3.0, 2.0))]
    median, p90 = held_out._figures("m", "decode", points, 0.5, seed=1)
    assert median.arms["error_ratio"] == pytest.approx([0.0, 1.0, 2.0])
    assert median.arms["error_as_clocked_ratio"] == pytest.approx([0.5, 0.0, 0.5])
    assert (median.value, p90.value) == (1.0, 2.0)


def test_the_models_of_a_full_run_are_those_asked_for(tmp_path):
    shapes = {name: model.shape for name, model in full_settings(tmp_path).models.items()}
    assert 50e6 <= shapes["kv-heavy"].num_parameters <= 150e6
    assert 1e9 <= shapes["1b"].num_parameters <= 1.3e9
