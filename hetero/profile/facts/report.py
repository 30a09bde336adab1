"""What a machine is made of, as far as it lets itself be seen. Nothing here is measured.

None, 0 or "": could not be seen; `Facts.unseen` says why, and what would show it.
"""

import msgspec


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Cache(_Part, frozen=True, kw_only=True):
    """One kind of cache: how large each is, and how many logical CPUs share it."""

    level: int
    kind: str  # "data", "instruction", "unified"
    num_bytes: int
    shared_by: int


class CPU(_Part, frozen=True, kw_only=True):
    model: str
    sockets: int
    cores: int  # physical
    logical_cores: int
    isa: list[str]  # those that engines choose kernels by: "avx2", "avx512_vnni", "asimddp" ...
    caches: list[Cache]
    max_mhz: float | None
    governor: str | None
    power_limit_watts: float | None  # of one package, as RAPL has it


class NumaNode(_Part, frozen=True, kw_only=True):
    node: int
    cpus: list[int]
    memory_bytes: int


class Usable(_Part, frozen=True, kw_only=True):
    """What this process may use of the machine: less in a container, or under taskset."""

    cpus: list[int]
    cpu_quota: float | None  # cores' worth of time that the cgroup allows; None: all
    memory_bytes: int  # the cgroup's limit, or all there is


class Memory(_Part, frozen=True, kw_only=True):
    num_bytes: int
    channels: int | None  # of 64 bits, with a module, of all sockets
    modules: int | None
    kind: str | None  # "DDR4"
    mega_transfers: int | None  # per second, as configured
    huge_pages: int  # reserved, of `huge_page_bytes`
    huge_page_bytes: int | None
    transparent_huge_pages: str | None  # "always", "madvise", "never"

    @property
    def nominal_gb_s(self) -> float | None:
        """8 bytes per channel and transfer."""
        if self.channels is None or self.mega_transfers is None:
            return None
        return 8e-3 * self.channels * self.mega_transfers


class GPU(_Part, frozen=True, kw_only=True):
    index: int
    name: str
    vendor: str  # "nvidia", "amd"
    memory_bytes: int | None
    compute_capability: str | None  # "8.6"; AMD: the architecture, "gfx906"
    pcie_generation: int | None  # that card and slot can do; idle links fall below it
    pcie_width: int | None  # as negotiated
    numa_node: int | None
    power_limit_watts: float | None
    driver: str | None


class NIC(_Part, frozen=True, kw_only=True):
    name: str
    speed_mbit: int | None  # as negotiated; None: down, or virtual
    mtu: int
    is_up: bool
    numa_node: int | None
    rdma_device: str | None
    driver: str | None


class Disk(_Part, frozen=True, kw_only=True):
    name: str
    model: str | None
    num_bytes: int
    is_rotational: bool | None
    kind: str  # "nvme", "sata", "virtual" ...
    numa_node: int | None


class Power(_Part, frozen=True, kw_only=True):
    on_battery: bool | None  # None: no battery
    has_rapl: bool  # package energy is readable


class Facts(_Part, frozen=True, kw_only=True):
    system: str  # kernel and architecture
    virtual: str | None  # hypervisor or container, where one shows
    product: str | None  # "PowerEdge R730"
    cpu: CPU
    numa: list[NumaNode]
    usable: Usable
    memory: Memory
    gpus: list[GPU]
    nics: list[NIC]
    disks: list[Disk]
    power: Power
    unseen: list[str]  # what could not be seen, why, and the command that would show it
