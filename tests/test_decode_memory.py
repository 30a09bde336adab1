"""Decode nodes that this machine, or a container on it, has no room for are refused."""

import pytest
from machine_trees import GIB, r730, write

from hetero.decode.memory import check_memory
from hetero.errors import PlanError
from hetero.kv.layout import model_layout
from hetero.model.demo import DEMO_MODEL_PATH
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec

GROUP = "sys/fs/cgroup/user.slice"
SLOTS, CONTEXT_TOKENS = 2, 1024


@pytest.fixture
def machine(tmp_path):
    r730(tmp_path)
    write(tmp_path, "proc/meminfo", f"MemAvailable: {GIB // 1024} kB")
    return tmp_path


@pytest.fixture(scope="module")
def layout():
    return model_layout(gguf_to_spec(GGUFFile.open(DEMO_MODEL_PATH)), "q8_0", "f16")


def check(weight_bytes, layout, machine, num_nodes=1):
    sizes = {"slots": SLOTS, "context_tokens": CONTEXT_TOKENS, "num_nodes": num_nodes}
    check_memory(weight_bytes, layout, **sizes, root=machine)


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_weights_and_cells_of_all_nodes_fit_to_the_byte_or_are_refused(machine, layout, num_nodes):
    fits = GIB // num_nodes - SLOTS * CONTEXT_TOKENS * layout.token_bytes
    check(fits, layout, machine, num_nodes)
    with pytest.raises(PlanError, match=rf"{num_nodes} node\(s\) .* have 1,024\.00 MiB free"):
        check(fits + 1, layout, machine, num_nodes)


def test_a_containers_limit_counts_where_the_machine_has_more(machine, layout):
    check(GIB // 2, layout, machine)
    write(machine, f"{GROUP}/memory.max", GIB // 2)
    write(machine, f"{GROUP}/memory.current", GIB // 4)
    with pytest.raises(PlanError, match=r"have 256\.00 MiB free"):
        check(GIB // 2, layout, machine)
    # Files' pages are given back: they are no reason to refuse.
    write(machine, f"{GROUP}/memory.stat", f"inactive_file {GIB // 4}")
    with pytest.raises(PlanError, match=r"have 512\.00 MiB free"):
        check(GIB // 2, layout, machine)


def test_a_machine_with_less_than_its_containers_limit_counts(machine, layout):
    write(machine, f"{GROUP}/memory.max", 8 * GIB)
    write(machine, f"{GROUP}/memory.current", 0)
    with pytest.raises(PlanError, match=r"have 1,024\.00 MiB free"):
        check(2 * GIB, layout, machine)
