"""Machines as trees of /proc and /sys, to read facts from that this machine does not have."""

import subprocess
from types import SimpleNamespace

from hetero.profile.facts.probes import Basics, Probes

GIB = 2**30
_XEON_FLAGS = "fpu vme sse sse2 avx f16c avx2 fma"


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def link(root, path, target):
    """As sysfs has it: relative, and the target may be nothing but a name."""
    place = root / path
    place.parent.mkdir(parents=True, exist_ok=True)
    depth = len(place.parent.relative_to(root).parts)
    place.symlink_to("/".join([".."] * depth + [target]))


def add_cpus(root, *, model, sockets, cores, threads, flags=_XEON_FLAGS, governor="powersave"):
    """Linux's numbering on servers: even CPUs on socket 0, the second threads after all cores."""
    num_cores = sockets * cores
    num_cpus = num_cores * threads
    blocks = []
    for cpu in range(num_cpus):
        core, socket = cpu % num_cores, cpu % sockets
        siblings = ",".join(str(core + n * num_cores) for n in range(threads))
        neighbours = ",".join(map(str, range(socket, num_cpus, sockets)))
        here = f"sys/devices/system/cpu/cpu{cpu}"
        write(root, f"{here}/topology/physical_package_id", socket)
        write(root, f"{here}/topology/core_cpus_list", siblings)
        for index, (level, kind, size, shared) in enumerate(
            [(1, "Data", "32K", siblings), (1, "Instruction", "32K", siblings),
             (2, "Unified", "256K", siblings), (3, "Unified", "30M", neighbours)]
        ):  # fmt: skip
            for name, value in [("level", level), ("type", kind), ("size", size),
                                ("shared_cpu_list", shared)]:  # fmt: skip
                write(root, f"{here}/cache/index{index}/{name}", value)
        if governor:
            write(root, f"{here}/cpufreq/scaling_governor", governor)
            write(root, f"{here}/cpufreq/cpuinfo_max_freq", 3300000)
            write(root, f"{here}/cpufreq/scaling_cur_freq", 2400000 + 100000 * socket)
        write(root, f"{here}/thermal_throttle/core_throttle_count", 3 if core == 0 else 0)
        write(root, f"{here}/thermal_throttle/package_throttle_count", 5 + socket)
        blocks.append(
            f"processor\t: {cpu}\nvendor_id\t: GenuineIntel\nmodel\t\t: 63\nmodel name\t: {model}\n"
            f"cpu MHz\t\t: 2500.000\nphysical id\t: {socket}\nflags\t\t: {flags}\n"
        )
    write(root, "proc/cpuinfo", "\n".join(blocks))
    write(root, "sys/devices/system/cpu/online", f"0-{num_cpus - 1}")
    write(root, "sys/devices/system/cpu/smt/active", int(threads > 1))
    write(root, "proc/self/status", f"Name:\tpython\nCpus_allowed_list:\t0-{num_cpus - 1}")
    return num_cpus


def add_memory(root, *, gib, nodes, num_cpus):
    kib = gib * 2**20
    write(
        root,
        "proc/meminfo",
        f"MemTotal:       {kib} kB\nMemFree:        1024 kB\nHugePages_Total:      16\n"
        "HugePages_Free:       16\nHugepagesize:       2048 kB",
    )
    for node in range(nodes):
        here = f"sys/devices/system/node/node{node}"
        write(root, f"{here}/meminfo", f"Node {node} MemTotal:       {kib // nodes} kB")
        write(root, f"{here}/cpulist", ",".join(map(str, range(node, num_cpus, nodes))))
    write(root, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")


def add_rapl(root, *, packages, watts):
    for package in range(packages):
        here = f"sys/class/powercap/intel-rapl:{package}"
        write(root, f"{here}/name", f"package-{package}")
        write(root, f"{here}/energy_uj", 1_000_000)
        write(root, f"{here}/max_energy_range_uj", 262143328850)
        write(root, f"{here}/constraint_0_name", "long_term")
        write(root, f"{here}/constraint_0_power_limit_uw", watts * 1_000_000)
        write(root, f"{here}/constraint_1_name", "short_term")
        write(root, f"{here}/constraint_1_power_limit_uw", watts * 1_200_000)
        write(root, f"{here}/constraint_2_name", "peak_power")
        write(root, f"{here}/constraint_2_power_limit_uw", 1_000_000)
        inner = f"sys/class/powercap/intel-rapl:{package}:0"
        write(root, f"{inner}/name", "dram")
        write(root, f"{inner}/energy_uj", 77)


def add_pci(root, address, *, numa_node=None, behind="pci0000:00", driver=None, **files):
    """A device's folder below its bus; returns its path from the root."""
    here = f"sys/devices/{behind}/{address}"
    (root / here).mkdir(parents=True)
    if numa_node is not None:
        files["numa_node"] = numa_node
    for name, value in files.items():
        write(root, f"{here}/{name}", value)
    if driver:
        link(root, f"{here}/driver", f"sys/bus/pci/drivers/{driver}")
    link(root, f"sys/bus/pci/devices/{address}", here)
    return here


def add_nic(root, name, device, *, speed=None, mtu=1500, rdma=None, carrier=1):
    here = f"{device}/net/{name}"
    write(root, f"{here}/mtu", mtu)
    write(root, f"{here}/operstate", "up" if carrier else "down")
    write(root, f"{here}/carrier", carrier)
    if speed is not None:
        write(root, f"{here}/speed", speed)
    link(root, f"{here}/device", device)
    link(root, f"sys/class/net/{name}", here)
    if rdma:
        write(root, f"{device}/infiniband/{rdma}/ports/1/state", "4: ACTIVE")
        write(root, f"{device}/infiniband/{rdma}/ports/1/rate", "56 Gb/sec (4X FDR)")


def add_virtual_nic(root, name):
    write(root, f"sys/devices/virtual/net/{name}/mtu", 1500)
    link(root, f"sys/class/net/{name}", f"sys/devices/virtual/net/{name}")


def add_disk(root, name, device, *, gib, rotational, model=None, vendor=None):
    here = f"{device}/block/{name}"
    write(root, f"{here}/size", gib * 2**21)
    write(root, f"{here}/queue/rotational", rotational)
    for file, text in (("model", model), ("vendor", vendor)):
        if text:
            write(root, f"{device}/{file}", text)
    link(root, f"{here}/device", device)
    link(root, f"sys/block/{name}", here)


def add_virtual_disk(root, name):
    write(root, f"sys/devices/virtual/block/{name}/size", 2**21)
    link(root, f"sys/block/{name}", f"sys/devices/virtual/block/{name}")


def r730(root, cores=12):
    """Two E5-2680 v3, 8 DIMMs of 24; an Intel and a Mellanox card, two GPUs, four kinds of disk."""
    num_cpus = add_cpus(
        root, model="Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz", sockets=2, cores=cores, threads=2
    )
    add_memory(root, gib=256, nodes=2, num_cpus=num_cpus)
    add_rapl(root, packages=2, watts=120)
    write(root, "sys/class/dmi/id/product_name", "PowerEdge R730")
    write(root, "sys/class/dmi/id/sys_vendor", "Dell Inc.")
    for name, text in (("ostype", "Linux"), ("osrelease", "6.1.0-28-amd64"), ("arch", "x86_64")):
        write(root, f"proc/sys/kernel/{name}", text)
    write(root, "proc/self/cgroup", "0::/user.slice/user-1000.slice")
    write(root, "proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    write(root, "sys/devices/system/cpu/intel_pstate/no_turbo", 0)

    ixgbe = add_pci(root, "0000:01:00.0", numa_node=0, driver="ixgbe", vendor="0x8086")
    add_nic(root, "eno1", ixgbe, speed=10000, mtu=9000)
    mellanox = add_pci(
        root, "0000:82:00.0", numa_node=1, behind="pci0000:80/0000:80:02.0", driver="mlx4_core"
    )
    add_nic(root, "ib0", mellanox, mtu=65520, rdma="mlx4_0")
    off = add_pci(root, "0000:01:00.1", numa_node=0, driver="ixgbe")
    add_nic(root, "eno2", off, speed=-1, carrier=0)
    for name in ("lo", "docker0", "veth1a2b3c", "br-lan", "bond0", "wg0"):
        add_virtual_nic(root, name)

    nvme = add_pci(root, "0000:04:00.0", numa_node=0)
    add_disk(root, "nvme0n1", f"{nvme}/nvme/nvme0", gib=931, rotational=0, model="Samsung 970 EVO")
    raid = add_pci(root, "0000:03:00.0", numa_node=0)
    add_disk(root, "sda", f"{raid}/host0/target0:2:0/0:2:0:0", gib=3725, rotational=1,
             model="PERC H730 Mini", vendor="DELL")  # fmt: skip
    ahci = add_pci(root, "0000:00:11.4", numa_node=-1)
    add_disk(root, "sdb", f"{ahci}/ata1/host1/target1:0:0/1:0:0:0", gib=223, rotational=0,
             model="INTEL SSDSC2BB24", vendor="ATA")  # fmt: skip
    optical = f"{ahci}/ata2/host2/target2:0:0/2:0:0:0"
    add_disk(root, "sr0", optical, gib=1, rotational=1, model="DVD-ROM", vendor="HL-DT-ST")
    write(root, f"{optical}/type", 5)
    for name in ("loop0", "zram0", "dm-0", "md127"):
        add_virtual_disk(root, name)

    add_pci(root, "0000:03:10.0", numa_node=0, vendor="0x10de", **{"class": "0x030200"})
    add_mi50(root)


def add_mi50(root):
    """Behind the bridge on its own board, as Vega 20 is: x16 inside, the slot's x8 outside."""
    outer = "pci0000:80/0000:80:03.0"
    write(root, f"sys/devices/{outer}/max_link_speed", "8.0 GT/s PCIe")
    write(root, f"sys/devices/{outer}/current_link_speed", "2.5 GT/s PCIe")
    write(root, f"sys/devices/{outer}/current_link_width", 8)
    device = add_pci(
        root, "0000:85:00.0", numa_node=1, behind=f"{outer}/0000:83:00.0", driver="amdgpu",
        vendor="0x1002", device="0x66a1", max_link_speed="16.0 GT/s PCIe",
        current_link_speed="16.0 GT/s PCIe", current_link_width=16, mem_info_vram_total=16 * GIB,
        **{"class": "0x038000", "hwmon/hwmon3/power1_cap": 225_000_000},
    )  # fmt: skip
    (root / device / "drm/renderD129").mkdir(parents=True)
    link(root, "sys/class/drm/card1/device", device)
    write(root, "sys/class/drm/card1-DP-1/status", "disconnected")
    kfd = "sys/class/kfd/kfd/topology/nodes"
    write(root, f"{kfd}/0/properties", "cpu_cores_count 48\ngfx_target_version 0")
    write(root, f"{kfd}/1/properties", "simd_count 240\ngfx_target_version 90006\n"
          "vendor_id 4098\ndevice_id 26273\ndrm_render_minor 129")  # fmt: skip
    write(
        root,
        "usr/share/misc/pci.ids",
        "# PCI ids\n1000  Broadcom / LSI\n\t66a1  Another maker's\n"
        "1002  Advanced Micro Devices, Inc. [AMD/ATI]\n\t66a0  Vega 20 [Radeon Pro VII]\n"
        "\t66a1  Vega 20 [Radeon Instinct MI50]\n\t\t1002 0834  Radeon Instinct MI50 32GB\n"
        "10de  NVIDIA Corporation\n\t1b38  GP102GL [Tesla P40]",
    )


def laptop(root, cores=8):
    num_cpus = add_cpus(root, model="AMD Ryzen 7 PRO 6850U", sockets=1, cores=cores, threads=2)
    add_memory(root, gib=32, nodes=1, num_cpus=num_cpus)
    write(root, "sys/class/power_supply/AC/type", "Mains")
    write(root, "sys/class/power_supply/AC/online", 0)
    write(root, "sys/class/power_supply/BAT0/type", "Battery")
    write(root, "sys/class/power_supply/BAT0/status", "Discharging")
    write(root, "sys/class/power_supply/hidpp_battery_0/type", "Battery")
    write(root, "sys/class/power_supply/hidpp_battery_0/scope", "Device")
    write(root, "sys/devices/system/cpu/cpufreq/boost", 1)


def dmi_table(modules):
    """What dmidecode prints. modules: (locator, bank, GiB, speed) or (locator, bank, 0, 0)."""
    text = (
        "# dmidecode 3.4\nGetting SMBIOS data from sysfs.\nSMBIOS 2.8 present.\n\n"
        "Handle 0x1000, DMI type 16, 23 bytes\nPhysical Memory Array\n"
        "\tLocation: System Board Or Motherboard\n\tUse: System Memory\n"
        "\tError Correction Type: Multi-bit ECC\n\tMaximum Capacity: 1536 GB\n"
        f"\tError Information Handle: Not Provided\n\tNumber Of Devices: {len(modules)}\n"
    )
    for number, (locator, bank, gib, speed) in enumerate(modules):
        text += (
            f"\nHandle 0x{0x1100 + number:X}, DMI type 17, 40 bytes\nMemory Device\n"
            "\tArray Handle: 0x1000\n\tError Information Handle: Not Provided\n"
            f"\tTotal Width: {'72 bits' if gib else 'Unknown'}\n"
            f"\tData Width: {'64 bits' if gib else 'Unknown'}\n"
            f"\tSize: {f'{gib * 1024} MB' if gib else 'No Module Installed'}\n"
            f"\tForm Factor: DIMM\n\tSet: 1\n\tLocator: {locator}\n\tBank Locator: {bank}\n"
            f"\tType: {'DDR4' if gib else 'Unknown'}\n\tType Detail: Synchronous Registered\n"
            f"\tSpeed: {f'{speed + 267} MT/s' if gib else 'Unknown'}\n"
            "\tManufacturer: 00CE00B300CE\n\tSerial Number: 40000000\n"
            "\tPart Number: M393A4K40BB1-CRC\n\tRank: 2\n"
            f"\tConfigured Memory Speed: {f'{speed} MT/s' if gib else 'Unknown'}\n"
        )
    return text


def r730_table():
    """8 modules of 32 GB in the first slots of each channel, as Dell's manual asks for."""
    return dmi_table(
        [(f"{socket}{slot}", "Not Specified", 32 if slot <= 4 else 0, 2133)
         for socket in "AB" for slot in range(1, 13)]
    )  # fmt: skip


class FakeNVML:
    """One P40, or what a test makes of it: `answers` replaces an answer, None is an error."""

    class NVMLError(Exception):
        pass

    def __init__(self, **answers):
        self.num_open = 0
        self._answers = {
            "SystemGetDriverVersion": "550.54.15",
            "DeviceGetCount": 1,
            "DeviceGetHandleByIndex": 0,
            "DeviceGetName": b"Tesla P40",
            "DeviceGetMemoryInfo": SimpleNamespace(total=24 * GIB),
            "DeviceGetCudaComputeCapability": (6, 1),
            "DeviceGetMaxPcieLinkGeneration": 3,
            "DeviceGetCurrPcieLinkGeneration": 1,
            "DeviceGetCurrPcieLinkWidth": 16,
            "DeviceGetEnforcedPowerLimit": 250_000,
            "DeviceGetPciInfo": SimpleNamespace(busId="00000000:03:10.0"),
            "DeviceGetPowerUsage": 48_500,
            "DeviceGetCurrentClocksEventReasons": 0x4 | 0x20,
            "DeviceGetCurrentClocksThrottleReasons": 0x1,
        } | answers

    def nvmlInit(self):
        self.num_open += 1

    def nvmlShutdown(self):
        self.num_open -= 1

    def __getattr__(self, name):
        answer = self._answers[name.removeprefix("nvml")]

        def ask(*arguments):
            if answer is None:
                raise self.NVMLError("Not Supported")
            return answer

        return ask


def probes(dmidecode=None, nvml=None, basics=None):
    """dmidecode: what it prints, or raises; None: not installed. nvml: None: not installed."""

    def run(command):
        assert command[0] == "dmidecode"
        if isinstance(dmidecode, str):
            return dmidecode
        raise dmidecode or FileNotFoundError("dmidecode")

    def load():
        if nvml is None:
            raise ImportError("pynvml")
        return nvml

    return Probes(run=run, nvml=load, basics=basics or Basics())


def refused():
    """dmidecode's end for a user who is not root."""
    return subprocess.CalledProcessError(
        1,
        ["dmidecode"],
        output="# dmidecode 3.4\n",
        stderr="/sys/firmware/dmi/tables/smbios_entry_point: Permission denied\n"
        "Can't read memory from /dev/mem\n",
    )
