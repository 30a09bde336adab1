"""Two things at once: what is timed beside what, on real engines and processes."""

import threading

import pytest
from tiny_models import write_tiny_model

from hetero.kv.layout import model_layout
from hetero.llama.model import Model
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.profile.node.co_running import (
    copies_beside_decode,
    receive_beside_decode,
    restore_beside_decode,
)
from hetero.profile.node.gpu_copies import gpu_copier
from hetero.profile.node.rig import StepRig

CONTEXT = 256


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def layout(path):
    return model_layout(gguf_to_spec(GGUFFile.open(path)), "f16", "f16")


@pytest.fixture
def rig(path, layout):
    with (
        Model(path) as model,
        StepRig(
            model,
            layout,
            num_sequences=3,
            context_tokens=CONTEXT,
            unified=False,
            num_threads=1,
            chunk_tokens=64,
        ) as rig,
    ):
        yield rig


@pytest.fixture
def events(rig, monkeypatch):
    """What the engine is told to do, in order."""
    told = []
    decode, restore = rig.context.decode, rig.context.restore_sequence

    def decoding(batch):
        told.append(f"step of {batch.num_rows}")
        decode(batch)

    def restoring(sequence, blob):
        told.append(f"restore into {sequence}")
        restore(sequence, blob)

    monkeypatch.setattr(rig.context, "decode", decoding)
    monkeypatch.setattr(rig.context, "restore_sequence", restoring)
    return told


def test_restores_go_into_the_sequence_that_does_not_decode(rig, events):
    found = restore_beside_decode(rig, 2, 32)
    assert found.slowdown > 0
    assert found.beside_slowdown > 0
    assert found.beside == "restores of 256 tokens on the same engine, in turns"
    assert events[:2] == ["restore into 0", "restore into 1"]
    # Two steps, of which the second counts, two restores likewise, then each after the other.
    turn = ["step of 2"] * 2 + ["restore into 2"] * 2 + ["step of 2", "restore into 2"]
    assert events[2:8] == turn
    assert events[2:] == turn * (len(events[2:]) // 6)
    assert rig.context.last_position(2) == CONTEXT - 1


def test_sequences_that_run_keep_their_cells_beside_restores(rig):
    restore_beside_decode(rig, 2, 32)
    assert [rig.context.last_position(sequence) for sequence in (0, 1)] == [31, 31]


def test_copies_run_beside_the_steps_and_end_with_them(rig):
    threads, busy = set(), threading.active_count()

    def copy():
        threads.add(threading.current_thread())
        return 1000

    found = copies_beside_decode(rig, 2, 32, copy)
    assert found.slowdown > 0
    assert threads
    assert threading.current_thread() not in threads
    assert threading.active_count() == busy
    assert found.note.endswith("GB/s")


def test_what_arrives_at_another_rate_keeps_its_name(rig):
    """Profiles are compared by it."""
    found = receive_beside_decode(rig, 2, 32)
    assert found.beside == "sealed KV arriving"
    assert "Gbit/s" in found.note


def test_where_torch_sees_no_gpu_there_is_nothing_to_copy_to():
    torch = pytest.importorskip("torch")
    copy = gpu_copier()
    if torch.cuda.is_available():
        assert copy() > 0
    else:
        assert copy is None
