"""`hetero bench wire`, once through on a slow link, and its arithmetic."""

import json
import os
import shutil

import pytest

from hetero.cli import main
from hetero.experiment.wire_bench import goodput, link
from hetero.experiment.wire_bench.settings import full_settings, quick_settings
from hetero.profile.link.report import Goodput, LinkProfile, PlainStream, Range

needs_lab = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="a lab needs root and ip"
)


@needs_lab
@pytest.mark.skipif(not shutil.which("iperf3"), reason="needs iperf3")
def test_a_quick_run_reports_a_share_of_iperf3(tmp_path, capsys):
    out = tmp_path / "wire.json"
    assert main.main(["bench", "wire", "--quick", "--json", "-o", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report == json.loads(capsys.readouterr().out.splitlines()[-1])
    (figure,) = report["figures"]
    assert figure["name"] == "tcp_aead_400mbit"
    # 0.4 Gbit/s is the cable's; a share far above 1 would be bytes that never crossed it.
    assert 0.5 < figure["value"] < 1.1
    assert figure["arms"]["kv_gbit_per_s"]["median"] < 0.42


@needs_lab
def test_without_iperf3_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(link.shutil, "which", lambda name: None)
    assert main.main(["bench", "wire", "--quick"]) == 1
    assert "need iperf3, have none: sudo apt-get install iperf3" in capsys.readouterr().err


def test_an_unknown_rate_is_named(capsys):
    assert main.main(["bench", "wire", "--only", "3gbit"]) == 2
    assert "need some of 1gbit, 10gbit, 25gbit, have 3gbit" in capsys.readouterr().err


def one(value):
    return Range(value, value, value)


def profile(rates):
    return LinkProfile(
        source="a",
        sink="b",
        date="d",
        model="m",
        transport="tcp",
        kv_k="q8_0",
        kv_v="q8_0",
        token_bytes=1,
        tokens=1,
        transfer_bytes=1,
        rtt_s=one(1e-4),
        pack_bytes_per_s=one(1e9),
        plain=PlainStream(bytes_per_s=one(1e9), source_cores=one(0.1), sink_cores=one(0.1)),
        goodput=[
            Goodput(
                seal=seal,
                connections=None,
                bytes_per_s=one(rate),
                of_plain=one(1),
                source_cores=one(0.5),
                sink_cores=one(0.5),
                restore_s=one(0.01),
                connections_used=one(1),
                window_bytes=1,
            )
            for seal, rate in rates.items()
        ],
        versions={},
    )


def test_a_figure_is_the_median_of_ratios_within_rounds():
    rounds = [
        goodput._Round(1e9, {"tcp": profile({"aead": 0.99e9})}, None),
        goodput._Round(2e9, {"tcp": profile({"aead": 1.90e9})}, None),
        goodput._Round(1e9, {"tcp": profile({"aead": 0.10e9})}, None),
    ]
    figure = goodput._figure(full_settings(), "10gbit", "tcp", "aead", rounds)
    assert figure.value == pytest.approx(0.95)
    assert figure.target.bound == 0.95
    assert figure.arms["kv_gbit_per_s"] == pytest.approx([7.92, 15.2, 0.8])
    assert goodput._figure(quick_settings(), "400mbit", "tcp", "aead", rounds).target is None
