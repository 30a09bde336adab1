"""Two things at once: what is timed beside what, on real engines and processes."""

import os
import threading
import time
from contextlib import ExitStack
from itertools import cycle
from types import SimpleNamespace

import msgspec
import psutil
import pytest
from node_profiles import FACTS
from tiny_models import write_tiny_model

from hetero.errors import CodecError, EngineError
from hetero.kv.layout import model_layout
from hetero.llama.model import Model
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.profile.ceilings.workers import Workers
from hetero.profile.facts.report import NumaNode
from hetero.profile.node import co_running
from hetero.profile.node.all_nodes import NodeDecode, decode_on_all_nodes, nodes_co_runs
from hetero.profile.node.co_running import (
    copies_beside_decode,
    prefill_beside_decode,
    receive_beside_decode,
    restore_beside_decode,
)
from hetero.profile.node.engines import EngineOptions, Engines
from hetero.profile.node.gpu_copies import gpu_copier
from hetero.profile.node.points import Domain
from hetero.profile.node.rig import StepRig
from hetero.transport import seals

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
        sequences = batch.sequences[: batch.num_rows].tolist()
        if len(set(sequences)) == len(sequences):
            told.append(f"step of {len(sequences)}")
        else:
            told.append(f"chunk of {len(sequences)} into {set(sequences)}")
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


def test_chunks_go_into_the_sequence_that_does_not_decode(rig, events):
    found = prefill_beside_decode(rig, 2, 32)
    assert found.what == "decode step of 2"
    assert found.beside == "prefill chunks of 64 tokens on the same engine, in turns"
    assert events[:2] == ["restore into 0", "restore into 1"]
    # Two steps, of which the second counts, two chunks likewise, then each after the other.
    chunk = "chunk of 64 into {2}"
    turn = ["step of 2"] * 2 + [chunk] * 2 + ["step of 2", chunk]
    assert events[2:8] == turn
    assert events[2:] == turn * (len(events[2:]) // 6)
    assert [rig.context.last_position(sequence) for sequence in range(3)] == [31, 31, None]


def test_chunks_are_no_longer_than_the_engine_reads_them():
    rig = ScriptedRig(steps=[1], others=[1], chunk_tokens=48)
    assert "chunks of 48 tokens" in prefill_beside_decode(rig, 2, 32).beside
    assert set(rig.told[1:]) == {"step of 2", "chunk of 48 into 2"}


class ScriptedRig:
    """Steps, and chunks or restores, that take so many seconds in turn."""

    context_tokens = CONTEXT

    def __init__(self, steps, others, chunk_tokens=64):
        self._steps, self._others = cycle(steps), cycle(others)
        self.chunk_tokens = chunk_tokens
        self.told = []

    def hold(self, cells):
        self.told.append(f"hold {cells}")

    def time_step(self, num_rows):
        self.told.append(f"step of {num_rows}")
        return next(self._steps)

    def time_chunk(self, num_tokens, sequence):
        self.told.append(f"chunk of {num_tokens} into {sequence}")
        return next(self._others)

    def restore_s(self, num_cells, sequence):
        self.told.append(f"restore of {num_cells} into {sequence}")
        return next(self._others)


@pytest.mark.parametrize("beside_decode", [prefill_beside_decode, restore_beside_decode])
def test_each_beside_the_other_is_compared_with_its_second_alone(beside_decode):
    """The first of each meets the other's caches, too."""
    rig = ScriptedRig(steps=[100, 2, 5], others=[900, 4, 12])
    found = beside_decode(rig, 2, 32)
    assert (found.slowdown, found.beside_slowdown) == (2.5, 3.0)
    assert rig.told[0] == "hold [32, 32]"


def test_one_disturbed_turn_changes_nothing():
    rig = ScriptedRig(steps=[9, 2, 5] * 6 + [9, 70, 300], others=[9, 4, 12] * 6 + [9, 1, 1])
    found = prefill_beside_decode(rig, 2, 32)
    assert (found.slowdown, found.beside_slowdown) == (2.5, 3.0)


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


def test_a_copy_that_fails_is_an_error_and_no_undisturbed_step(rig):
    busy = threading.active_count()

    def copy():
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(EngineError, match="RuntimeError: CUDA error: out of memory"):
        copies_beside_decode(rig, 2, 32, copy)
    assert threading.active_count() == busy


def test_a_thread_that_failed_after_the_last_look_is_an_error_too():
    """While the step ran, say."""
    goes_on = threading.Event()

    def copy():
        goes_on.wait()
        raise RuntimeError("late")

    def step_beside():
        with co_running._copying(copy) as num_bytes:
            assert num_bytes() == 0
            goes_on.set()

    with pytest.raises(EngineError, match="late"):
        step_beside()


def test_copies_that_move_nothing_are_refused(rig, monkeypatch):
    monkeypatch.setattr(co_running, "_LONGEST_WAIT_S", 0.05)
    with pytest.raises(EngineError, match="need bytes moved beside steps, have none"):
        copies_beside_decode(rig, 2, 32, lambda: 0)


def test_steps_go_on_until_bytes_have_moved(rig, events):
    """The tiny model's are shorter than a copy."""
    deadline = time.monotonic() + 10

    def copy():
        while len(events) < 5 and time.monotonic() < deadline:
            time.sleep(0.001)
        return 1000

    with co_running._copying(copy) as num_bytes:
        step_s, bytes_per_s = co_running._step_beside(num_bytes, lambda: rig.time_step(1))
    assert len(events) >= 5
    assert step_s > 0
    assert bytes_per_s > 0


@pytest.mark.parametrize("which", ["seal", "open"])
def test_kv_that_can_not_be_sealed_or_opened_is_an_error(rig, monkeypatch, which):
    busy, make_seal = threading.active_count(), seals.make_seal

    def failing(frame):
        raise CodecError(f"{which}: broken")

    def make_broken(*args):
        seal = make_seal(*args)
        return SimpleNamespace(**{"seal": seal.seal, "open": seal.open, which: failing})

    monkeypatch.setattr(seals, "make_seal", make_broken)
    with pytest.raises(CodecError, match=f"{which}: broken"):
        receive_beside_decode(rig, 2, 32)
    assert threading.active_count() == busy


@pytest.fixture
def engines(path, layout):
    """Of so many slots, threads found."""
    with ExitStack() as opened:

        def opening(slots):
            model = opened.enter_context(Model(path))
            options = EngineOptions(domain=Domain(slots, CONTEXT, 64), num_cores=1, threads=1)
            found = opened.enter_context(Engines(model, {("f16", "f16"): layout}, options))
            found.find_threads(0.0)
            return found

        yield opening


def test_with_one_slot_what_needs_no_other_is_measured_and_the_rest_is_said(engines):
    said = []
    [found] = engines(1).measure_co_runs(said.append, has_gpu=False)
    assert (found.what, found.beside) == ("decode step of 1", "sealed KV arriving")
    assert said == [
        f"{name} beside decode: not measured: need 2 slots, have 1: raise --slots"
        for name in ("prefill", "restores")
    ]


def test_what_fails_beside_decode_is_said_and_the_others_are_measured(engines, monkeypatch):
    def copy():
        raise RuntimeError("CUDA error")

    monkeypatch.setattr("hetero.profile.node.engines.gpu_copier", lambda: copy)
    said = []
    found = engines(3).measure_co_runs(said.append, has_gpu=True)
    assert [run.what for run in found] == ["decode step of 2"] * 3
    assert said == ["GPU copies beside decode: not measured: RuntimeError: CUDA error"]


def test_a_gpu_that_torch_does_not_see_is_said(engines, monkeypatch):
    monkeypatch.setattr("hetero.profile.node.engines.gpu_copier", lambda: None)
    said = []
    assert len(engines(2).measure_co_runs(said.append, has_gpu=True)) == 3
    [line] = said
    assert line.startswith("GPU copies beside decode: not measured: need a GPU that torch sees")


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


def cpu_groups():
    """Two single cores, standing in for two sockets; the same one twice where there is but one."""
    cpus = sorted(os.sched_getaffinity(0))
    return [[cpus[0]], [cpus[-1]]]


def two_nodes(node_bytes, all_bytes):
    numa = [
        NumaNode(node=node, cpus=cpus, memory_bytes=node_bytes)
        for node, cpus in enumerate(cpu_groups())
    ]
    usable = msgspec.structs.replace(FACTS.usable, memory_bytes=all_bytes)
    return msgspec.structs.replace(FACTS, numa=numa, usable=usable)


def test_each_node_decodes_in_a_process_of_its_own_on_its_cpus(path, layout):
    with Workers(cpu_groups()) as workers:
        workers.prepare(NodeDecode, path, layout)
        pids = workers.pids
        assert len({os.getpid(), *pids}) == 3
        for pid, cpus in zip(pids, cpu_groups(), strict=True):
            for thread in psutil.Process(pid).threads():
                assert os.sched_getaffinity(thread.id) == set(cpus)
        assert workers.call(NodeDecode.step) == [1.0, 1.0]


def test_nodes_at_once_are_compared_with_each_alone(path, layout, monkeypatch):
    asked = []

    def rate(self, method, seconds, among=slice(None)):
        which = method, among.start, among.stop
        asked.append(which)
        # 10 and 20 steps per second alone, 24 together.
        return {("step", 0, 1): 10.0, ("step", 1, 2): 20.0, ("step", None, None): 24.0}[which]

    monkeypatch.setattr(Workers, "rate", rate)
    found = decode_on_all_nodes(path, 10**6, layout, cpu_groups())
    assert found.slowdown == 30 / 24
    assert len(set(asked)) == 3
    assert asked == asked[:3] * (len(asked) // 3)


def test_nodes_at_once_are_measured_where_two_have_cpus(path, layout):
    before = set(psutil.Process().children())
    said = []
    facts = two_nodes(2**40, 2**40)
    cpus = dict(enumerate(cpu_groups()))
    [found] = nodes_co_runs(path, 10**6, layout, facts, cpus, said.append)
    assert found.what == "decode step of 4, a process on each NUMA node"
    assert found.slowdown > 0
    assert set(psutil.Process().children()) <= before
    assert nodes_co_runs(path, 10**6, layout, facts, {0: cpus[0]}, said.append) == []
    assert said == ["decoding on 2 NUMA nodes at once"]


@pytest.mark.parametrize(
    ("node_gib", "all_gib", "reason"),
    [
        (64, 100, "need 2 times 60.5 GiB of memory, have "),
        (60, 2**20, "NUMA node 0: need 60.5 GiB of memory, have 60.0 GiB"),
    ],
)
def test_copies_that_do_not_fit_are_not_tried(path, layout, monkeypatch, node_gib, all_gib, reason):
    monkeypatch.setattr("hetero.profile.node.all_nodes.free_memory_bytes", lambda: 2**40)
    said = []
    facts = two_nodes(node_gib * 2**30, all_gib * 2**30)
    cpus = dict(enumerate(cpu_groups()))
    assert nodes_co_runs(path, 60 * 2**30, layout, facts, cpus, said.append) == []
    assert len(said) == 1
    assert said[0].startswith(f"all NUMA nodes at once: not measured: {reason}")


def test_a_model_that_no_process_can_load_is_said(tmp_path, layout):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no model")
    said = []
    cpus = dict(enumerate(cpu_groups()))
    assert nodes_co_runs(broken, 8, layout, two_nodes(2**40, 2**40), cpus, said.append) == []
    assert "llama.cpp can't load it" in said[-1]
