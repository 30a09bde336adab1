"""A lab's file, and the limits and rates it asks for, as far as they need no namespaces."""

from pathlib import Path

import pytest

from hetero.errors import ConfigError, HeteroError
from hetero.launch.lab.lab_file import load_topology, parse_topology
from hetero.launch.lab.limits import check_limits, find_controllers, groups_of_host, make_groups
from hetero.launch.lab.shaping import parse_rate, rate_text, token_bucket
from hetero.launch.lab.topology import Host

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", [*(ROOT / "labs").glob("*.yaml")], ids=lambda path: path.stem)
def test_the_examples_are_right(path):
    assert len(load_topology(path).hosts) >= 2


def test_addresses_are_given_around_those_that_are_chosen():
    topology = parse_topology("{hosts: {a: , b: {address: 10.77.0.1}, c: }}")
    assert [host.address for host in topology.hosts] == ["10.77.0.2", "10.77.0.1", "10.77.0.3"]


AB = "hosts: {a: , b: }\n"
SWITCHED = "hosts: {a: , b: , c: }\nswitches: [s, t, u]\n"


def link(a, b, more=""):
    return f"{{between: [{a}, {b}], rate: 1gbit{more}}}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "lab: need the fields hosts, name, switches, links, have: Expected `object`"),
        ("hosts: {a: }\nhots: {b: }", "lab: .* unknown field `hots`"),
        ("hosts: {a: {cpu: 1}}", "hosts.a: need the fields address, cpus, .* unknown field `cpu`"),
        ("hosts: {}", "hosts: need one at least, have none"),
        ("hosts: {a: , a: }", "'a': need it once, have it again in line 1"),
        ("hosts: {a: }\nswitches: [a]", "name 'a': need it once"),
        ("hosts: {A_1: }", "hosts: need a name of at most 32 lower-case .* have 'A_1'"),
        ("hosts: {a: }\nname: a.b", "name: need a name of at most 32 lower-case .* have 'a.b'"),
        ("hosts: [", "need YAML, have "),
        ("hosts: {a: {cpus: all}}", "hosts.a.cpus: need a list .* have 'all'"),
        ("hosts: {a: {quota: 0.1}}", "hosts.a.quota: need CPUs, 0.2 or more .* have 0.1"),
        ("hosts: {a: {quota: half}}", r"hosts.a: .* Expected `float \| null`, got `str`"),
        ("hosts: {a: {memory: 4 apples}}", "hosts.a.memory: need a size .* have '4 apples'"),
        ("hosts: {a: {memory: 1MB}}", "hosts.a.memory: need a size .* have '1MB'"),
        ("hosts: {a: {address: 8.8.8.8}}", "hosts.a.address: need a private address.* 8.8.8.8"),
        ("hosts: {a: {address: home}}", "hosts.a.address: need an IPv4 address, have 'home'"),
        (
            "hosts: {a: {address: 10.0.0.1}, b: {address: 10.0.0.1}}",
            "hosts.b.address: need an address of its own, have a's",
        ),
        (AB + "links: [{between: [a, b]}]", r"links\[0\]: .* missing required field `rate`"),
        (AB + "links: [{between: [a, b], rate: fast}]", r"links\[0\].rate: need .* have 'fast'"),
        (AB + "links: [{between: [a, b], rate: 4.9mbit}]", r"links\[0\].rate: .* have '4.9mbit'"),
        (AB + "links: [{between: [a, b], rate: 41gbit}]", r"links\[0\].rate: .* have '41gbit'"),
        (AB + f"links: [{link('a', 'c')}]", r"links\[0\].between: need hosts .* have 'c'"),
        (AB + f"links: [{link('a', 'a')}]", r"links\[0\].between: need two ends, have a - a"),
        (AB + f"links: [{link('a', 'b')}, {link('b', 'a')}]", r"links\[1\].between: .* have two"),
        (AB + f"links: [{link('a', 'b', ', mtu: 500')}]", r"links\[0\].mtu: need 1280 to 9216"),
        (
            SWITCHED + f"links: [{link('a', 's')}, {link('b', 's', ', mtu: 9000')}]",
            "links: need one mtu on all of switch 's', have a - s: 1500, b - s: 9000",
        ),
        (
            SWITCHED + f"links: [{link('s', 't')}, {link('t', 'u')}, {link('u', 's')}]",
            "links: need one way between any two nodes of switch 's', have a loop",
        ),
        (
            SWITCHED + f"links: [{link('s', 't')}, {link('a', 's')}, {link('a', 't')}]",
            "links: need one way between any two nodes of switch 's', have a loop",
        ),
    ],
)
def test_a_wrong_file_is_told_by_field(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        parse_topology(text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"lab.yaml: can't read it: no such file or directory"):
        load_topology(tmp_path / "lab.yaml")


@pytest.mark.parametrize("text", ["5mbit", "50mbit", "1gbit", "2.5gbit", "40gbit"])
def test_rates_are_read_as_they_are_written(text):
    assert rate_text(parse_rate("rate", text)) == text


@pytest.mark.parametrize(
    ("rate", "mtu", "qdisc"),
    [
        ("10gbit", 1500, "tbf rate 10000000000bit burst 2500000 limit 15000000"),
        ("50mbit", 9000, "tbf rate 50000000bit burst 18036 limit 149108"),
        ("20mbit", 1500, "tbf rate 20000000bit burst 5000 limit 57500"),
        ("5mbit", 1500, "tbf rate 5000000bit burst 3036 limit 35804"),
    ],
)
def test_a_bucket_holds_two_milliseconds_and_two_frames(rate, mtu, qdisc):
    assert token_bucket(parse_rate("rate", rate), mtu) == qdisc


def test_version_2_is_told_by_its_own_files(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu cpuset\n")
    group = tmp_path / "hetero-lab.x.r730"
    group.mkdir()
    (group / "memory.swap.max").write_text("max\n")  # the kernel counts swap
    controllers = find_controllers(f"cgroup2 {tmp_path} cgroup2 rw,nosuid 0 0\n")
    host = Host(name="r730", address="10.77.0.1", cpus="0", quota=1.5, memory_bytes=4 * 10**9)
    check_limits(host, controllers)
    make_groups(group.name, host, controllers)
    assert groups_of_host(group.name, controllers) == [group]
    written = {file.name: file.read_text() for file in group.iterdir()}
    assert written == {
        "cpuset.cpus": "0",
        "cpu.max": "7500 5000",
        "memory.max": "4000000000",
        "memory.swap.max": "0",
    }
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory"


def test_each_controller_is_found_where_it_is(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    mounts = (
        f"cgroup {tmp_path}/cpu cgroup rw,relatime,cpu,cpuacct 0 0\n"
        f"cgroup {tmp_path}/systemd cgroup rw,name=systemd 0 0\n"
        f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"
    )
    found = find_controllers(mounts)
    assert {name: each.version for name, each in found.items()} == {"cpu": 1, "memory": 2}
    with pytest.raises(HeteroError, match=r"hosts.a.cpus: need the kernel's cgroup controller"):
        check_limits(Host(name="a", address="10.77.0.1", cpus="0"), found)


def test_a_machine_without_those_cpus_is_named():
    host = Host(name="a", address="10.77.0.1", cpus="0,4000-4001")
    with pytest.raises(ConfigError, match=r"hosts.a.cpus: need CPUs of this machine \(0"):
        check_limits(host, find_controllers("cgroup /cpuset cgroup cpuset 0 0"))
