"""Processor time of processes over a load's own time, by readings around it."""

import subprocess
import sys
import time

import psutil
import pytest

from hetero.errors import EngineError
from hetero.experiment.recipe_run.cpu_log import CPULog


class Readings:
    """Of a process that works from the second reading on, a second for each second."""

    def __init__(self):
        self.began_s = None

    def __call__(self):
        now = time.monotonic()
        if self.began_s is None:
            self.began_s = now
        return {"engine": now - self.began_s, "idle": 3.0}


def test_cores_are_of_the_time_between_two_moments():
    read = Readings()
    with CPULog(read) as log:
        while read.began_s is None:
            pass
        began_s = time.monotonic()
        while time.monotonic() < began_s + 0.3:
            pass
        ended_s = time.monotonic()
    assert log.cores(began_s, ended_s) == {
        "engine": pytest.approx(1.0, abs=0.02),
        "idle": 0.0,
    }


def test_a_process_that_is_gone_ends_the_log_and_nothing_else():
    def read():
        raise EngineError("decode-0: need its processor time, have no process any more")

    with CPULog(read) as log:
        pass
    assert log.cores(0.0, 1.0) == {}


def test_a_busy_process_takes_a_core():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        process = psutil.Process(busy.pid)
        with CPULog(lambda: {"busy": sum(process.cpu_times()[:2])}) as log:
            began_s = time.monotonic()
            while sum(process.cpu_times()[:2]) < 0.5:
                time.sleep(0.01)
            ended_s = time.monotonic()
    finally:
        busy.kill()
        busy.wait()
    # As much as it had got by then, in hundredths of a second.
    assert log.cores(began_s, ended_s)["busy"] * (ended_s - began_s) == pytest.approx(0.5, abs=0.05)
