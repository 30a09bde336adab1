"""Where engines run best is tried: on one NUMA node and on all, weights read and mapped.

Interleaved memory: test_interleaving.py.
"""

import math
import os

import psutil
import pytest
from node_profiles import node_profile

from hetero.cli.model import model_path
from hetero.errors import EngineError
from hetero.kv.layout import model_layout
from hetero.machine.interleaving import can_interleave
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.profile.node import place as place_module
from hetero.profile.node.place import FoundPlace, Job, Place, find_place
from hetero.profile.node.points import Domain
from hetero.profile.node.settings import decodes_better_unified, role_settings, typical_batch

CPUS = sorted(os.sched_getaffinity(0))
# Any partition may stand for nodes; where there is but one CPU, it stands for both.
TWO_NODES = {0: CPUS[:1], 1: CPUS[-1:]}
DOMAIN = Domain(2, 256, 64)


def job(threads=None):
    path = model_path("demo")
    layout = model_layout(gguf_to_spec(GGUFFile.open(path)), "q8_0", "q8_0")
    return Job(model=path, types=("q8_0", "q8_0"), layout=layout, domain=DOMAIN, threads=threads)


@pytest.fixture
def pretend(monkeypatch):
    """Seconds of both roles by what a place is called, in place of trying; what is not named
    fails."""

    def answer(seconds):
        def tried(place, job, deadline, num_nodes, say):
            words = place_module._words(place, job, num_nodes)
            if words not in seconds:
                raise EngineError("need memory, have none")
            return dict(zip(("decode", "prefill"), seconds[words], strict=True))

        monkeypatch.setattr(place_module, "_tried", tried)
        monkeypatch.setattr(place_module, "can_interleave", lambda: True)

    return answer


def test_one_node_and_all_are_tried_in_processes_of_their_own():
    before = set(psutil.Process().children())
    said = []
    found = find_place(TWO_NODES, [0, 1], job(), 60.0, said.append)
    kept = "node 0, 1 threads" if found.place.node == 0 else "all nodes, 2 threads"
    spread = {"all nodes, interleaved, 2 threads, read"} if can_interleave() else set()
    for role in ("decode", "prefill"):
        assert found.tried[role].keys() == {
            "node 0, 1 threads, read",
            "all nodes, 2 threads, read",
            f"{kept}, mmap",
            *spread,
        }
        assert all(seconds > 0 for seconds in found.tried[role].values())
    assert len(said) >= 3  # what seems faster is tried once more
    assert set(os.sched_getaffinity(0)) == set(CPUS)
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize(
    ("all_nodes", "node"),
    [
        ((0.5, 0.5), None),
        ((0.5, 1.0), None),
        ((1.03, 1.03), None),
        ((0.5, 2.5), 0),
        ((1.1, 1.1), 0),
    ],
)
def test_one_node_is_taken_where_it_is_clearly_faster_than_all(pretend, all_nodes, node):
    pretend(
        {
            "node 0, 2 threads, read": (1.0, 1.0),
            "all nodes, 3 threads, read": all_nodes,
            "all nodes, interleaved, 3 threads, read": (9.0, 9.0),
            "node 0, 2 threads, mmap": (1.0, 1.0),
            "all nodes, 3 threads, mmap": (1.0, 1.0),
        }
    )
    found = find_place({0: [0, 1], 1: [2]}, [0, 1], job(), 60.0, lambda line: None)
    assert found.place == Place((0, 1) if node == 0 else (0, 1, 2), node, "read")


def test_weights_are_mapped_where_that_is_clearly_faster(pretend):
    pretend({"2 threads, read": (1.0, 1.0), "2 threads, mmap": (0.9, 0.9)})
    assert find_place({0: [0, 1]}, [0], job(), 60.0, print).place.load == "mmap"


def test_what_was_faster_but_once_is_not_taken(monkeypatch):
    seconds = {"read": iter([1.0, 1.0]), "mmap": iter([0.9, 1.0])}

    def tried(place, job, deadline, num_nodes, say):
        return dict.fromkeys(("decode", "prefill"), next(seconds[place.load]))

    monkeypatch.setattr(place_module, "_tried", tried)
    assert find_place({0: [0, 1]}, [0], job(), 60.0, print).place.load == "read"


def test_a_node_too_small_for_the_model_is_not_tried(pretend):
    ways = ("2 threads, read", "interleaved, 2 threads, read", "2 threads, mmap")
    pretend({f"all nodes, {way}": (1.0, 1.0) for way in ways})
    found = find_place({0: [0], 1: [1]}, [], job(), 60.0, print)
    assert (found.place.node, found.place.cpus) == (None, (0, 1))


def test_what_fails_is_said_and_what_was_tried_is_kept(pretend):
    """And the ways after it are tried."""
    tried = {"all nodes, 2 threads, read": (1.0, 1.0), "all nodes, 2 threads, mmap": (0.9, 0.9)}
    pretend(tried)
    said = []
    found = find_place({0: [0], 1: [1]}, [0, 1], job(), 60.0, said.append)
    assert found.place == Place((0, 1), None, "mmap")
    assert set(found.tried["decode"]) == set(tried)
    assert said == [
        f"{way} threads, read: not tried: need memory, have none"
        for way in ("node 0, 1", "all nodes, interleaved, 2")
    ]


def test_where_nothing_can_be_tried_the_first_way_stays(pretend):
    pretend({})
    said = []
    found = find_place({0: [0], 1: [1]}, [0, 1], job(), 60.0, said.append)
    assert (found.place, found.tried) == (Place((0, 1), None, "read"), {})
    assert said == ["all nodes, 2 threads, read: not tried: need memory, have none"]


def test_without_time_nothing_is_tried():
    before = set(psutil.Process().children())
    said = []
    found = find_place(TWO_NODES, [0, 1], job(threads=1), 0.0, said.append)
    everywhere = tuple(cpu for cpus in TWO_NODES.values() for cpu in cpus)
    assert found == FoundPlace(Place(everywhere, None, "read"), {})
    assert "not tried: need time" in said[-1]
    assert set(psutil.Process().children()) <= before


def test_a_trial_that_can_not_load_its_model_ends_trying(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    said = []
    broken = Job(
        model=path, types=("q8_0", "q8_0"), layout=job().layout, domain=DOMAIN, threads=None
    )
    assert find_place({0: CPUS[:1]}, [0], broken, 60.0, said.append).tried == {}
    assert "broken.gguf: llama.cpp can't load it" in said[0]


def with_speeds(streams, unified):
    """Decode fits of both caches, so much slower than one another."""
    return [
        fit
        for is_unified, slower in ((False, streams), (True, unified))
        for fit in node_profile(unified=is_unified, slower=slower).fits
    ]


@pytest.mark.parametrize(("unified", "is_better"), [(0.5, True), (0.98, False), (2.0, False)])
def test_decode_gets_the_cache_that_its_fits_say_is_clearly_faster(unified, is_better):
    fits = with_speeds(1.0, unified)
    assert decodes_better_unified(fits, DOMAIN) == is_better
    found = FoundPlace(Place((0, 1), None, "mmap"), {"decode": {"2 threads, mmap": 1.0}})
    threads = {"decode": 2, "prefill": 1}
    tried = {"decode": {2: 1.0}, "prefill": {1: 2.0}}
    settings = role_settings(found, threads, tried, fits, DOMAIN)
    assert {role: one.unified for role, one in settings.items()} == {
        "decode": is_better,
        "prefill": True,
    }
    assert settings["decode"].tried == {"2 threads, mmap": 1.0, "2 threads": 1.0}
    assert (settings["decode"].cpus, settings["decode"].load) == ([], "mmap")


def test_streams_where_only_they_were_measured():
    assert not decodes_better_unified(node_profile(unified=False).fits, DOMAIN)
    assert not decodes_better_unified(node_profile(unified=True).fits, DOMAIN)


def test_a_typical_batch_is_half_full():
    assert typical_batch(Domain(8, 4096, 512)) == [512, 1024, 1536, 2048]
    assert typical_batch(Domain(1, 1, 1)) == [1]
    assert math.prod(typical_batch(Domain(255, 64, 64))) > 0
