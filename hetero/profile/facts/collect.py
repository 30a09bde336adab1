"""All of a machine's facts at once. Nothing here raises: what can't be seen is said in `unseen`."""

from pathlib import Path

from hetero.profile.facts.cpu import cpu_facts
from hetero.profile.facts.disk import disk_facts
from hetero.profile.facts.gpu import gpu_facts
from hetero.profile.facts.host import product_name, system_name, virtualization
from hetero.profile.facts.memory import memory_facts
from hetero.profile.facts.network import nic_facts
from hetero.profile.facts.numa import numa_facts, usable_facts
from hetero.profile.facts.power import power_facts
from hetero.profile.facts.probes import Probes, no_probes, probes_of_this_machine
from hetero.profile.facts.report import Facts

_THIS_MACHINE = Path("/")


def collect_facts(root: Path = _THIS_MACHINE, probes: Probes | None = None) -> Facts:
    """root: of this machine, or a tree with another's /proc and /sys.
    probes: None: this machine's tools, and none for another's.
    """
    if probes is None:
        probes = probes_of_this_machine() if root == _THIS_MACHINE else no_probes()
    basics = probes.basics
    system, unseen = system_name(root, basics)
    product, unseen_product = product_name(root)
    cpu, unseen_cpu = cpu_facts(root, basics)
    numa, unseen_numa = numa_facts(root, basics)
    usable, unseen_usable = usable_facts(root, basics)
    memory, unseen_memory = memory_facts(root, probes)
    gpus, unseen_gpus = gpu_facts(root, probes.nvml)
    nics, unseen_nics = nic_facts(root)
    disks, unseen_disks = disk_facts(root)
    power, unseen_power = power_facts(root, basics)
    return Facts(
        system=system,
        virtual=virtualization(root),
        product=product,
        cpu=cpu,
        numa=numa,
        usable=usable,
        memory=memory,
        gpus=gpus,
        nics=nics,
        disks=disks,
        power=power,
        unseen=[
            *unseen,
            *unseen_product,
            *unseen_cpu,
            *unseen_numa,
            *unseen_usable,
            *unseen_memory,
            *unseen_gpus,
            *unseen_nics,
            *unseen_disks,
            *unseen_power,
        ],
    )
