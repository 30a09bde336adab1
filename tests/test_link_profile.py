"""`hetero profile link`: both ends as processes, what they measure, and what they refuse."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import pytest

from hetero.cli import main
from hetero.errors import ConfigError, PeerError
from hetero.kv.layout import kv_layout
from hetero.kv.staging import read_state
from hetero.profile.document import document, read_profile
from hetero.profile.link.cache_skeleton import cache_context
from hetero.profile.link.dialer import LinkDialer, Mode
from hetero.profile.link.key import new_key, session_ticket
from hetero.profile.link.listener import LinkListener
from hetero.profile.link.packed_prompt import check_frame_bytes, packed_prompt
from hetero.profile.link.report import LinkProfile
from hetero.transport.door import Door

LAYOUT = kv_layout(
    num_layers=3, num_kv_heads=2, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="f16"
)
NUM_TOKENS = 768  # a chunk and a half
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
PROFILE = [sys.executable, "-m", "hetero", "profile", "link"]


def say_nothing(line):
    pass


@contextmanager
def listener(key):
    with cache_context(LAYOUT, num_sequences=2, num_tokens=NUM_TOKENS) as context:
        here = LinkListener(
            Door("tcp://127.0.0.1:0"), key, model="tiny", layout=LAYOUT, context=context
        )
        try:
            yield here, context
        finally:
            here.close()


def address_of(here):
    return here._sink.address


def test_what_arrives_is_restored_row_for_row():
    key = new_key()
    with listener(key) as (here, context):
        with LinkDialer(address_of(here), key) as dialer:
            found = dialer.measure(
                [Mode("aead"), Mode("mac", 3)], seconds=0.05, num_rounds=2, say=say_nothing
            )
        blob = context.export_sequence(0)
    state = read_state(blob, LAYOUT, range(NUM_TOKENS), 2)
    for frame in packed_prompt(LAYOUT, NUM_TOKENS).frames:
        for index, layer in enumerate(range(frame.first_layer, frame.end_layer)):
            rows = state.rows(blob, frame.kind, layer)
            np.testing.assert_array_equal(
                rows[frame.first_token : frame.end_token], frame.rows[index]
            )
    assert found.transfer_bytes == NUM_TOKENS * LAYOUT.token_bytes
    assert [(row.seal, row.connections) for row in found.goodput] == [("aead", None), ("mac", 3)]
    for row in found.goodput:
        assert 0 < row.bytes_per_s.low <= row.bytes_per_s.median <= row.bytes_per_s.high
        assert row.sink_cores.median > 0


def test_a_packed_prompt_covers_every_row_once():
    seen = {(kind, layer): np.zeros(NUM_TOKENS, int) for kind in "kv" for layer in range(3)}
    for frame in packed_prompt(LAYOUT, NUM_TOKENS).frames:
        assert frame.rows.shape[2] == LAYOUT.row_bytes(frame.kind)
        for layer in range(frame.first_layer, frame.end_layer):
            seen[frame.kind, layer][frame.first_token : frame.end_token] += 1
    assert all((count == 1).all() for count in seen.values())


@pytest.mark.parametrize("frame_bytes", [256, 5000, 4 * 2**20])
def test_frames_are_no_larger_than_asked_and_still_cover_every_row(frame_bytes):
    seen = {(kind, layer): np.zeros(NUM_TOKENS, int) for kind in "kv" for layer in range(3)}
    for frame in packed_prompt(LAYOUT, NUM_TOKENS, frame_bytes).frames:
        assert frame.rows.nbytes <= frame_bytes
        for layer in range(frame.first_layer, frame.end_layer):
            seen[frame.kind, layer][frame.first_token : frame.end_token] += 1
    assert all((count == 1).all() for count in seen.values())


def test_every_transfer_is_told_where_asked_for():
    key = new_key()
    with listener(key) as (here, _), LinkDialer(address_of(here), key, 10_000) as dialer:
        found, short = (
            dialer.measure(
                [Mode("none")],
                seconds=0.05,
                num_rounds=1,
                say=say_nothing,
                every_transfer=every_transfer,
            )
            for every_transfer in (True, False)
        )
    assert found.frame_bytes == 10_000
    (row,) = found.goodput
    # One is under way from first to last, and two at most.
    rates = row.transfers.bytes_per_s
    mean_rate = len(rates) / sum(1 / rate for rate in rates)
    assert 0.49 * row.bytes_per_s.median < mean_rate < 1.25 * row.bytes_per_s.median
    assert max(row.transfers.restore_s) == row.restore_s.high
    assert "transfers" not in document(short)["goodput"][0]


@pytest.mark.parametrize("frame_bytes", [255, 4 * 2**20 + 1])
def test_frames_that_cannot_be_end_the_session_at_once(frame_bytes):
    key = new_key()
    with listener(key) as (here, _):
        # A row of V is 256 bytes, one of K 136.
        with pytest.raises(ConfigError, match=r"need 256 \(one row\) to 4194304 over tcp, have"):
            LinkDialer(address_of(here), key, frame_bytes)
        with here._in_session:  # it is over
            pass


def test_nixl_takes_frames_as_large_as_its_slots():
    check_frame_bytes(2 * 2**20, LAYOUT, "nixl-tcp")
    with pytest.raises(ConfigError, match="to 2097152 over nixl-tcp, have 2097153"):
        check_frame_bytes(2 * 2**20 + 1, LAYOUT, "nixl-tcp")


def test_another_key_is_told_nothing():
    with listener(new_key()) as (here, _), pytest.raises(PeerError, match="have its end"):
        LinkDialer(address_of(here), new_key())


def test_only_one_measurement_runs_at_a_time():
    key = new_key()
    with listener(key) as (here, _):
        with LinkDialer(address_of(here), key), pytest.raises(PeerError, match="have its end"):
            LinkDialer(address_of(here), key)
        with here._in_session:  # the first one's is over
            pass
        with LinkDialer(address_of(here), key) as dialer:
            assert dialer.description.model == "tiny"


@pytest.mark.parametrize("key", ["", "abc", "1" * 24, new_key()[:-1], new_key() + "a"])
def test_what_is_no_key_is_the_users_mistake(key):
    with pytest.raises(ConfigError, match="need the 24 letters and digits"):
        session_ticket(key, "tcp://127.0.0.1:1")


def test_keys_are_read_as_people_type_them():
    key = new_key()
    assert len(key) == 27
    typed = session_ticket(f" {key.upper()} ", "a")
    assert (
        typed.key == session_ticket(key, "a").key == session_ticket(key.replace("-", ""), "a").key
    )


@contextmanager
def listening(*options):
    with subprocess.Popen(
        [*PROFILE, "--listen", "127.0.0.1:0", *options, "--json"],
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait() == 0


def measure(address, key, *options):
    return subprocess.run(
        [*PROFILE, address.removeprefix("tcp://"), *options, "--seconds", "0.1", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT | {"HETERO_LINK_KEY": key},
    )


def test_two_processes_measure_a_link_and_write_it_down(tmp_path):
    with listening("--model", "demo", "--tokens", "300") as (_, said):
        out = tmp_path / "link.yaml"
        run = measure(said["address"], said["key"], "--json", "-o", str(out))
        people = measure(
            *(said["address"], said["key"], "--seals", "mac", "--connections", "2"),
            *("--frame-bytes", "65536"),
        )
    assert run.returncode == 0, run.stderr
    found = read_profile(out)
    assert isinstance(found, LinkProfile)
    assert json.loads(run.stdout) == document(found)
    assert [row.seal for row in found.goodput] == ["none", "mac", "aead"]
    assert found.tokens == 512  # llama.cpp's cells come in 256s
    assert people.returncode == 0, people.stderr
    assert "KV, mac, 2 connections" in people.stdout
    assert "in frames of 64 KiB" in people.stdout
    assert said["key"] not in run.stdout + run.stderr + people.stdout + people.stderr


@pytest.mark.skipif(not find_spec("nixl_cu12"), reason="needs NIXL: pip install 'hetero[rdma]'")
def test_rows_may_be_measured_through_nixl():
    with listening("--model", "demo", "--tokens", "300", "--transport", "nixl-shm") as (_, said):
        run = measure(said["address"], said["key"], "--json", "--seals", "aead")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["transport"] == "nixl-shm"


def test_a_listening_end_that_dies_is_an_error_not_a_hang():
    key = new_key()
    with listener(key) as (here, _):
        dialer = LinkDialer(address_of(here), key)
    with dialer, pytest.raises(PeerError):
        dialer.measure([Mode("none")], seconds=5, num_rounds=1, say=say_nothing)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "need either HOST:PORT of a listening end, or --listen"),
        (["h:1", "--listen", "1"], "need either HOST:PORT"),
        (["--listen", "1"], "need either --model FILE or --shape NAME"),
        (["--listen", "0.0.0.0:1", "--shape", "llama-3.1-8b"], "need the address of one interface"),
        (["--listen", "x", "--shape", "llama-3.1-8b"], "need PORT or HOST:PORT, have 'x'"),
        (["--listen", "127.0.0.1:1", "--shape", "llama-9"], "llama-9"),
        (["h:1", "--shape", "llama-3.1-8b"], "belong to the listening end"),
        (["h:1", "--seals", "rot13"], "need some of none, mac, aead, have 'rot13'"),
        (["h:1", "--frame-bytes", "0"], "Invalid value for '--frame-bytes'"),
        (["h:1", "--connections", "0"], "need auto or numbers of 1 to 8, have '0'"),
        (["h:1", "--transport", "nixl-shm"], "belong to the listening end"),
        (["--listen", "127.0.0.1:1", "--shape", "llama-3.1-8b", "--transport", "x"], "have 'x'"),
        (["h:x"], "need HOST:PORT, have 'h:x'"),
        (["h:1"], "need the one that the listening end printed, in HETERO_LINK_KEY"),
    ],
)
def test_bad_usage_is_named(arguments, complaint, capsys, monkeypatch):
    monkeypatch.delenv("HETERO_LINK_KEY", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main.main(["profile", "link", *arguments]) == 2
    assert complaint in capsys.readouterr().err
