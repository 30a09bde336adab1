"""`hetero bench profile` on a tiny model: that it runs and counts, not what came of it."""

import json

import pytest
from msgspec.structs import replace
from node_profiles import node_profile

from hetero.cli import main
from hetero.cli.model import model_path
from hetero.experiment.models import layout_of
from hetero.experiment.profile_bench import held_out
from hetero.experiment.profile_bench.settings import full_settings, quick_settings
from hetero.llama.model import Model
from hetero.profile.states import States
from hetero.profile.step_cost import plain_cost


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


def test_prompts_are_not_of_one_token(monkeypatch, tmp_path):
    """Which would wake the same experts again and again."""
    prompts = []

    class Recording(held_out.LlamaEngine):
        def start(self, tokens, **options):
            prompts.append(tokens)
            return super().start(tokens, **options)

    monkeypatch.setattr(held_out, "LlamaEngine", Recording)
    path = model_path("demo")
    prefill = next(fit for fit in node_profile().fits if fit.role == "prefill")
    with Model(path) as model:
        draw = held_out._Draw(
            settings=quick_settings(tmp_path),
            path=path,
            model=model,
            fit=replace(prefill, unified=True, threads=1),
            longest_prompt=128,
            states=States(model, layout_of(path, "f16"), num_threads=1),
            fly=lambda: None,
            prompts=[(100, 0), (40, 60)],
        )
        draw.measure()
    assert [len(tokens) for tokens in prompts] == [100, 100]
    assert all(len(set(tokens)) > 50 for tokens in prompts)
    assert prompts[0] != prompts[1]
    assert [len(chunks) for chunks in draw.passes[0]] == [2, 1]


def test_errors_are_of_predictions_at_the_speed_the_machine_then_had():
    points = [held_out._Point(*each, {}) for each in ((1.0, 2.0), (1.0, 1.0), (3.0, 2.0))]
    median, p90 = held_out._figures("m", "decode", points, 0.5, seed=1)
    assert median.arms["error_ratio"] == pytest.approx([0.0, 1.0, 2.0])
    assert median.arms["error_as_clocked_ratio"] == pytest.approx([0.5, 0.0, 0.5])
    assert (median.value, p90.value) == (1.0, 2.0)


def draw(role, *, passes, batches=(), prompts=()):
    """Of a fit whose seconds are known: 1 s a row, 0.01 a pair, 0.001 a cell scanned for nothing,
    50 a request, in chunks of 4."""
    [fit] = [each for each in node_profile().fits if (each.role, each.kv_k) == (role, "q8_0")]
    cost = plain_cost([1, 512], [1.0, 512.0], pair_s=0.01, masked_s=0.001)
    return held_out._Draw(
        settings=None,
        path=None,
        model=None,
        fit=replace(fit, cost=cost, request_s=50.0, chunk_tokens=4, unified=False),
        longest_prompt=0,
        states=None,
        fly=None,
        batches=list(batches),
        prompts=list(prompts),
        passes=passes,
    )


def test_of_a_decode_step_the_middle_pass_counts():
    passes = [[[3.0], [10.0]], [[1.0], [30.0]], [[2.0], [20.0]]]
    found = list(draw("decode", batches=[[10, 20], [7]], passes=passes).points())
    assert [point.measured_s for point in found] == [2.0, 20.0]
    # 2 rows, 30 pairs, 10 cells of padding; 1 row, 7 pairs. A step is no request.
    assert [point.predicted_s for point in found] == pytest.approx([2.31, 1.07])
    assert found[0].about == {"kv": "q8_0", "unified": False, "contexts": [10, 20]}
    assert found[1].about["contexts"] == [7]


def test_of_a_prompt_the_middle_pass_of_each_chunk_counts_and_no_request():
    """Another pass is disturbed in each chunk: the middle one of their sums would be 10."""
    passes = [[[9.0, 3.0], [1.0]], [[1.0, 9.0], [3.0]], [[2.0, 4.0], [2.0]]]
    found = list(draw("prefill", prompts=[(6, 10), (3, 0)], passes=passes).points())
    assert [point.measured_s for point in found] == [2.0 + 4.0, 2.0]
    # 6 rows after 10 cells: 11 + 12 + ... + 16 pairs. 3 rows: 1 + 2 + 3.
    assert [point.predicted_s for point in found] == pytest.approx([6.81, 3.06])
    assert found[0].about == {"kv": "q8_0", "unified": False, "tokens": 6, "cached": 10}
    assert found[1].about["cached"] == 0


def test_the_models_of_a_full_run_are_those_asked_for(tmp_path):
    shapes = {name: model.shape for name, model in full_settings(tmp_path).models.items()}
    assert 50e6 <= shapes["kv-heavy"].num_parameters <= 150e6
    assert 1e9 <= shapes["1b"].num_parameters <= 1.3e9
