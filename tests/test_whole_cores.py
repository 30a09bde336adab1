"""Which CPUs are one core, in a tree of files as /sys has them."""

import os

import pytest

from hetero.machine.whole_cores import one_of_each_core, whole_cores


@pytest.fixture
def root(tmp_path):
    for cpu, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 4: "0,4", 5: "1,5"}.items():
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "core_cpus_list").write_text(f"{siblings}\n")
    return tmp_path


def test_a_core_is_whole_with_all_its_threads_or_not_given(root, monkeypatch):
    usable = {0, 1, 2, 3, 4, 5}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: usable, raising=False)
    # Of core 2 this process may use one thread of two; of 3 the kernel says nothing.
    assert whole_cores(root) == [[0, 4], [1, 5], [3]]


def test_hardware_threads_of_one_core_count_once(root):
    assert one_of_each_core([5, 4, 3, 2, 0], root) == [0, 2, 3, 5]
