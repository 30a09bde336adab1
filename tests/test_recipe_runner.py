"""Running a recipe's arms: interleaved, repeated where the machine drifted, resumed, never half."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from hetero.errors import EngineError, HeteroError
from hetero.experiment.outcome.measured import Measured
from hetero.experiment.outcome.steadiness import unsteadiness, usual_pilot
from hetero.experiment.outcome.values import counted
from hetero.experiment.recipe_run import runner
from hetero.experiment.recipe_run.pilots import Pilots
from hetero.experiment.recipe_run.run_folder import (
    JOURNAL,
    REQUESTS,
    RunFolder,
    RunHeader,
    machine_label,
    make_folder,
    unfinished_folder,
)
from hetero.experiment.recipe_run.runner import MOST_ATTEMPTS, run_arms

A, B = {"candidate": "single"}, {"candidate": "split"}
ORDER = [(A, 0), (B, 0), (B, 1), (A, 1)]
MACHINE = {"cpu": "Some CPU", "usable_cores": 2}


class CountingBench:
    """Two records a measurement; fails at the `fails_at`th."""

    is_timed = True

    def __init__(self, fails_at=None, error=None, record_bytes=10):
        self.seen = []
        self._fails_at, self._error, self._record_bytes = fails_at, error, record_bytes

    def measure(self, arm, repetition):
        if len(self.seen) == self._fails_at:
            raise self._error
        self.seen.append((arm["candidate"], repetition))
        records = [{"of": arm["candidate"], "text": "x" * self._record_bytes}] * 2
        return Measured(scalars={"throughput": 1.0}, samples={"ttft": [0.5]}, records=records)


class Steady:
    def run(self):
        return {"cpu0": 1.0}


class Drifting:
    """Pilots before and after, one after the other."""

    def __init__(self, *seconds):
        self._seconds = list(seconds)

    def run(self):
        return {"cpu0": self._seconds.pop(0)}


def header(recipe_hash="abc"):
    return RunHeader(recipe={}, recipe_hash=recipe_hash, provenance={"machine": MACHINE})


@pytest.fixture
def opened():
    """Closes what is given to it, at the test's end."""
    with ExitStack() as stack:

        def keep(folder):
            stack.callback(folder.close)
            return folder

        yield keep


@pytest.fixture
def folder_at(opened):
    return lambda path: opened(make_folder(path, "run", header()))


def test_every_arm_is_measured_once_in_the_given_order(tmp_path, folder_at):
    bench, said = CountingBench(), []
    run_arms(ORDER, bench, Steady(), folder_at(tmp_path), said.append)
    assert bench.seen == [("single", 0), ("split", 0), ("split", 1), ("single", 1)]
    assert "[1/4] single, repetition 1" in said[0]
    assert "left" in said[0]
    assert "the last" in said[-1]


def test_an_arm_in_which_the_machine_slowed_down_is_measured_again_and_the_steadier_run_counts(
    tmp_path, folder_at
):
    folder = folder_at(tmp_path)
    pilots = Drifting(1.0, 1.06, 1.0, 1.04)
    run_arms([(A, 0)], CountingBench(), pilots, folder, lambda line: None)
    assert [run.attempt for run in folder.runs] == [0, 1]
    (counting,) = counted(folder.runs)
    assert counting.attempt == 1


def test_an_arm_measured_wholly_while_the_machine_was_slow_is_measured_again(tmp_path, folder_at):
    """That shows only later, when it is fast."""
    folder, bench, said = folder_at(tmp_path), CountingBench(), []
    pilots = Drifting(1.3, 1.3, 1.0, 1.0, 1.0, 1.0)
    run_arms([(A, 0), (B, 0)], bench, pilots, folder, said.append)
    assert bench.seen == [("single", 0), ("split", 0), ("single", 0)]
    assert [line[:5] for line in said] == ["[1/2]", "[1/2]", "[2/2]"]
    assert [run.attempt for run in counted(folder.runs)] == [0, 1]


def test_a_machine_that_slows_down_for_good_has_another_usual_speed(tmp_path, folder_at):
    folder, bench = folder_at(tmp_path), CountingBench()
    order = [(arm, repetition) for repetition in range(4) for arm in (A, B)]
    pilots = Drifting(1.0, 1.0, *[1.3] * 40)
    run_arms(order, bench, pilots, folder, lambda line: None)
    assert usual_pilot(folder.runs) == {"cpu0": 1.3}
    assert bench.seen[-4:] == [("single", 2), ("split", 2), ("single", 3), ("split", 3)]


def test_an_arm_is_measured_again_after_the_others_of_its_repetition(tmp_path, folder_at):
    bench = CountingBench()
    # Both arms of the first repetition, then the first arm of the second.
    drifts = [1.2, 1.2, 1.0, 1.0, 1.2, 1.0, 1.0]
    pilots = Drifting(*(seconds for drift in drifts for seconds in (1.0, drift)))
    run_arms(ORDER, bench, pilots, folder_at(tmp_path), lambda line: None)
    first = [("single", 0), ("split", 0), ("single", 0), ("split", 0)]
    second = [("split", 1), ("single", 1), ("split", 1)]
    assert bench.seen == first + second


def test_a_machine_that_always_drifts_is_tried_three_times_and_the_result_says_so(
    tmp_path, folder_at
):
    folder = folder_at(tmp_path)
    run_arms([(A, 0)], CountingBench(), Drifting(*[1.0, 1.2] * 9), folder, lambda line: None)
    assert len(folder.runs) == MOST_ATTEMPTS
    (counting,) = counted(folder.runs)
    assert unsteadiness(counting, usual_pilot(folder.runs)) == pytest.approx(0.2)


def test_what_no_clock_decides_is_measured_once_beside_other_guests(
    tmp_path, folder_at, monkeypatch
):
    monkeypatch.setattr(runner, "_taken", lambda watch, seconds: (0.5, 2.0))
    folder = folder_at(tmp_path)
    timed, untimed = CountingBench(), CountingBench()
    untimed.is_timed = False
    run_arms([(A, 0)], timed, Pilots([]), folder, lambda line: None)
    run_arms([(B, 0)], untimed, Pilots([]), folder, lambda line: None)
    assert len(timed.seen) == MOST_ATTEMPTS
    assert len(untimed.seen) == 1
    assert folder.runs[-1].steal_share is None
    assert folder.runs[-1].marks == []


@pytest.mark.parametrize("error", [EngineError("decode-0: ended"), KeyboardInterrupt()])
def test_an_interrupted_run_goes_on_at_the_next_arm(tmp_path, error, folder_at, opened):
    first = CountingBench(fails_at=2, error=error)
    folder = folder_at(tmp_path)
    with pytest.raises(type(error)):
        run_arms(ORDER, first, Steady(), folder, lambda line: None)
    folder.close()

    found = unfinished_folder(tmp_path, "abc", MACHINE)
    assert found == folder.path
    second, said = CountingBench(), []
    again = opened(RunFolder(found))
    run_arms(ORDER, second, Steady(), again, said.append)
    assert first.seen + second.seen == [("single", 0), ("split", 0), ("split", 1), ("single", 1)]
    assert said[0].startswith("2 of 4 arms are here already")
    assert len(again.runs) == 4


def test_what_a_killed_run_left_of_an_arm_is_cut_off(tmp_path, folder_at, opened):
    folder = folder_at(tmp_path)
    run_arms([(A, 0)], CountingBench(), Steady(), folder, lambda line: None)
    folder.close()
    whole = (folder.path / REQUESTS).read_bytes()
    with open(folder.path / REQUESTS, "ab") as file:
        file.write(b'{"of": "spl')
    with open(folder.path / JOURNAL, "ab") as file:
        file.write(b'{"run": {"arm"')

    again = opened(RunFolder(folder.path))
    assert len(again.runs) == 1
    run_arms([(A, 0), (B, 0)], CountingBench(), Steady(), again, lambda line: None)
    lines = (folder.path / REQUESTS).read_bytes()
    assert lines.startswith(whole)
    assert [msgspec.json.decode(line)["of"] for line in lines.splitlines()] == ["single"] * 2 + [
        "split"
    ] * 2


def test_a_folder_that_lost_requests_is_refused(tmp_path, folder_at):
    folder = folder_at(tmp_path)
    run_arms([(A, 0)], CountingBench(), Steady(), folder, lambda line: None)
    folder.close()
    (folder.path / REQUESTS).write_bytes(b"")
    with pytest.raises(HeteroError, match=r"requests.jsonl: need \d+ bytes.*have 0.*--fresh"):
        RunFolder(folder.path)


def test_a_disk_that_fills_up_in_mid_run_corrupts_nothing_and_the_run_goes_on(
    tmp_path, folder_at, opened
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs root to mount a small disk")
    try:
        folder = folder_at(disk)
        large = CountingBench(record_bytes=40_000)
        with pytest.raises(HeteroError, match="bytes of disk, have less; free some"):
            run_arms(ORDER, large, Steady(), folder, lambda line: None)
        folder.close()
        again = opened(RunFolder(folder.path))
        assert 1 <= len(again.runs) < 4
        records = (folder.path / REQUESTS).read_bytes().splitlines()
        assert len(records) == 2 * len(again.runs)
        assert all(msgspec.json.decode(line)["text"] for line in records)

        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        run_arms(ORDER, large, Steady(), again, lambda line: None)
        assert len(again.runs) == 4
        again.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_another_recipe_or_a_finished_run_is_not_resumed(tmp_path, folder_at):
    folder = folder_at(tmp_path)
    assert unfinished_folder(tmp_path, "other", MACHINE) is None
    assert unfinished_folder(tmp_path, "abc", MACHINE | {"usable_cores": 4}) is None
    assert unfinished_folder(tmp_path, "abc", MACHINE) == folder.path
    folder.finished()
    assert unfinished_folder(tmp_path, "abc", MACHINE) is None


def test_a_second_run_of_a_day_gets_a_folder_of_its_own(tmp_path, opened):
    paths = [opened(make_folder(tmp_path, "2026-11-22_xeon", header())).path.name for _ in range(3)]
    assert paths == ["2026-11-22_xeon", "2026-11-22_xeon_2", "2026-11-22_xeon_3"]


def test_calibration_outlives_an_interruption(tmp_path, folder_at, opened):
    folder = folder_at(tmp_path)
    run_arms([(A, 0)], CountingBench(), Steady(), folder, lambda line: None)
    folder.calibrate("kv_bytes_per_s q8_0", 1.5e6)
    folder.close()
    assert opened(RunFolder(folder.path)).header.calibration == {"kv_bytes_per_s q8_0": 1.5e6}


@pytest.mark.parametrize(
    ("cpu", "label"),
    [
        ("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", "xeon-e5-2690-v4-2-cores"),
        ("AMD Ryzen 9 5950X 16-Core Processor", "ryzen-9-5950x-2-cores"),
        ("Intel(R) Xeon(R) Processor", "xeon-2-cores"),
    ],
)
def test_a_machine_is_named_by_its_processor(cpu, label):
    assert machine_label({"machine": {"cpu": cpu, "usable_cores": 2}}) == label


def test_pilots_time_every_core_and_kind():
    with Pilots([0]) as pilots:
        found = pilots.run()
    assert found.keys() == {"cpu0 memory", "cpu0 compute"}
    assert all(seconds > 0 for seconds in found.values())


def test_without_cores_no_pilot_flies(tmp_path, folder_at):
    folder = folder_at(tmp_path)
    with Pilots([]) as pilots:
        run_arms([(A, 0)], CountingBench(), pilots, folder, lambda line: None)
    assert folder.runs[0].pilot is None
    assert Path(folder.path, JOURNAL).exists()


def test_a_run_that_measured_nothing_leaves_nothing(tmp_path, folder_at):
    folder = folder_at(tmp_path)
    folder.close()
    assert not folder.path.exists()
