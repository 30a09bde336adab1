"""A machine's facts: of trees that stand for machines we don't have, and of this one."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine_trees import (
    GIB,
    FakeNVML,
    add_cpus,
    add_memory,
    add_pci,
    dmi_table,
    laptop,
    link,
    probes,
    r730,
    r730_table,
    refused,
    write,
)

from hetero.profile.facts.channels import count_channels
from hetero.profile.facts.collect import collect_facts
from hetero.profile.facts.dimms import modules_of
from hetero.profile.facts.meters import cpu_mhz, read_energy, throttle_counts, watts_between
from hetero.profile.facts.probes import probes_of_this_machine, run_command
from hetero.profile.facts.report import NIC, Cache, Disk, Facts
from hetero.profile.facts.state import settings_now, stale_because

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def assert_valid(facts):
    assert msgspec.convert(msgspec.to_builtins(facts, str_keys=True), Facts) == facts
    assert msgspec.json.decode(msgspec.json.encode(facts), type=Facts) == facts
    for line in facts.unseen:
        assert re.fullmatch(r"[^:]+: .+; .+", line), line
        assert "sudo hetero" not in line, "sudo's path has no virtual environments"


def unseen_line(facts, what):
    lines = [line for line in facts.unseen if line.startswith(what)]
    assert len(lines) == 1, facts.unseen
    return lines[0]


def test_dual_socket_server_is_seen_whole(tmp_path):
    r730(tmp_path)
    facts = collect_facts(tmp_path, probes(r730_table(), FakeNVML()))
    assert_valid(facts)
    assert facts.unseen == []
    assert facts.system == "Linux 6.1.0-28-amd64 x86_64"
    assert (facts.product, facts.virtual) == ("PowerEdge R730", None)
    cpu = facts.cpu
    assert cpu.model == "Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz"
    assert (cpu.sockets, cpu.cores, cpu.logical_cores) == (2, 24, 48)
    assert cpu.isa == ["avx", "avx2", "f16c", "fma"]
    assert cpu.caches[-1] == Cache(level=3, kind="unified", num_bytes=30 * 2**20, shared_by=24)
    assert [cache.shared_by for cache in cpu.caches] == [2, 2, 2, 24]
    assert (cpu.max_mhz, cpu.governor, cpu.power_limit_watts) == (3300, "powersave", 120)
    assert [node.memory_bytes for node in facts.numa] == [128 * GIB, 128 * GIB]
    assert facts.numa[1].cpus == list(range(1, 48, 2))
    assert facts.usable.cpus == list(range(48))
    assert (facts.usable.cpu_quota, facts.usable.memory_bytes) == (None, 256 * GIB)
    assert facts.power.has_rapl
    assert facts.power.on_battery is None


def test_memory_modules_come_from_the_firmware(tmp_path):
    r730(tmp_path)
    memory = collect_facts(tmp_path, probes(r730_table())).memory
    assert (memory.modules, memory.channels) == (8, 8)
    # As configured: the modules could do 2400.
    assert (memory.kind, memory.mega_transfers) == ("DDR4", 2133)
    assert memory.nominal_gb_s == pytest.approx(136.5, abs=0.1)
    assert (memory.huge_pages, memory.huge_page_bytes) == (16, 2 * 2**20)
    assert memory.transparent_huge_pages == "madvise"


E5, GOLD, RYZEN = "Xeon(R) CPU E5-2680 v3", "Xeon(R) Gold 6138", "AMD Ryzen 9 5950X"
DL380 = [f"PROC {socket} DIMM {slot}" for socket in (1, 2) for slot in range(1, 13)]


@pytest.mark.parametrize(
    ("cpu", "slots", "filled", "channels"),
    [
        (E5, [f"A{n}" for n in range(1, 13)], {"A1", "A2", "A5", "A6"}, 2),
        (GOLD, [f"A{n}" for n in range(1, 13)], {"A1", "A2", "A5", "A7"}, 3),
        (E5, DL380, {"PROC 1 DIMM 12", "PROC 1 DIMM 11", "PROC 2 DIMM 1"}, 2),
        (RYZEN, ["DIMM_A1", "DIMM_A2", "DIMM_B1", "DIMM_B2"], {"DIMM_A2", "DIMM_B2"}, 2),
        (RYZEN, ["DIMM_A1", "DIMM_A2", "DIMM_B1", "DIMM_B2"], {"DIMM_A1", "DIMM_A2"}, 1),
        (RYZEN, ["ChannelA-DIMM0", "ChannelB-DIMM0"], {"ChannelA-DIMM0", "ChannelB-DIMM0"}, 2),
        (E5, ["P1-DIMMA1", "P1-DIMMA2", "P2-DIMMA1"], {"P1-DIMMA1", "P1-DIMMA2", "P2-DIMMA1"}, 2),
        # Numbers alone on a processor whose channels we don't know: no guess.
        (RYZEN, ["A1", "A2"], {"A1"}, None),
        (E5, ["Bottom-Slot 1", "Bottom-Slot 2"], {"Bottom-Slot 1"}, None),
    ],
)
def test_channels_follow_the_slots_names(cpu, slots, filled, channels):
    table = dmi_table([(name, "Not Specified", 16 * (name in filled), 2133) for name in slots])
    assert count_channels(modules_of(table), cpu) == channels


def test_channels_may_be_named_by_the_bank():
    table = dmi_table([("DIMM 0", f"P0 CHANNEL {name}", 16, 3200) for name in "AABB"])
    assert count_channels(modules_of(table), RYZEN) == 2
    nodes = [("DIMM_P", f"P0_Node{node}_Channel{n}_Dimm0", 8, 2133) for node in "01" for n in "012"]
    assert count_channels(modules_of(dmi_table(nodes)), E5) == 6


def test_narrow_channels_of_a_laptop_count_as_fewer():
    table = dmi_table([("DIMM 0", f"P0 CHANNEL {name}", 8, 6400) for name in "ABCD"])
    table = table.replace("DDR4", "LPDDR5").replace("Data Width: 64", "Data Width: 32")
    assert count_channels(modules_of(table), "AMD Ryzen 7 PRO 6850U") == 2


def test_slots_that_do_not_tell_leave_channels_unseen(tmp_path):
    r730(tmp_path)
    facts = collect_facts(tmp_path, probes(dmi_table([("Slot", "Unknown", 16, 2133)])))
    assert (facts.memory.channels, facts.memory.modules) == (None, 1)
    assert "sudo dmidecode" in unseen_line(facts, "memory channels")


@pytest.mark.parametrize(
    ("dmidecode", "said"),
    [
        (None, "dmidecode is not installed; sudo apt install dmidecode"),
        (refused(), "dmidecode needs root; sudo dmidecode -t memory"),
        (subprocess.TimeoutExpired(["dmidecode"], 10), "timed out after 10 seconds"),
        ("# dmidecode 3.4\n# No SMBIOS nor DMI entry point found, sorry.\n", "the firmware lists"),
        (
            subprocess.CalledProcessError(1, [], stderr="/dev/mem: Operation not permitted\n"),
            "dmidecode failed (/dev/mem: Operation not permitted)",
        ),
    ],
)
def test_memory_without_dmidecode_says_why(tmp_path, dmidecode, said):
    r730(tmp_path)
    facts = collect_facts(tmp_path, probes(dmidecode, FakeNVML()))
    assert_valid(facts)
    assert facts.memory.num_bytes == 256 * GIB
    assert (facts.memory.modules, facts.memory.channels, facts.memory.kind) == (None, None, None)
    assert said in unseen_line(facts, "memory modules, type, speed and channels")
    assert len(facts.unseen) == 1


def test_a_command_that_refuses_is_heard(tmp_path, monkeypatch):
    """Through a real process, as an unprivileged user meets it."""
    tool = tmp_path / "bin/dmidecode"
    write(tmp_path, "bin/dmidecode", "#!/bin/sh\necho /dev/mem: Permission denied >&2\nexit 1")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    real = replace(probes(), run=run_command)
    facts = collect_facts(tmp_path / "empty", real)
    assert "dmidecode needs root" in unseen_line(facts, "memory modules")


def test_network_cards_are_those_with_a_device(tmp_path):
    r730(tmp_path)
    nics = {nic.name: nic for nic in collect_facts(tmp_path, probes()).nics}
    assert set(nics) == {"eno1", "eno2", "ib0"}
    assert nics["eno1"] == NIC(
        name="eno1", speed_mbit=10_000, mtu=9000, is_up=True, numa_node=0, rdma_device=None,
        driver="ixgbe",
    )  # fmt: skip
    assert nics["ib0"] == NIC(
        name="ib0", speed_mbit=56_000, mtu=65520, is_up=True, numa_node=1, rdma_device="mlx4_0",
        driver="mlx4_core",
    )  # fmt: skip
    assert (nics["eno2"].is_up, nics["eno2"].speed_mbit) == (False, None)


def test_a_virtual_card_names_no_speed(tmp_path):
    r730(tmp_path)
    write(tmp_path, "sys/class/net/eno1/speed", -1)
    facts = collect_facts(tmp_path, probes())
    assert {nic.name: nic.speed_mbit for nic in facts.nics}["eno1"] is None
    assert "ethtool eno1" in unseen_line(facts, "speed of eno1")


def test_disks_are_whole_and_real(tmp_path):
    r730(tmp_path)
    disks = {disk.name: disk for disk in collect_facts(tmp_path, probes()).disks}
    assert {name: disk.kind for name, disk in disks.items()} == {
        "nvme0n1": "nvme",
        "sda": "scsi",
        "sdb": "sata",
    }
    assert disks["nvme0n1"] == Disk(
        name="nvme0n1", model="Samsung 970 EVO", num_bytes=931 * GIB, is_rotational=False,
        kind="nvme", numa_node=0,
    )  # fmt: skip
    assert disks["sda"].is_rotational
    assert disks["sdb"].numa_node is None


def test_nvidia_card_is_seen_through_nvml(tmp_path):
    r730(tmp_path)
    nvml = FakeNVML()
    gpu = collect_facts(tmp_path, probes(nvml=nvml)).gpus[0]
    assert (gpu.name, gpu.vendor, gpu.compute_capability) == ("Tesla P40", "nvidia", "6.1")
    assert (gpu.memory_bytes, gpu.power_limit_watts) == (24 * GIB, 250)
    # Idle, its link has fallen to the first generation.
    assert (gpu.pcie_generation, gpu.pcie_width) == (3, 16)
    assert (gpu.numa_node, gpu.driver) == (0, "550.54.15")
    assert nvml.num_open == 0


def test_amd_card_is_seen_through_sysfs(tmp_path):
    r730(tmp_path)
    gpu = collect_facts(tmp_path, probes(nvml=FakeNVML())).gpus[1]
    assert (gpu.name, gpu.vendor) == ("Vega 20 [Radeon Instinct MI50]", "amd")
    assert (gpu.compute_capability, gpu.memory_bytes) == ("gfx906", 16 * GIB)
    # The slot's link, not the one on the board; what it can do, though it idles.
    assert (gpu.pcie_generation, gpu.pcie_width) == (3, 8)
    assert (gpu.numa_node, gpu.power_limit_watts, gpu.driver) == (1, 225, "amdgpu")


def test_amd_architectures_have_a_hex_digit_and_old_kernels_one_speed(tmp_path):
    device = add_pci(
        tmp_path, "0000:03:00.0", vendor="0x1002", device="0x740f",
        current_link_speed="8.0 GT/s PCIe", current_link_width=16,
    )  # fmt: skip
    (tmp_path / device / "drm/renderD128").mkdir(parents=True)
    link(tmp_path, "sys/class/drm/card0/device", device)
    kfd = "sys/class/kfd/kfd/topology/nodes/1/properties"
    write(tmp_path, kfd, "gfx_target_version 90010\ndrm_render_minor 128")
    [gpu] = collect_facts(tmp_path, probes()).gpus
    assert (gpu.compute_capability, gpu.pcie_generation) == ("gfx90a", 3)
    assert gpu.name == "AMD 0x740f"
    assert (gpu.memory_bytes, gpu.numa_node) == (None, None)


def test_nvidia_card_without_its_driver_is_unseen(tmp_path):
    r730(tmp_path)
    facts = collect_facts(tmp_path, probes(r730_table()))
    assert [gpu.vendor for gpu in facts.gpus] == ["amd"]
    line = unseen_line(facts, "NVIDIA GPUs")
    assert line.startswith("NVIDIA GPUs: 1 on the PCI bus, but nvidia-ml-py is not installed")


def test_what_a_card_does_not_answer_is_unseen(tmp_path):
    r730(tmp_path)
    nvml = FakeNVML(DeviceGetEnforcedPowerLimit=None, DeviceGetPciInfo=None, DeviceGetName=None)
    facts = collect_facts(tmp_path, probes(r730_table(), nvml))
    assert (facts.gpus[0].power_limit_watts, facts.gpus[0].numa_node) == (None, None)
    assert facts.gpus[0].memory_bytes == 24 * GIB
    assert "power limit watts; nvidia-smi" in unseen_line(facts, "GPU ")
    assert_valid(facts)


def test_laptop_on_battery(tmp_path):
    laptop(tmp_path)
    facts = collect_facts(tmp_path, probes())
    assert_valid(facts)
    assert facts.power.on_battery is True
    assert "RAPL" in unseen_line(facts, "package power")
    write(tmp_path, "sys/class/power_supply/AC/online", 1)
    assert collect_facts(tmp_path, probes()).power.on_battery is False


def test_a_mouse_is_no_battery(tmp_path):
    write(tmp_path, "sys/class/power_supply/hid/type", "Battery")
    write(tmp_path, "sys/class/power_supply/hid/scope", "Device")
    write(tmp_path, "sys/class/power_supply/hid/status", "Discharging")
    assert collect_facts(tmp_path, probes()).power.on_battery is None


def container(root, cgroup, mountinfo):
    num_cpus = add_cpus(root, model="AMD EPYC 7302", sockets=1, cores=16, threads=1, governor=None)
    add_memory(root, gib=128, nodes=1, num_cpus=num_cpus)
    write(root, "proc/self/cgroup", cgroup)
    write(root, "proc/self/mountinfo", mountinfo)
    write(root, "proc/self/status", "Name:\tpython\nCpus_allowed_list:\t0-3,8")


def test_container_cgroup_v2_the_tightest_group_counts(tmp_path):
    container(
        tmp_path,
        "0::/kubepods.slice/pod1/app",
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw",
    )
    groups = "sys/fs/cgroup/kubepods.slice"
    write(tmp_path, f"{groups}/pod1/app/cpu.max", "max 100000")
    write(tmp_path, f"{groups}/pod1/app/memory.max", 16 * GIB)
    write(tmp_path, f"{groups}/pod1/cpu.max", "250000 100000")
    write(tmp_path, f"{groups}/pod1/memory.max", 8 * GIB)
    write(tmp_path, f"{groups}/cpu.max", "800000 100000")
    write(tmp_path, f"{groups}/memory.max", "max")
    write(tmp_path, f"{groups}/other/cpu.max", "10000 100000")
    facts = collect_facts(tmp_path, probes())
    assert_valid(facts)
    assert facts.usable.cpus == [0, 1, 2, 3, 8]
    assert (facts.usable.cpu_quota, facts.usable.memory_bytes) == (2.5, 8 * GIB)
    assert facts.memory.num_bytes == 128 * GIB
    assert facts.virtual == "kubepods"
    assert facts.cpu.governor is None
    assert "no cpufreq" in unseen_line(facts, "CPU governor")


def test_container_with_a_cgroup_namespace_sees_its_own_group_as_the_top(tmp_path):
    container(tmp_path, "0::/", "30 23 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup ro")
    write(tmp_path, ".dockerenv", "")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000")
    write(tmp_path, "sys/fs/cgroup/memory.max", 4 * GIB)
    facts = collect_facts(tmp_path, probes())
    assert (facts.usable.cpu_quota, facts.usable.memory_bytes) == (1.5, 4 * GIB)
    assert facts.virtual == "docker"


def test_container_cgroup_v1_finds_its_group_below_the_mount(tmp_path):
    """Without a namespace the group goes by the host's name, and is mounted at the top."""
    container(
        tmp_path,
        "4:memory:/docker/c0ffee/job\n2:cpu,cpuacct:/docker/c0ffee\n1:name=systemd:/docker/c0ffee",
        "31 23 0:27 /docker/c0ffee /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
        "32 23 0:28 /docker/c0ffee /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        "33 23 0:29 /docker/c0ffee /sys/fs/cgroup/systemd ro - cgroup cgroup rw,name=systemd",
    )
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", 300000)
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", 100000)
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", 12 * GIB)
    write(tmp_path, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", 9223372036854771712)
    facts = collect_facts(tmp_path, probes())
    assert_valid(facts)
    assert (facts.usable.cpu_quota, facts.usable.memory_bytes) == (3.0, 12 * GIB)
    assert facts.virtual == "docker"
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", -1)
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    usable = collect_facts(tmp_path, probes()).usable
    assert (usable.cpu_quota, usable.memory_bytes) == (None, 128 * GIB)


@pytest.mark.parametrize(
    ("group", "top"), [("/../../pod1/app", "/"), ("/", "/docker/c0ffee"), ("/elsewhere", "/docker")]
)
def test_a_group_outside_of_what_is_mounted_leaves_the_mount_itself(tmp_path, group, top):
    mount = f"30 23 0:26 {top} /sys/fs/cgroup ro - cgroup2 cgroup ro"
    container(tmp_path, f"0::{group}", mount)
    write(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000")
    write(tmp_path, "sys/pod1/app/cpu.max", "50000 100000")
    assert collect_facts(tmp_path, probes()).usable.cpu_quota == 1.5


@pytest.mark.parametrize(
    ("path", "text", "virtual"),
    [
        ("sys/class/dmi/id/sys_vendor", "QEMU", "qemu"),
        ("sys/class/dmi/id/product_name", "VMware7,1", "vmware"),
        ("proc/sys/kernel/osrelease", "5.15.90.1-microsoft-standard-WSL2", "wsl"),
        ("proc/cpuinfo", "processor : 0\nflags : sse hypervisor", "hypervisor"),
        ("run/systemd/container", "lxc", "lxc"),
        ("run/.containerenv", "", "podman"),
    ],
)
def test_virtual_machines_and_containers_show(tmp_path, path, text, virtual):
    write(tmp_path, path, text)
    assert collect_facts(tmp_path, probes()).virtual == virtual


def test_empty_root_is_unseen_and_valid(tmp_path):
    facts = collect_facts(tmp_path)
    assert_valid(facts)
    assert (facts.cpu.model, facts.cpu.cores, facts.memory.num_bytes) == ("", 0, 0)
    assert facts.numa == facts.gpus == facts.nics == facts.disks == []
    whats = " ".join(line.partition(":")[0] for line in facts.unseen)
    for part in ("CPU model", "CPU cores", "caches", "governor", "power limit", "NUMA", "memory",
                 "GPUs", "network", "disks", "package power", "product", "system", "container",
                 "usable CPUs"):  # fmt: skip
        assert part in whats


def test_a_system_without_proc_has_what_psutil_knows(tmp_path):
    facts = collect_facts(tmp_path, probes(basics=probes_of_this_machine().basics))
    assert_valid(facts)
    assert facts.system
    assert 0 < facts.cpu.cores <= facts.cpu.logical_cores == os.cpu_count()
    assert facts.memory.num_bytes == facts.usable.memory_bytes > 0
    assert facts.numa[0].cpus == facts.usable.cpus == list(range(facts.cpu.logical_cores))


def files_of(root):
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


RUBBISH = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"-1", b"0", b"9" * 30, b"0-99999999999", b"nan", b"\0\0", b": :\n:"]),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(found=st.data())
def test_rubbish_in_any_file_raises_nothing(tmp_path_factory, found):
    root = tmp_path_factory.mktemp("rubbish")
    laptop(root, cores=1)
    r730(root, cores=1)
    for path in found.draw(st.lists(st.sampled_from(files_of(root)), min_size=1, max_size=30)):
        path.write_bytes(found.draw(RUBBISH))
    table = r730_table().replace("32768 MB", found.draw(st.text(max_size=8)))
    assert_valid(collect_facts(root, probes(table, FakeNVML())))
    assert stale_because(settings_now(root, {}), settings_now(root, {})) == []
    cpu_mhz(root=root)
    watts_between(read_energy(root, 0.0), read_energy(root, 1.0))
    throttle_counts(root)


@pytest.mark.parametrize(("digits", "num_disks"), [(15, 4), (16, 0)])
def test_numbers_beyond_any_machine_are_none(tmp_path, digits, num_disks):
    """So large that what is computed from them would not fit into a profile's integers."""
    r730(tmp_path, cores=1)
    for path in files_of(tmp_path):
        path.write_text(re.sub(r"\d+", "9" * digits, path.read_text()))
    facts = collect_facts(tmp_path, probes(r730_table().replace("32768 MB", "999999 TB")))
    assert_valid(facts)
    assert len(facts.disks) == num_disks


def test_folders_in_place_of_files_raise_nothing(tmp_path):
    r730(tmp_path)
    for path in files_of(tmp_path):
        path.unlink()
        path.mkdir()
    assert_valid(collect_facts(tmp_path, probes()))


def test_this_machine_round_trips():
    facts = collect_facts()
    assert_valid(facts)
    assert 0 < facts.cpu.cores <= facts.cpu.logical_cores
    assert 0 < facts.usable.memory_bytes <= facts.memory.num_bytes
    if sys.platform == "linux":
        assert facts.cpu.logical_cores == os.sysconf("SC_NPROCESSORS_ONLN")
        assert set(facts.usable.cpus) == os.sched_getaffinity(0)
        assert "/proc/cpuinfo" not in " ".join(facts.unseen)


def facts_in_child(prepare):
    """What a process sees of itself after `prepare`, code that limits it."""
    code = (
        f"import os; {prepare}; import msgspec; "
        "from hetero.profile.facts.collect import collect_facts; "
        "print(msgspec.json.encode(collect_facts().usable).decode())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_pinned_process_may_use_its_cpus_only():
    cpu = max(os.sched_getaffinity(0))
    assert facts_in_child(f"os.sched_setaffinity(0, {{{cpu}}})")["cpus"] == [cpu]


def test_a_real_quota_is_seen():
    """In a group made for it, of whichever version this machine has."""
    v1, v2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    top = v1 if (v1 / "cpu.cfs_quota_us").exists() else v2
    group = top / f"hetero-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        try:
            if top == v1:
                (group / "cpu.cfs_quota_us").write_text("50000")
            else:
                (group / "cpu.max").write_text("50000 100000")
        except OSError as error:
            pytest.skip(f"no quota can be set: {error}")
        join = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
        assert facts_in_child(join)["cpu_quota"] == 0.5
    finally:
        group.rmdir()


def test_facts_load_light():
    code = (
        "import sys; import hetero.profile.facts.collect, hetero.profile.facts.state, "
        "hetero.profile.facts.meters, hetero.profile.facts.gpu_meter; "
        "print([m for m in ('torch', 'llama_cpp', 'pynvml', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True,
                         text=True, check=True)  # fmt: skip
    assert run.stdout.strip() == "[]"
