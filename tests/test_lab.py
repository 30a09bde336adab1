"""The emulated homelab, with real namespaces: what a host sees, and that nothing is left."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager
from types import SimpleNamespace

import msgspec
import pytest

from hetero.cli import main
from hetero.errors import ConfigError, HeteroError
from hetero.launch.lab import commands, state
from hetero.launch.lab.lab import Lab
from hetero.launch.lab.lab_file import load_topology, parse_topology
from hetero.launch.lab.limits import (
    check_limits,
    groups_of_host,
    groups_of_lab,
    machine_controllers,
)
from hetero.launch.lab.network import NAMESPACE_FILES, NAMESPACES, lab_prefix

needs_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="network namespaces need Linux and root"
)
needs_tools = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("ip", "tc")), reason="needs iproute2"
)


def real(test):
    return needs_root(needs_tools(test))


def named(name, text):
    """A topology of this test's own: others may have labs on this machine."""
    return msgspec.structs.replace(parse_topology(text), name=name)


@pytest.fixture
def name():
    return f"test-{uuid.uuid4().hex[:8]}"


def remains(name):
    prefix = lab_prefix(name)
    return [
        *(path.name for path in NAMESPACES.glob(f"{prefix}*")),
        *NAMESPACE_FILES.glob(f"{prefix}*"),
        *groups_of_lab(prefix, machine_controllers()),
        *state.STATES.glob(f"*{name}*"),
    ]


def interfaces_here():
    """Those of this machine that look like a lab's."""
    return {name for name in os.listdir("/sys/class/net") if re.match(r"eth|port|bridge", name)}


@pytest.fixture
def nothing_left(name):
    before = interfaces_here()
    yield
    assert remains(name) == []
    assert interfaces_here() == before


PAIR = "{hosts: {a: , b: }, links: [{between: [a, b], rate: 1gbit}]}"

# Takes bytes from one connection, and prints the seconds from the first to the last.
SINK = """
import socket, sys, time
listener = socket.create_server((sys.argv[1], 7000))
print("ready", flush=True)
connection, _ = listener.accept()
left, started = int(sys.argv[2]) - len(connection.recv(1)), time.monotonic()
while left:
    left -= len(connection.recv(min(left, 1 << 20)))
print(time.monotonic() - started, flush=True)
"""
SOURCE = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000)) as connection:
    print("connected", flush=True)
    sys.stdin.readline()
    connection.sendall(bytes(int(sys.argv[2])))
"""
ECHO = """
import socket, sys
listener = socket.create_server((sys.argv[1], 7000))
print("ready", flush=True)
connection, _ = listener.accept()
while word := connection.recv(100):
    connection.sendall(word)
"""
# Sends each line of its stdin over one connection, and prints what comes back.
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000)) as connection:
    for line in sys.stdin:
        connection.sendall(line.encode())
        print(connection.recv(100).decode(), end="", flush=True)
"""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 7001), timeout=1)
except ConnectionRefusedError:
    print("reached")
except TimeoutError:
    print("silence")
except OSError as error:
    print(error)
"""


def python(code, *arguments):
    return [sys.executable, "-S", "-c", code, *map(str, arguments)]


@contextmanager
def program(lab, host, argv):
    with lab.popen(
        host, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def transfer(lab, source, sink, num_bytes):
    """A connection, and two calls: one starts sending, one waits and gives the bits per second."""
    with program(lab, sink, python(SINK, lab.address(sink), num_bytes)) as sinking:
        assert sinking.stdout.readline() == "ready\n"
        with program(lab, source, python(SOURCE, sink, num_bytes)) as sending:
            assert sending.stdout.readline() == "connected\n"
            yield (
                lambda: sending.stdin.write("go\n"),
                lambda: 8 * num_bytes / float(sinking.stdout.readline()),
            )


def goodput(lab, source, sink, num_bytes):
    """The best of three: a busy machine makes a link slower, nothing makes it faster."""

    def measure():
        with transfer(lab, source, sink, num_bytes) as (start, finish):
            start()
            return finish()

    return max(measure() for _ in range(3))


def can_reach(lab, source, sink):
    return lab.run(source, python(CONNECT, sink), capture_output=True, text=True).stdout.strip()


@real
def test_hosts_know_each_other_by_name_and_a_rate_is_obeyed(name, nothing_left):
    with Lab(named(name, PAIR)) as lab:
        assert can_reach(lab, "a", "b") == can_reach(lab, "b", "a") == "reached"
        assert can_reach(lab, "a", lab.address("a")) == "reached"
        lab.set_rate("a", "b", "400mbit")
        fast = goodput(lab, "a", "b", 16_000_000)
        lab.set_rate("b", "a", "50mbit")
        slow = goodput(lab, "a", "b", 2_000_000)
        assert 4 < fast / slow < 12  # 8, on a machine with nothing else to do
        assert slow < 60e6
        lab.set_rate("b", "a", "5mbit")
        slowest = goodput(lab, "a", "b", 300_000)
        assert 5 < slow / slowest < 15
        assert slowest < 6e6
        # Back at once: what TCP learned on the slow link is not kept for the next connection.
        lab.set_rate("a", "b", "400mbit")
        assert goodput(lab, "a", "b", 16_000_000) > 4 * slow


@real
def test_a_connection_outlives_rates_and_a_pulled_cable(name, nothing_left):
    with (
        Lab(named(name, PAIR)) as lab,
        program(lab, "b", python(ECHO, lab.address("b"))) as echo,
    ):
        assert echo.stdout.readline() == "ready\n"
        with program(lab, "a", python(ASK, "b")) as ask:

            def answer(word):
                ask.stdin.write(f"{word}\n")
                return ask.stdout.readline().strip()

            assert answer("first") == "first"
            for rate in ("50mbit", "2.5gbit", "40gbit"):
                lab.set_rate("a", "b", rate)
                assert lab.status()["links"][0]["rate"] == rate
                assert answer(rate) == rate
            lab.set_down("a", "b")
            ask.stdin.write("sent into the void\n")
            assert can_reach(lab, "a", "b") == "silence"
            (link,) = lab.status()["links"]
            assert (link["up"], link["rate"]) == (False, "40gbit")
            lab.set_up("a", "b")
            assert ask.stdout.readline() == "sent into the void\n"
            assert can_reach(lab, "a", "b") == "reached"
            assert lab.status()["links"][0]["up"] is True


@real
def test_an_uplink_is_shared_and_a_switch_is_not_slowed_by_it(name, nothing_left):
    text = """
    hosts: {a: , b: , c: , d: }
    switches: [desk, closet]
    links:
      - {between: [a, desk], rate: 1gbit}
      - {between: [b, desk], rate: 1gbit}
      - {between: [c, closet], rate: 1gbit}
      - {between: [d, closet], rate: 1gbit}
      - {between: [desk, closet], rate: 100mbit}
    """
    with Lab(named(name, text)) as lab:
        alone = goodput(lab, "a", "c", 3_000_000)
        with (
            transfer(lab, "a", "c", 3_000_000) as (start_first, finish_first),
            transfer(lab, "b", "d", 3_000_000) as (start_second, finish_second),
        ):
            start_first()
            start_second()
            together = finish_first() + finish_second()
        assert 0.6 < alone / 100e6 < 1.05
        # Not 1: when one has ended, the other has all of it.
        assert together < 1.6 * alone
        assert goodput(lab, "a", "b", 30_000_000) > 3 * alone


@real
def test_hosts_on_different_cables_do_not_meet(name, nothing_left):
    text = """
    hosts: {a: , b: {address: 192.168.7.2}, c: }
    links:
      - {between: [a, b], rate: 1gbit, mtu: 9000}
      - {between: [b, c], rate: 1gbit}
    """
    with Lab(named(name, text)) as lab:
        assert lab.address("b") == "192.168.7.2"
        assert can_reach(lab, "a", "b") == can_reach(lab, "c", "b") == "reached"
        assert "Network is unreachable" in can_reach(lab, "a", "c")
        mtus = lab.run("b", ["cat", "/sys/class/net/eth0/mtu"], capture_output=True, text=True)
        assert mtus.stdout == "9000\n"


@real
def test_limits_hold_for_one_host_alone(name, nothing_left):
    text = '{hosts: {small: {cpus: "0", quota: 0.5, memory: 64MB}, free: }}'
    grab = [sys.executable, "-S", "-c", "print(len(bytearray(200 << 20)))"]
    affinity = [sys.executable, "-S", "-c", "import os; print(os.sched_getaffinity(0))"]
    topology = named(name, text)
    controllers = machine_controllers()
    try:
        check_limits(topology.host("small"), controllers)
    except HeteroError as error:
        pytest.skip(str(error))
    with Lab(topology) as lab:
        assert lab.run("small", grab, capture_output=True).returncode == -signal.SIGKILL
        assert lab.run("free", grab, capture_output=True).returncode == 0
        here = lab.run("small", affinity, capture_output=True, text=True)
        assert here.stdout == "{0}\n"
        group = lab_prefix(name) + "small"
        joined = lab.run("small", ["cat", "/proc/self/cgroup"], capture_output=True, text=True)
        assert joined.stdout.count(group) >= len(groups_of_host(group, controllers)) > 0
        path = controllers["cpu"].path / group
        if controllers["cpu"].version == 1:
            assert (path / "cpu.cfs_period_us").read_text() == "5000\n"
            assert (path / "cpu.cfs_quota_us").read_text() == "2500\n"
        else:
            assert (path / "cpu.max").read_text() == "2500 5000\n"


def hetero(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= options.pop("environment", {})
    return subprocess.Popen(
        [sys.executable, "-m", "hetero", "lab", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def call(*arguments, stdin="", **options):
    with hetero(*arguments, **options) as process:
        output, errors = process.communicate(stdin)
    return process.returncode, output, errors


@pytest.fixture
def pair_file(name, tmp_path):
    path = tmp_path / "lab.yaml"
    path.write_text(
        f"name: {name}\nhosts: {{a: {{quota: 0.5}}, b: }}\n"
        "links: [{between: [a, b], rate: 10gbit}]\n"
    )
    return path


@real
def test_the_verbs_from_up_to_down(name, pair_file, nothing_left):
    status, output, errors = call("up", str(pair_file), "--json")
    assert status == 0, errors
    lab = json.loads(output)
    assert [host["address"] for host in lab["hosts"]] == ["10.77.0.1", "10.77.0.2"]
    here = ("--lab", name)
    status, output, _ = call("exec", *here, "a", "--", "sh", "-c", "cat; exit 7", stdin="hello")
    assert (status, output) == (7, "hello")
    status, output, _ = call("exec", "--json", *here, "b", "--", "sh", "-c", "echo x; kill -9 $$")
    assert (status, output.splitlines()[0]) == (137, "x")
    assert json.loads(output.splitlines()[-1]) == {"host": "b", "exit_status": 137}
    status, _, errors = call("exec", *here, "a", "no-such-command")
    assert (status, "no-such-command: not found" in errors) == (127, True)
    status, output, _ = call("link", "b", "a", "--rate", "down", "--json", *here)
    assert (status, json.loads(output)["up"]) == (0, False)
    status, output, _ = call("link", "b", "a", "--rate", "up", *here)
    assert (status, output) == (0, "")
    status, _, errors = call("link", "b", "a", "--rate", "1tbit", *here)
    assert (status, "rate: need a rate from 5mbit to 40gbit, have '1tbit'" in errors) == (2, True)
    status, _, errors = call("exec", *here, "nas", "--", "true")
    assert (status, f"host 'nas': lab '{name}' has the hosts a, b" in errors) == (2, True)
    status, output, _ = call("status", "--json", *here)
    assert [link["rate"] for link in json.loads(output)["links"]] == ["10gbit"]
    status, output, _ = call("down", "--json", *here)
    assert (status, json.loads(output)) == (0, {"removed": [name]})
    status, output, _ = call("down", "--json", *here)
    assert (status, json.loads(output)) == (0, {"removed": []})
    assert call("status", *here)[0] == 1


@real
@pytest.mark.parametrize("option", [(), ("--json",)])
def test_signals_reach_the_command(name, pair_file, nothing_left, option):
    code = "import signal, sys; signal.signal(15, lambda *_: sys.exit(9)); "
    code += "print('ready', flush=True); signal.pause()"
    with Lab(load_topology(pair_file)):
        with hetero("exec", "--lab", name, *option, "a", "--", *python(code)) as process:
            assert process.stdout.readline() == "ready\n"
            process.terminate()
            process.communicate(timeout=30)
        assert process.returncode == 9


@real
def test_a_second_up_and_down_end_what_runs_inside(name, nothing_left):
    topology = named(name, PAIR)
    lab = Lab(topology)
    assert lab.up() is False
    # In a session of its own, and deaf to what can be ignored.
    deaf = ["setsid", "sh", "-c", "trap '' TERM HUP; echo ready; while :; do sleep 0.1; done"]
    with program(lab, "a", deaf) as first:
        assert first.stdout.readline() == "ready\n"
        assert first.pid in lab.status()["hosts"][0]["pids"]
        assert lab.up() is True
        assert first.wait(10) == -signal.SIGKILL
    with program(lab, "b", deaf) as second:
        assert second.stdout.readline() == "ready\n"
        assert lab.down() is True
        assert second.wait(10) == -signal.SIGKILL
    assert lab.down() is False


def killing_tools(folder, nth_call, whole_batch):
    """`ip` and `tc` of which the nth call kills its caller, and does all or the start of its work
    all the same."""
    folder.mkdir()
    for tool in ("ip", "tc"):
        script = folder / tool
        script.write_text(
            "#!/bin/sh\n"
            f"echo >> {folder}/calls\n"
            f"if [ $(wc -l < {folder}/calls) = {nth_call} ]; then\n"
            f"  {'cat' if whole_batch else 'head -n 2'} > {folder}/batch\n"
            "  kill -9 $PPID\n"
            f'  exec {shutil.which(tool)} "$@" < {folder}/batch\n'
            "fi\n"
            f'exec {shutil.which(tool)} "$@"\n'
        )
        script.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@real
@pytest.mark.parametrize(
    ("nth_call", "whole_batch"), [(1, False), (1, True), (2, False), (4, True), (7, True)]
)
def test_a_killed_up_leaves_nothing_after_down(
    name, pair_file, nothing_left, tmp_path, nth_call, whole_batch
):
    environment = killing_tools(tmp_path / "tools", nth_call, whole_batch)
    status, _, _ = call("up", str(pair_file), environment=environment)
    assert status == -signal.SIGKILL
    assert remains(name)
    status, _, errors = call("exec", "--lab", name, "a", "--", "true")
    assert (status, "need it up" in errors) == (1, True)
    status, output, errors = call("down", "--lab", name, "--json")
    assert (status, output) == (0, json.dumps({"removed": [name]}) + "\n"), errors


@real
def test_a_killed_down_is_finished_by_up(name, pair_file, nothing_left, tmp_path):
    with Lab(load_topology(pair_file)) as lab:
        environment = killing_tools(tmp_path / "tools", 1, False)
        assert call("down", "--lab", name, environment=environment)[0] == -signal.SIGKILL
        # What a kill between the making of a namespace's name and of itself leaves.
        (NAMESPACES / f"{lab_prefix(name)}ghost").touch()
        assert lab.up() is True
        assert can_reach(lab, "a", "b") == "reached"


@real
def test_a_kernel_without_token_buckets_is_told_from_a_broken_lab(
    name, nothing_left, tmp_path, monkeypatch
):
    (tmp_path / "tc").write_text(
        "#!/bin/sh\necho 'Error: Specified qdisc kind is unknown.' >&2\nexit 2\n"
    )
    (tmp_path / "tc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HeteroError, match=r"need the kernel module sch_tbf.*modprobe sch_tbf"):
        Lab(named(name, PAIR)).up()


@real
def test_labs_of_two_names_live_side_by_side(name, nothing_left):
    with Lab(named(f"{name}-b", PAIR)) as other:
        with Lab(named(name, PAIR)):
            pass
        assert can_reach(other, "a", "b") == "reached"


def test_a_command_without_a_name_means_the_only_lab(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "STATES", tmp_path)
    with pytest.raises(HeteroError, match="have none here; run `hetero lab up FILE`"):
        state.choose_lab(None)
    state.write_state(named("one", PAIR))
    assert state.choose_lab(None) == "one"
    assert state.read_state("one") == named("one", PAIR)
    state.write_state(named("two", PAIR))
    with pytest.raises(ConfigError, match="need --lab, have several here: one, two"):
        state.choose_lab(None)
    assert state.choose_lab("two") == "two"


@pytest.mark.parametrize("name", ["../etc", "a.b", ""])
def test_a_lab_that_can_not_be_named_so_is_not_looked_for(name):
    with pytest.raises(ConfigError, match="lab: need a name of at most 32"):
        state.read_state(name)
    with pytest.raises(ConfigError, match="lab: need a name"), state.locked(name):
        pass


def test_a_machine_that_can_not_is_told_what_to_run(monkeypatch, capsys):
    fake = SimpleNamespace(argv=["hetero", "lab", "down", "--lab", "x"], platform="darwin")
    monkeypatch.setattr(commands, "sys", fake)
    assert main.main(["lab", "down"]) == 1
    assert "lab: need Linux (its network namespaces), have darwin" in capsys.readouterr().err
    fake.platform = "linux"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main.main(["lab", "down"]) == 1
    assert re.search(
        r"need root .* have user 1000; run: sudo \S*hetero lab down --lab x",
        capsys.readouterr().err,
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(commands, "_SYSTEM_PATHS", ())
    monkeypatch.setenv("PATH", "/nowhere")
    assert main.main(["lab", "down"]) == 1
    assert "run: sudo apt-get install iproute2" in capsys.readouterr().err
