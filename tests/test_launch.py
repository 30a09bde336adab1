"""Supervised processes are real ones here; they are small Python programs."""

import json
import os
import queue
import signal
import subprocess
import sys
import textwrap
import time

import msgspec
import psutil
import pytest

from hetero.errors import ConfigError, EngineError
from hetero.launch.cores import split_threads, thread_environment
from hetero.launch.node_processes import NodeProcesses, await_ready
from hetero.launch.run_directory import (
    ClusterState,
    make_run_directory,
    running_clusters,
    started_at,
    write_state,
)
from hetero.launch.supervisor import Command, GaveUp, Ready, RestartPolicy, Supervisor

QUICK = RestartPolicy(first_wait_s=0.01, longest_wait_s=0.02, max_crashes=3)
ANNOUNCE = 'import os, time; print("{\\"ready\\": true}", flush=True)\n'
# Long past any test; a test ends it earlier.
STAY = ANNOUNCE + "time.sleep(1000)"
PATIENCE_S = 20


class Supervised:
    """A supervisor over `python -c CODE`, and what it reported."""

    def __init__(self, code, folder, policy=QUICK):
        self.reports = queue.SimpleQueue()
        self.log = folder / "node.log"
        command = Command(
            name="node",
            argv=(sys.executable, "-c", code),
            log=self.log,
            environment=dict(os.environ),
        )
        self.supervisor = Supervisor(command, self.reports.put, policy)

    def __enter__(self):
        self.supervisor.start()
        return self

    def __exit__(self, *exc):
        self.supervisor.stop(grace_s=PATIENCE_S)

    def report(self):
        return self.reports.get(timeout=PATIENCE_S)


def test_what_hangs_before_it_is_ready_says_where_in_its_log(tmp_path):
    processes = NodeProcesses(tmp_path, lambda line: None)
    hang = "import time; print('not JSON', flush=True)\ntime.sleep(1000)"
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    for name, code in (("stuck", hang), ("fine", STAY)):
        processes.supervise(name, "decode", (sys.executable, "-c", code), environment)
    log = tmp_path / "stuck.log"
    try:
        assert await_ready(processes, {"fine"}, PATIENCE_S) == {"fine": {"ready": True}}
        deadline = time.monotonic() + PATIENCE_S
        while "not JSON" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(EngineError, match=r"stuck: need it ready within 0.1 s.*stuck.log"):
            await_ready(processes, {"stuck"}, 0.1)
    finally:
        processes.stop()
    assert 'File "<string>", line 2' in log.read_text()


def wait_until_gone(pid):
    """Zombies count as gone: whoever is their parent now may not reap them."""
    deadline = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(pid):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def test_killed_process_comes_back(tmp_path):
    with Supervised(STAY, tmp_path) as node:
        first = node.report()
        assert first.announced == {"ready": True}
        os.kill(first.pid, signal.SIGKILL)
        second = node.report()
    assert isinstance(second, Ready)
    assert second.pid != first.pid


def test_process_that_never_gets_ready_is_given_up_at_once(tmp_path):
    code = 'import sys; print("hetero: error: port 8080: in use", file=sys.stderr); sys.exit(2)'
    with Supervised(code, tmp_path) as node:
        report = node.report()
    assert isinstance(report, GaveUp)
    assert isinstance(report.error, ConfigError)
    assert str(report.error) == f"node: port 8080: in use (its log: {node.log})"
    assert node.reports.empty()


def test_silent_death_names_the_signal(tmp_path):
    code = 'import os; print("loading weights", flush=True); os.kill(os.getpid(), 9)'
    with Supervised(code, tmp_path) as node:
        report = node.report()
    assert isinstance(report.error, EngineError)
    assert "node: killed by SIGKILL; it said last: loading weights" in str(report.error)


def test_process_that_keeps_crashing_is_given_up(tmp_path):
    with Supervised(ANNOUNCE + "raise RuntimeError('bad day')", tmp_path) as node:
        reports = [node.report() for _ in range(4)]
    assert [type(report) for report in reports] == [Ready, Ready, Ready, GaveUp]
    assert str(reports[-1].error).startswith(
        "node: 3 crashes in a row, so it is given up; "
        "ended with status 1; it said last: RuntimeError: bad day"
    )


def test_a_long_good_run_is_forgiven(tmp_path):
    # Any run counts as long here: no number of crashes is too many.
    forgiving = RestartPolicy(first_wait_s=0.01, max_crashes=2, stable_s=0.0)
    with Supervised(ANNOUNCE + "raise SystemExit(1)", tmp_path, forgiving) as node:
        assert all(isinstance(node.report(), Ready) for _ in range(5))


def test_waits_double_up_to_a_limit():
    policy = RestartPolicy(first_wait_s=0.5, longest_wait_s=3.0)
    assert [policy.wait_s(n) for n in (1, 2, 3, 4, 50)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_stop_ends_a_process_that_ignores_sigterm(tmp_path):
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + STAY
    with Supervised(deaf, tmp_path) as node:
        pid = node.report().pid
        node.supervisor.stop(grace_s=0.1)
        wait_until_gone(pid)
    assert node.reports.empty()


def test_stop_lets_a_process_clean_up(tmp_path):
    polite = f"""
        import signal, sys
        def end(*_):
            open({str(tmp_path / "bye")!r}, "w").close()
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
    """
    with Supervised(textwrap.dedent(polite) + STAY, tmp_path) as node:
        node.report()
    assert (tmp_path / "bye").exists()
    assert node.reports.empty()


def test_what_a_dead_process_started_dies_too(tmp_path):
    code = ANNOUNCE + (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    with Supervised(code, tmp_path, RestartPolicy(first_wait_s=1000)) as node:
        node.report()
        deadline = time.monotonic() + PATIENCE_S
        while not node.log.read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        wait_until_gone(int(node.log.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_killed_parent_takes_its_processes_along(tmp_path):
    parent_code = f"""
        import os, pathlib, sys, time
        from hetero.launch.supervisor import Command, Supervisor
        command = Command(
            name="node",
            argv=(sys.executable, "-c", {STAY!r}),
            log=pathlib.Path({str(tmp_path / "log")!r}),
            environment=dict(os.environ),
        )
        Supervisor(command, lambda report: print(report.pid, flush=True)).start()
        time.sleep(1000)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(parent_code)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    child = int(parent.stdout.readline())
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until_gone(child)


def test_threads_are_split_and_never_none():
    assert split_threads(7, 2) == [4, 3]
    assert split_threads(1, 3) == [1, 1, 1]
    assert split_threads(8, 1) == [8]


def test_engines_that_share_cores_wait_passively():
    assert thread_environment(3, shares_cores=True) == {
        "OMP_NUM_THREADS": "3",
        "OPENBLAS_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "passive",
    }
    assert "OMP_WAIT_POLICY" not in thread_environment(3, shares_cores=False)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "hetero"


def cluster_state(name, *, temporary=False):
    return ClusterState(
        name=name,
        url="http://127.0.0.1:8080",
        model="demo",
        owner=os.getpid(),
        owner_started=started_at(os.getpid()),
        temporary=temporary,
        nodes=(),
    )


def test_a_running_cluster_is_found_and_its_name_is_taken(runs):
    write_state(make_run_directory("local"), cluster_state("local"))
    assert [state.name for state in running_clusters()] == ["local"]
    with pytest.raises(ConfigError, match=r"'local': is running already at http://127.0.0.1:8080"):
        make_run_directory("local")
    assert make_run_directory("other") == runs / "other"


def test_run_directories_are_private(runs):
    assert make_run_directory("local").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("owner", ["dead", "another process of the same id"])
def test_a_dead_owners_state_is_cleared_away(runs, owner):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    change = {"owner": gone.pid} if owner == "dead" else {"owner_started": 1.0}
    for name, temporary in [("local", False), ("generate-1", True)]:
        path = make_run_directory(name)
        state = cluster_state(name, temporary=temporary)
        write_state(path, msgspec.structs.replace(state, **change))
    assert running_clusters() == []
    assert [path.name for path in runs.rglob("*")] == ["local"]


def test_a_damaged_state_file_counts_as_none(runs):
    path = make_run_directory("local")
    (path / "state.json").write_text(json.dumps({"name": 3}))
    assert running_clusters() == []
    assert list(path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_a_cluster_name_stays_in_its_place(runs, name):
    with pytest.raises(ConfigError, match="can name a directory"):
        make_run_directory(name)
