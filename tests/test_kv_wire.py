"""kv-wire: an arm on a slow link, once; its arithmetic; and settings that can't be."""

import os
import shutil
import sys

import pytest

from hetero.errors import ConfigError, ModelError
from hetero.experiment.kv_wire import arm
from hetero.experiment.recipe.recipe import WireSettings
from hetero.experiment.wire_bench.two_hosts import Listener, two_hosts
from hetero.machine.whole_cores import whole_cores
from hetero.profile.link.report import Goodput, LinkProfile, PlainStream, Range, Transfers

needs_lab = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or len(whole_cores()) < 2,
    reason="a lab needs root and ip, and its hosts a core each",
)

SMALL = {"shape": "qwen3-0.6b", "tokens": 256, "link_rate": "400mbit", "seconds": 1}


def say_nothing(line):
    pass


@needs_lab
def test_an_arm_tells_each_transfer_and_what_both_ends_spent():
    said = []
    settings = WireSettings(seal="mac", connections=2, frame_bytes=65536, **SMALL)
    found = arm.measure(settings, said.append)
    scalars, rates = found.scalars, found.samples["bytes_per_s"]
    # 28 layers of 8 heads of 128 values, K and V, 34 bytes for 32 values: 60,928 bytes a token.
    assert scalars["transfer_bytes"] == 256 * 60_928
    assert scalars["frame_bytes"] == 65536
    assert scalars["connections_used"] == 2
    assert len(rates) == len(found.samples["restore"]) == len(found.records) >= 1
    # One is under way from first to last, and two at most.
    mean_rate = len(rates) / sum(1 / rate for rate in rates)
    assert 0.49 < mean_rate / scalars["kv_bytes_per_s"] < 1.1
    # 0.4 Gbit/s is the cable's: more would be bytes that never crossed it.
    assert 0 < scalars["kv_bytes_per_s"] < 1.1 * 50e6
    assert scalars["share_of_plain"] == pytest.approx(
        scalars["kv_bytes_per_s"] / scalars["plain_bytes_per_s"]
    )
    assert 0 < scalars["source_cores"] < 1.2
    assert 0 < scalars["sink_cores"] < 1.2
    assert scalars["core_s_per_gb"] == pytest.approx(
        (scalars["source_cores"] + scalars["sink_cores"]) / scalars["kv_bytes_per_s"] * 1e9
    )
    assert "mac, frames of 65536 bytes, 2 connections" in said[-1]


@needs_lab
def test_each_end_has_a_core_of_its_own():
    source, sink = arm.end_cores()
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    with two_hosts(rate="400mbit", mtu=1500, cpus=(source, sink)) as hosts:
        assert hosts.run([sys.executable, "-c", code], 5).strip() == str([source])
        with hosts.running([sys.executable, "-c", code], stdout=-1) as process:
            assert process.stdout.read().decode().strip() == str([sink])


def one(value):
    return Range(value, value, value)


def test_scalars_are_those_worked_by_hand():
    """Two transfers of 1e9 bytes in 2 s and in 3 s, by 0.7 + 0.5 cores: 6 core seconds for 2e9
    bytes. A plain stream of 0.5e9 bytes/s beside it by 0.1 + 0.3 cores."""
    row = Goodput(
        seal="aead",
        connections=None,
        bytes_per_s=one(0.4e9),
        of_plain=one(0.8),
        source_cores=one(0.7),
        sink_cores=one(0.5),
        restore_s=Range(0.15, 0.1, 0.2),
        connections_used=one(1),
        window_bytes=1,
        transfers=Transfers(bytes_per_s=[1e9 / 2, 1e9 / 3], restore_s=[0.1, 0.2]),
    )
    profile = LinkProfile(
        source="a",
        sink="b",
        date="d",
        model="m",
        transport="tcp",
        kv_k="q8_0",
        kv_v="q8_0",
        token_bytes=1_000_000,
        tokens=1000,
        transfer_bytes=10**9,
        frame_bytes=2**20,
        rtt_s=one(1e-4),
        pack_bytes_per_s=one(1e9),
        plain=PlainStream(bytes_per_s=one(0.5e9), source_cores=one(0.1), sink_cores=one(0.3)),
        goodput=[row],
        versions={},
    )
    found = arm.measured(profile, row)
    assert found.scalars == pytest.approx(
        {
            "kv_bytes_per_s": 0.4e9,
            "source_cores": 0.7,
            "sink_cores": 0.5,
            "core_s_per_gb": 3.0,
            "share_of_plain": 0.8,
            "plain_bytes_per_s": 0.5e9,
            "plain_core_s_per_gb": 0.8,
            "connections_used": 1,
            "transfer_bytes": 1e9,
            "frame_bytes": 2**20,
        }
    )
    assert found.samples == {"bytes_per_s": [5e8, 1e9 / 3], "restore": [0.1, 0.2]}
    assert found.records[1] == {
        "transfer": 1,
        "num_bytes": 10**9,
        "bytes_per_s": 1e9 / 3,
        "restore_s": 0.2,
    }


@pytest.mark.parametrize(
    ("settings", "error", "complaint"),
    [
        # A row of qwen3-0.6b in q8_0: 8 heads of 128 values.
        ({"frame_bytes": 1087}, ConfigError, r"need 1088 \(one row\) to 4194304 over tcp"),
        ({"frame_bytes": 2**22 + 1}, ConfigError, "have 4194305"),
        ({"connections": 9}, ConfigError, "connections: need 1 to 8, have 9"),
        ({"kv": "q8_0/q9"}, ConfigError, "KV type 'q9'"),
        ({"shape": "qwen9-1b"}, (ModelError, ConfigError), "qwen9-1b"),
    ],
)
def test_settings_that_cannot_be_are_named_before_a_lab_is_made(
    settings, error, complaint, monkeypatch
):
    monkeypatch.setattr(arm, "two_hosts", None)
    with pytest.raises(error, match=complaint):
        arm.measure(WireSettings(**SMALL | settings), say_nothing)


def test_both_ends_on_one_core_are_refused():
    assert arm.end_cores([4, 6, 8]) == (4, 6)
    with pytest.raises(ConfigError, match="need two cores, one for each end of the wire, have 1"):
        arm.end_cores([0])


def test_a_listening_ends_key_is_in_no_repr():
    assert "secret" not in repr(Listener(address="tcp://10.0.0.1:1", key="secret"))
