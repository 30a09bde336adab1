"""Two things at once: what is timed beside what, on real engines and processes."""

import os
import threading

import msgspec
import psutil
import pytest
from node_profiles import FACTS
from tiny_models import write_tiny_model

from hetero.kv.layout import model_layout
from hetero.llama.model import Model
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.profile.ceilings.workers import Workers
from hetero.profile.facts.report import NumaNode
from hetero.profile.node.all_nodes import NodeDecode, decode_on_all_nodes, nodes_co_runs
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
