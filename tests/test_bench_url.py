"""`hetero bench URL` as users run it."""

import json
import os
import signal
import subprocess
import sys

import pytest
from stub_server import PATIENCE_S, running_stub

from hetero.cli import main

SIZES = ("--prompt-tokens", "30", "--output-tokens", "4")


def bench(capsys, *arguments):
    status = main.main(["bench", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_a_sweep_prints_a_line_each_and_the_best_that_meets_the_slo(capsys, tmp_path):
    with running_stub("--first-ms", 20, "--token-ms", 5, "--slots", 2) as stub:
        status, out, err = bench(
            capsys,
            *(stub.url, *SIZES, "--concurrency", "1,2,8", "--slo", "ttft_p95:60ms"),
            *("--cost-per-hour", 1, "-o", tmp_path / "report.json"),
            *("--requests-file", tmp_path / "requests.jsonl"),
        )
    assert status == 0, err
    assert "prompts as token ids" in out
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["1"], ["2"], ["8"])]
    assert [row[:2] for row in rows] == [["1", "8"], ["2", "12"], ["8", "48"]]
    # Eight at once wait for two places: 4 x 35 ms.
    assert "ttft_p95:60ms: met; best goodput at concurrency" in out
    report = json.loads((tmp_path / "report.json").read_text())
    met = {point["concurrency"]: point["scalars"]["slo_met"] for point in report["points"]}
    assert met[8] == 0
    assert report["best"]["concurrency"] in (1, 2)
    assert report["points"][0]["cost"]["per_output_token"] > 0
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["concurrency"] for line in lines] == [1] * 8 + [2] * 12 + [8] * 48


def test_json_is_last_on_stdout_and_has_the_statistics(capsys):
    with running_stub("--first-ms", 5, "--token-ms", 2) as stub:
        status, out, _ = bench(capsys, stub.url + "/v1/", *SIZES, "--rate", "50", "--json")
    assert status == 0
    [point] = json.loads(out.splitlines()[-1])["points"]
    assert (point["rate"], point["records"]) == (50.0, 32)
    assert point["statistics"]["ttft_p50"] >= 0.005
    assert point["share"]["cores"] > 0
    assert point["prompt_lengths"] == {"counted": 32, "exact": 32, "worst": 0}
    assert point["aiperf"]["time_to_first_token"]["unit"] == "ms"


def test_options_may_stand_before_the_url(capsys):
    with running_stub("--first-ms", 1, "--token-ms", 1) as stub:
        status, out, _ = bench(capsys, "--concurrency", 1, *SIZES, "--json", stub.url)
    assert status == 0
    assert len(json.loads(out.splitlines()[-1])["points"]) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["engin"], "did you mean engine?"),
        (["localhost:8080"], "did you mean http://localhost:8080?"),
        (["ftp://x"], "URL: need one as http://127.0.0.1:8080"),
        (["http://x", "--concurrency", "1,0"], "--concurrency: need whole numbers above 0"),
        (["http://x", "--concurrency", "1.5"], "--concurrency: need whole numbers above 0"),
        (["http://x", "--rate", "fast"], "--rate: need numbers above 0"),
        (["http://x", "--rate", "1", "--concurrency", "1"], "have both"),
        (["http://x", "--slo", "ttft:2s"], "slo: need METRIC_STATISTIC:TIME"),
        (["http://x", "--watts", "5"], "need --watts and --kwh-price together"),
        (["http://x", "-w", "chatt"], "did you mean chat?"),
        (["http://x", "--route", "both"], "--route: need auto, local, split"),
        (["http://x", "-o", "/no/such/folder/f"], "need a file to write to"),
    ],
)
def test_wrong_usage_is_named(capsys, arguments, complaint):
    status, _, err = bench(capsys, *arguments)
    assert status == 2
    assert complaint in err


def test_a_trace_runs_at_its_own_times(capsys, tmp_path):
    times_ms = (0, 20, 86_400_000)
    lines = [{"timestamp": at, "input_length": 9, "output_length": 2} for at in times_ms]
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with running_stub("--first-ms", 1, "--token-ms", 1) as stub:
        workload = f"{tmp_path / 'traffic.jsonl'},speed=100000"
        options = ("-w", workload, "--requests-file", tmp_path / "requests")
        status, out, err = bench(capsys, stub.url, *options, "--slo", "ttft_p95:60s")
    assert status == 0, err
    assert "as recorded: 3 requests over 0:00:01" in err
    assert [line.split()[:3] for line in out.splitlines() if "none" in line] == [
        ["as", "recorded", "3"]
    ]
    assert "ttft_p95:60s: met\n" in out
    records = (tmp_path / "requests").read_text().splitlines()
    due_s = [json.loads(line)["due_s"] for line in records]
    assert due_s[2] - due_s[0] == pytest.approx(0.864)


def test_a_second_run_meets_no_prompt_of_the_first_unless_it_is_told_to(capsys):
    def prompts(*options):
        with running_stub("--first-ms", 1, "--token-ms", 1) as stub:
            assert bench(capsys, stub.url, *SIZES, "--concurrency", 1, *options)[0] == 0
        return {entry["prompt_crc"] for entry in stub.log.values()}

    assert prompts().isdisjoint(prompts())
    assert prompts("--seed", 3) == prompts("--seed", 3)


def test_one_error_of_each_kind_is_quoted(capsys):
    with running_stub("--first-ms", 1, "--token-ms", 1, "--context", 200) as stub:
        lengths = "prompt=quantiles:0=10:50=100:100=1000,output=4"
        options = ("--concurrency", "1,2", "--seed", 1)
        status, out, _ = bench(capsys, stub.url, "-w", lengths, *options)
    assert status == 0
    quoted = [line for line in out.splitlines() if "have 200" in line]
    assert len(quoted) == 1
    assert quoted[0].startswith("status 400: need a context of ")
    assert quoted[0].endswith("; --context N cuts or leaves out what is longer")


def test_a_server_that_is_not_there_costs_no_earlier_report(capsys, tmp_path):
    report, requests, new = (tmp_path / name for name in ("report", "requests", "new"))
    report.write_text("an hour's work")
    requests.write_text("and its requests")
    url = "http://127.0.0.1:1"
    assert bench(capsys, url, "-o", report, "--requests-file", requests)[0] == 1
    assert bench(capsys, url, "-o", new)[0] == 1
    assert report.read_text() == "an hour's work"
    assert requests.read_text() == "and its requests"
    assert not new.exists()


def test_an_earlier_report_is_replaced(capsys, tmp_path):
    report, requests = tmp_path / "report", tmp_path / "requests"
    with running_stub("--first-ms", 1, "--token-ms", 1) as stub:
        for _ in range(2):
            options = ("--concurrency", "1,2", "--requests", 3, "-o", report)
            bench(capsys, stub.url, *SIZES, *options, "--requests-file", requests)
    assert len(json.loads(report.read_text())["points"]) == 2
    assert len(requests.read_text().splitlines()) == 6


def test_nothing_but_errors_is_a_failure(capsys):
    with running_stub("--fail", "status") as stub:
        status, out, err = bench(capsys, stub.url, *SIZES, "--concurrency", 1, "--requests", 2)
    assert status == 1
    assert "2 status" in out
    assert "no slot is free" in err


def test_a_key_goes_to_the_server_and_nowhere_else(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HETERO_API_KEY", "sesame-7")
    with running_stub("--first-ms", 1, "--token-ms", 1, "--key", "sesame-7") as stub:
        status, out, err = bench(
            capsys, stub.url, *SIZES, "--concurrency", 1, "--json", "-o", tmp_path / "f"
        )
        assert status == 0
        assert "sesame" not in out + err + (tmp_path / "f").read_text()
        monkeypatch.setenv("HETERO_API_KEY", "another")
        status, _, err = bench(capsys, stub.url, *SIZES)
    assert status == 2
    assert "need an API key that it takes, have another" in err
    assert "set HETERO_API_KEY" in err


def test_ctrl_c_reports_what_is_finished(tmp_path):
    with running_stub("--first-ms", 1, "--token-ms", 10) as stub:
        requests = tmp_path / "requests.jsonl"
        command = [sys.executable, "-m", "hetero", "bench", stub.url, "--concurrency", "1,2"]
        command += ["--json", "--requests", "5000", "--requests-file", str(requests)]
        command += ["--prompt-tokens", "4", "--output-tokens", "2", "--warmup", "0"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        lines = iter(process.stderr.readline, "")
        assert any("of 5000 requests done" in line for line in lines)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE_S)
    report = json.loads(out.splitlines()[-1])
    assert process.returncode == 130
    assert report["partial"]
    [point] = report["points"]
    assert 0 < point["records"] == len(requests.read_text().splitlines()) < 5000
    assert point["errors"] == {}
