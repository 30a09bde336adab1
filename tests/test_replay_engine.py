"""Recorded rows come back as they were, in the time of a device that isn't here."""

import errno
import os
import random

import msgspec
import numpy as np
import pytest
from llama_reference import Reference, random_prompt
from tiny_models import write_tiny_model

from hetero.errors import ConfigError, HeteroError, ModelError, PlanError
from hetero.kv.layout import kv_layout
from hetero.kv.staging import StagingBlob
from hetero.messages import Fingerprint, ModelFingerprint
from hetero.prefill.engine import Slice, read_alone
from hetero.prefill.llama_engine import LlamaEngine
from hetero.prefill.recording import Recording, record
from hetero.prefill.replay_engine import Clock, ReplayEngine

LAYOUT = kv_layout(
    num_layers=3, num_kv_heads=2, head_dim_k=64, head_dim_v=64, k_type="q8_0", v_type="f16"
)
MODEL = ModelFingerprint(hyperparameters="h", tokenizer="t", chat_template="c", tensors="w")
SERVED = Fingerprint(model=MODEL, layout=LAYOUT)
CHUNK = 64
PROMPT = random_prompt(4 * CHUNK + 10)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "m.gguf")


@pytest.fixture(scope="module")
def llama(model_path):
    engine = LlamaEngine(
        model_path, LAYOUT, context_tokens=512, num_threads=1, chunk_tokens=CHUNK, frame_bytes=9000
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def recorded(llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "m.rows"
    record(llama, MODEL, PROMPT, path)
    return path


class Device:
    """Takes a second for each token, and a tenth for each before it. Its clock is turned by hand,
    or by those who sleep."""

    def __init__(self, engine="torch"):
        self.engine = engine
        self.now = 1000.0
        self.oversleeps = 0.0

    def chunk_s(self, num_tokens, cached_tokens=0):
        return num_tokens + cached_tokens / 10

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds + self.oversleeps

    @property
    def clock(self):
        return Clock(now=lambda: self.now, sleep=self.sleep)


def replay(path, device=None, **options):
    device = device or Device()
    defaults = {"context_tokens": 1024, "chunk_tokens": 100, "frame_bytes": 20000}
    return ReplayEngine(
        Recording(path, SERVED),
        device,
        device="rtx-3090",
        clock=device.clock,
        **defaults | options,
    )


def rows_of(engine, prompt):
    """(K, V) rows by layer and token, and the logits, as read alone."""
    run = engine.start(prompt)
    found = {
        kind: np.zeros((LAYOUT.num_layers, len(prompt), LAYOUT.row_bytes(kind)), np.uint8)
        for kind in ("k", "v")
    }
    for frame in read_alone(engine, run):
        assert frame.rows.nbytes <= engine.frame_bytes
        part = found[frame.kind][frame.first_layer : frame.end_layer]
        part[:, frame.first_token : frame.end_token] = frame.rows
    return found["k"], found["v"], run.logits


@pytest.mark.parametrize("num_tokens", [3 * CHUNK, len(PROMPT)])
def test_rows_are_those_of_the_engine_that_was_recorded(llama, recorded, num_tokens):
    prompt = PROMPT[:num_tokens]
    ours, theirs = rows_of(replay(recorded), prompt), rows_of(llama, prompt)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])


def test_logits_are_those_of_the_recorded_prompt_whatever_is_read(llama, recorded):
    expected = rows_of(llama, PROMPT)[2]
    for prompt in (PROMPT, PROMPT[:5], random_prompt(30, seed=2)):
        np.testing.assert_array_equal(rows_of(replay(recorded), prompt)[2], expected)


def test_the_recorded_prompt_is_continued_as_by_the_real_engine(model_path, recorded):
    kinds = {"k_type": "q8_0", "v_type": "f16", "unified": False, "chunk_tokens": CHUNK}
    with Reference(model_path, **kinds) as alone:
        expected, _ = alone.greedy(alone.prefill(PROMPT), len(PROMPT), 32)
    engine = replay(recorded)
    run = engine.start(PROMPT)
    blob = StagingBlob(LAYOUT, len(PROMPT), 2)
    for frame in read_alone(engine, run):
        blob.place(frame)
    with Reference(model_path, **kinds) as decode:
        decode.context.restore_sequence(1, blob.blob)
        tokens, _ = decode.greedy(run.logits, len(PROMPT), 32, sequence=1)
    assert tokens == expected


def test_beyond_its_end_the_recording_begins_again(recorded):
    long = random_prompt(2 * len(PROMPT) + 30, seed=2)
    once = rows_of(replay(recorded), PROMPT)
    again = rows_of(replay(recorded), long)
    for whole, repeated in zip(once[:2], again[:2], strict=True):
        expected = np.concatenate([whole, whole, whole[:, :30]], axis=1)
        np.testing.assert_array_equal(repeated, expected)
    np.testing.assert_array_equal(once[2], again[2])


def appearances(engine, device, num_tokens):
    """When frames of a first step came, in seconds from its beginning, by their last layer."""
    run = engine.start(random_prompt(num_tokens))
    begun, found = device.now, {}
    for _, frame in engine.read([Slice(run, num_tokens)]):
        found.setdefault(device.now - begun, set()).add((frame.kind, frame.end_layer))
    engine.end(run)
    return found


def test_torchs_rows_come_layer_by_layer_and_llamas_at_the_end_of_a_step(recorded):
    layers = {n: {("k", n), ("v", n)} for n in (1, 2, 3)}
    torch = Device("torch")
    engine = replay(recorded, torch, frame_bytes=100 * LAYOUT.v_row_bytes)  # a layer a group
    assert appearances(engine, torch, 90) == {30: layers[1], 60: layers[2], 90: layers[3]}
    llama = Device("llama")
    engine = replay(recorded, llama, frame_bytes=100 * LAYOUT.v_row_bytes)
    assert appearances(engine, llama, 90) == {90: layers[1] | layers[2] | layers[3]}


def test_a_prompt_takes_the_devices_seconds_however_long_sleep_sleeps(recorded):
    device = Device()
    device.oversleeps = 0.25
    engine = replay(recorded, device)
    begun = device.now
    run = engine.start(random_prompt(250))
    for _ in read_alone(engine, run):
        device.now += 0.01  # whoever takes the frames
    assert run.num_chunks == 3
    # 100 and 100 and 50 tokens, after none, 100, 200; late once, at the end.
    assert device.now - begun == pytest.approx(250 + 10 + 20 + 0.25, abs=0.15)


def test_a_step_that_waited_to_be_asked_for_does_not_catch_up(recorded):
    device = Device()
    engine = replay(recorded, device)
    run = engine.start(random_prompt(200))
    list(engine.read([Slice(run, 100)]))
    device.now += 500  # no credit from the other end
    begun = device.now
    list(engine.read([Slice(run, 100)]))
    assert device.now - begun == pytest.approx(110)


def test_without_rows_the_time_passes_all_the_same(recorded):
    device = Device()
    engine = replay(recorded, device)
    run = engine.start(PROMPT[:100], want_rows=False)
    begun = device.now
    assert list(read_alone(engine, run)) == []
    assert device.now - begun == 100
    assert run.logits.shape == (512,)


def test_what_a_real_engine_refuses_is_refused(recorded):
    engine = replay(recorded)
    with pytest.raises(ConfigError, match="need at least one token"):
        engine.start([])
    with pytest.raises(ConfigError, match="need token ids from 0 to 511, have 512"):
        engine.start([5, 512])
    with pytest.raises(PlanError, match="need room for 1025 tokens, have a context of 1024"):
        engine.start([5] * 1025)
    run = engine.start([5])
    assert not engine.has_room(1)
    engine.end(run)
    assert engine.has_room(1)


def test_a_recording_is_whole_or_not_there(llama, tmp_path):
    path = tmp_path / "deep" / "m.rows"
    with pytest.raises(ConfigError, match="token ids"):
        record(llama, MODEL, [5, 600], path)
    assert not path.exists()
    record(llama, MODEL, PROMPT[:5], path)
    assert os.listdir(path.parent) == ["m.rows"]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't write it"):
        record(llama, MODEL, PROMPT[:5], tmp_path / "file" / "m.rows")


def test_a_full_disk_leaves_no_file(llama, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(ConfigError, match="can't write it: no space left on device"):
        record(llama, MODEL, PROMPT[:5], tmp_path / "m.rows")
    assert os.listdir(tmp_path) == []
    assert llama.has_room(5)


def damaged(recorded, tmp_path, change):
    content = bytearray(recorded.read_bytes())
    path = tmp_path / "damaged.rows"
    path.write_bytes(change(content))
    return path


def cut(content):
    return content[:-1]


def grown(content):
    return content + b"x"


def flipped(content):
    content[len(content) // 2] ^= 1
    return content


def without_a_header(content):
    return content[100:]


def with_header(**fields):
    def change(content):
        line, rest = bytes(content).split(b"\n", 1)
        return msgspec.json.encode(msgspec.json.decode(line) | fields) + b"\n" + rest

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, r"need \d+ bytes for 266 tokens, have \d+: it is cut or damaged"),
        (grown, r"need \d+ bytes for 266 tokens, have \d+"),
        (flipped, r"need the digest \w+ it was written with, have \w+: it is damaged"),
        (without_a_header, "need a recording's header in its first line"),
        (lambda content: b"", "need a recording's header"),
        (lambda content: bytes(5000), "need a recording's header"),
        (with_header(format=2), "need format 1, have 2"),
        (with_header(vocabulary=2**24), r"need \d+ bytes for 266 tokens"),
        (with_header(vocabulary=2**40), "vocabulary"),
        (with_header(tokens=[1, 2]), r"need \d+ bytes for 2 tokens"),
        (with_header(more=1), "unknown field `more`"),
        (lambda content: b'{"fingerprint":{"x":' + b"[" * 10**5, "maximum recursion depth"),
    ],
)
def test_a_damaged_recording_is_refused(recorded, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        Recording(damaged(recorded, tmp_path, change), SERVED)


def test_whatever_bytes_change_it_is_refused_in_words(recorded, tmp_path):
    rng = random.Random(1)
    honest = recorded.read_bytes()
    path = tmp_path / "changed.rows"
    for _ in range(200):
        raw = bytearray(honest)
        raw[rng.randrange(rng.choice([1500, len(raw)]))] ^= rng.randrange(1, 256)
        path.write_bytes(raw[: rng.choice([len(raw), rng.randrange(len(raw))])])
        with pytest.raises(HeteroError, match=str(path)):
            Recording(path, SERVED)


def test_a_recording_of_something_else_is_refused(recorded, tmp_path):
    other = msgspec.structs.replace(SERVED, model=msgspec.structs.replace(MODEL, tensors="x"))
    with pytest.raises(ModelError, match="tensors: x here, w there"):
        Recording(recorded, other)
    other = msgspec.structs.replace(SERVED, layout=msgspec.structs.replace(LAYOUT, k_type="f16"))
    with pytest.raises(ModelError, match="k_type: f16 here, q8_0 there"):
        Recording(recorded, other)
    with pytest.raises(ConfigError, match="can't read it: no such file"):
        Recording(tmp_path / "none", SERVED)
