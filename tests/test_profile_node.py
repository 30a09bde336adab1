"""`hetero profile node` on this machine, and the parts that decide what it measures and says."""

import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager
from statistics import median
from types import SimpleNamespace

import psutil
import pytest
from machine_trees import GIB, laptop, probes, r730, r730_table, write
from tiny_models import tiny_shape

from hetero.cli import main, profile_node
from hetero.cli.model import model_path
from hetero.errors import PlanError
from hetero.kv.layout import model_layout
from hetero.kv.types import kv_type
from hetero.llama.context import Context, ContextConfig
from hetero.llama.library import captured_log
from hetero.llama.model import Model
from hetero.machine.free_memory import free_memory_bytes
from hetero.model.gguf_file import GGUFFile
from hetero.model.spec import gguf_to_spec
from hetero.profile.document import document, read_profile
from hetero.profile.facts.collect import collect_facts
from hetero.profile.facts.report import Power
from hetero.profile.node.cores import engine_cpus
from hetero.profile.node.memory import check_memory, compute_bytes
from hetero.profile.node.noise import CPUWatch, Taken, judge
from hetero.profile.node.pilot import PilotLog
from hetero.profile.node.points import Domain
from hetero.profile.node.soak import soak
from hetero.profile.node.threads import best, candidates, time_threads
from hetero.profile.node_profile import MachineProfile, NodeProfile

SMALL = ["--budget", "6", "--slots", "2", "--context", "256", "--chunk", "64", "--threads", "1"]
MAINS = Power(on_battery=None, has_rapl=False)


def hog():
    """Takes a core until it is killed."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


@contextmanager
def hogs(count):
    running = [hog() for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def logged(memory=(), compute=()):
    logs = {"memory": PilotLog(), "compute": PilotLog()}
    for name, seconds in (("memory", memory), ("compute", compute)):
        for each in seconds:
            logs[name].add([each])
    return logs


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "demo.yaml"
    command = [sys.executable, "-m", "hetero", "profile", "node", "-m", "demo", *SMALL]
    run = subprocess.run([*command, "-o", str(path), "--json"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return read_profile(path), json.loads(run.stdout), run.stderr


def test_a_profile_has_every_part_of_a_node(profiled):
    profile, printed, progress = profiled
    assert isinstance(profile, NodeProfile)
    assert printed == json.loads(json.dumps(document(profile)))
    measured = [fit for fit in profile.fits if fit.source == "fitted"]
    assert {(fit.role, fit.unified, fit.kv_k) for fit in measured} == {
        (role, unified, kv)
        for role in ("decode", "prefill")
        for unified in (False, True)
        for kv in ("q8_0", "f16")
    }
    for fit in measured:
        assert fit.samples
        if fit.role == "decode":
            assert fit.step_s([100, 100]) > 0
        else:
            assert fit.prefill_s(200) > fit.prefill_s(10) > 0
    assert {(fit.kv_k, fit.kv_v) for fit in profile.fits if fit.source == "estimated"} == {
        ("q8_0", "q4_0"),
        ("q4_0", "q4_0"),
    }
    assert [codec.kv_k for codec in profile.codecs] == ["q8_0", "f16"]
    assert all(codec.pack_gb_s > 0 and codec.restore_gb_s > 0 for codec in profile.codecs)
    assert [run.beside.split()[0] for run in profile.co_runs][:3] == [
        "prefill",
        "restores",
        "sealed",
    ]
    assert profile.ceilings.read_gb_s
    assert set(profile.noise.pilot_s) == {"memory", "compute"}
    assert profile.settings["decode"].tried["1 threads"] > 0
    assert profile.settings["prefill"].unified
    assert "wrote " in progress


def test_a_measured_step_is_predicted_from_its_own_profile(profiled):
    """Not how well, which is a benchmark's: on a busy machine a sample may be hit. But the
    typical one lies near its fit, of every cache."""
    profile, _, _ = profiled
    for fit in profile.fits:
        ratios = [
            fit.cost.seconds(sample.work) / (sample.seconds * sample.speed)
            for sample in fit.samples
        ]
        if fit.source == "fitted":
            assert 0.7 < median(ratios) < 1.4, (fit.role, fit.kv_k, fit.unified, ratios)


def test_more_work_costs_more(profiled):
    """By fits of real samples: more rows, longer contexts, later chunks."""
    profile, _, _ = profiled
    for fit in profile.fits:
        if fit.role == "decode":
            assert fit.step_s([64]) <= fit.step_s([250]) <= fit.step_s([250, 250])
        else:
            assert fit.chunk_s(16) < fit.chunk_s(64)
            assert fit.chunk_s(64, 0) <= fit.chunk_s(64, 192)
            assert fit.prefill_s(256) > 2 * fit.chunk_s(64)


def test_samples_lie_in_what_was_asked_for(profiled):
    profile, _, _ = profiled
    for fit in profile.fits:
        most_rows = 2 if fit.role == "decode" else 64
        for sample in fit.samples:
            assert 1 <= sample.work.rows <= most_rows
            assert sample.work.cells <= 2 * 256 + most_rows
            assert 0.2 < sample.speed < 5


@pytest.mark.parametrize("sizes", [["--chunk", "16"], ["--chunk", "4096", "--context", "64"]])
def test_chunks_shorter_than_usual_or_longer_than_a_context_are_measured(sizes, tmp_path):
    path = tmp_path / "p.yaml"
    common = ["--budget", "5", "--slots", "2", "--threads", "1", "--kv", "q8_0"]
    run = main.main(["profile", "node", "-m", "demo", *common, *sizes, "-o", str(path)])
    assert run == 0
    longest = 16 if "16" in sizes else 64
    assert {fit.chunk_tokens for fit in read_profile(path).fits} == {longest}


def test_without_a_model_a_profile_is_of_the_machine(tmp_path, capsys):
    path = tmp_path / "machine.yaml"
    assert main.main(["profile", "node", "--budget", "5", "-o", str(path)]) == 0
    profile = read_profile(path)
    assert isinstance(profile, MachineProfile)
    assert profile.facts.cpu.cores >= 1
    assert "memory, " in capsys.readouterr().out


def test_on_one_cpu_of_several_only_that_one_is_used(tmp_path):
    path = tmp_path / "one.yaml"
    only = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(only), sys.executable, "-m", "hetero", "profile", "node"]
    run = subprocess.run([*command, "--budget", "5", "-o", str(path)], capture_output=True)
    assert run.returncode == 0, run.stderr
    profile = read_profile(path)
    assert profile.facts.usable.cpus == [only]
    assert profile.ceilings.cores == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-m", "demo", "--shape", "llama-3.1-8b"], "need --model FILE or --shape NAME, have both"),
        (["--shape", "llama-3.1-9b"], "llama-3.1-8b"),
        (["-m", "demo", "--kv", "q9_9"], "q9_9"),
        (["-m", "demo", "--soak", "soon"], "soak: need a time like 10m, 90s or 1h, have 'soon'"),
        (["-m", "nowhere.gguf"], "nowhere.gguf"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_measured(arguments, complaint, capsys):
    assert main.main(["profile", "node", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def spec_of(name):
    return gguf_to_spec(GGUFFile.open(model_path(name)))


def test_a_containers_memory_is_what_counts(tmp_path):
    """Its limit, less what it holds; files' pages are given back."""
    r730(tmp_path)
    mib = 2**20
    write(tmp_path, "proc/meminfo", f"MemTotal: {256 * mib} kB\nMemAvailable: {200 * mib} kB")
    assert free_memory_bytes(tmp_path) == 200 * GIB
    group = "sys/fs/cgroup/user.slice"
    write(tmp_path, f"{group}/memory.max", 4 * GIB)
    write(tmp_path, f"{group}/memory.current", 3 * GIB)
    assert free_memory_bytes(tmp_path) == GIB
    write(tmp_path, f"{group}/memory.stat", f"anon 77\nactive_file {GIB}\ninactive_file {GIB}")
    assert free_memory_bytes(tmp_path) == 3 * GIB
    # The tightest on the way up counts, and it may hold more than its limit for a moment.
    write(tmp_path, f"{group}/user-1000.slice/memory.max", 2 * GIB)
    write(tmp_path, f"{group}/user-1000.slice/memory.current", 2 * GIB + 5)
    assert free_memory_bytes(tmp_path) == 0


def test_a_container_of_version_1_counts_the_groups_below(tmp_path):
    r730(tmp_path)
    write(tmp_path, "proc/meminfo", "MemAvailable: 999999999 kB")
    write(tmp_path, "proc/self/cgroup", "5:memory:/docker/c0ffee")
    write(
        tmp_path,
        "proc/self/mountinfo",
        "32 23 0:28 /docker/c0ffee /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
    )
    group = "sys/fs/cgroup/memory"
    write(tmp_path, f"{group}/memory.limit_in_bytes", 8 * GIB)
    write(tmp_path, f"{group}/memory.usage_in_bytes", 3 * GIB)
    write(tmp_path, f"{group}/memory.stat", f"inactive_file 5\ntotal_inactive_file {GIB}")
    assert free_memory_bytes(tmp_path) == 6 * GIB


def test_a_node_that_a_container_has_no_room_for_is_refused(tmp_path):
    r730(tmp_path)
    write(tmp_path, "proc/meminfo", "MemAvailable: 999999999 kB")
    spec, domain = spec_of("demo"), Domain(4, 1024, 128)
    layouts = [model_layout(spec, *types) for types in (("q8_0", "q8_0"), ("f16", "f16"))]
    need_bytes = check_memory(spec, layouts, domain, tmp_path)
    # Weights, a context each and one that they are restored from, at the larger type; and more.
    assert need_bytes > spec.weight_bytes + 5 * 1024 * layouts[1].token_bytes
    group = "sys/fs/cgroup/user.slice"
    write(tmp_path, f"{group}/memory.max", need_bytes + 100)
    write(tmp_path, f"{group}/memory.current", 0)
    assert check_memory(spec, layouts, domain, tmp_path) == need_bytes
    write(tmp_path, f"{group}/memory.current", 101)
    with pytest.raises(PlanError, match="of memory for the weights and 4 contexts of 1024 tokens"):
        check_memory(spec, layouts, domain, tmp_path)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("domain", [Domain(8, 4096, 512), Domain(2, 256, 64), Domain(64, 64, 8)])
def test_what_a_step_computes_in_is_counted(unified, domain):
    """Against what llama.cpp says it takes."""
    kind = kv_type("q8_0").ggml_id
    config = ContextConfig(
        num_sequences=domain.max_sequences,
        tokens_per_sequence=domain.context_tokens,
        unified=unified,
        k_ggml_type=kind,
        v_ggml_type=kind,
        num_threads=1,
        batch_tokens=max(domain.chunk_tokens, domain.max_sequences),
    )
    with Model(model_path("demo")) as model, captured_log(logging.DEBUG) as lines:
        Context(model, config).close()
    taken = [
        re.search(r"reserve: +CPU compute buffer size = +([0-9.]+) MiB", line) for line in lines
    ]
    [mib] = [float(found[1]) for found in taken if found]
    assert compute_bytes(spec_of("demo"), domain) >= 2**20 * mib


def test_contexts_beyond_memory_are_refused_with_the_way_out(tmp_path, capsys):
    sizes = ["--slots", "255", "--context", "1048576", "--budget", "5"]
    assert main.main(["profile", "node", "-m", "demo", *sizes, "-o", str(tmp_path / "p")]) in (1, 2)
    assert "fewer --slots or a shorter --context" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


SHAPE = ["profile", "node", "--shape", "llama-3.1-70b-q4_k_m", "--budget", "5"]


def test_random_weights_that_memory_can_not_hold_are_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("hetero.profile.node.memory.free_memory_bytes", lambda root: 8 * GIB)
    assert main.main([*SHAPE, "-o", str(tmp_path / "p.yaml")]) == 1
    said = capsys.readouterr().err
    assert "GiB of memory for the weights and 8 contexts of 4096 tokens, have 8.0 GiB" in said
    assert "writing" not in said
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_can_not_be_written_is_named_with_the_way_out(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("hetero.profile.node.memory.free_memory_bytes", lambda root: 800 * GIB)
    assert main.main([*SHAPE, "-o", str(tmp_path / "p.yaml")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'file' / 'hetero' / 'shapes'}: can't write it: " in said
    assert "let XDG_CACHE_HOME name a folder" in said


def test_random_weights_are_written_once_and_what_is_written_is_said(tmp_path, monkeypatch, capsys):
    tiny = tiny_shape()
    monkeypatch.setattr("hetero.model.shapes.SHAPES", {tiny.name: tiny})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ["profile", "node", "--shape", f"{tiny.name}-q8_0", *SMALL, "--kv", "q8_0"]
    path = tmp_path / "p.yaml"
    weights = tmp_path / "hetero" / "shapes" / f"{tiny.name}-q8_0.gguf"
    assert main.main([*arguments, "-o", str(path)]) == 0
    said = capsys.readouterr().err
    assert re.search(rf"writing [0-9.]+ MiB of random weights to {weights}\n", said)
    assert f"wrote {path}\n" in said
    assert main.main([*arguments, "-o", str(path)]) == 0
    said = capsys.readouterr().err
    assert "writing" not in said
    assert f"replaced {path}\n" in said


@pytest.mark.parametrize("text", ["Q8_0,F16", "q8_0,f16"])
def test_cache_types_are_known_in_any_case(text):
    assert profile_node._kv_types(text) == [("q8_0", "q8_0"), ("f16", "f16")]


def test_engines_get_one_cpu_of_each_core_by_node(tmp_path):
    r730(tmp_path, cores=4)  # 2 sockets of 4 cores, 16 threads; even CPUs on socket 0
    facts = collect_facts(tmp_path, probes(r730_table()))
    assert engine_cpus(facts, tmp_path) == {0: [0, 2, 4, 6], 1: [1, 3, 5, 7]}


def test_engines_keep_to_the_cpus_that_are_allowed(tmp_path):
    r730(tmp_path, cores=4)
    # CPU 10 is the second thread of core 2.
    write(tmp_path, "proc/self/status", "Name:\tpython\nCpus_allowed_list:\t0,2,10,13")
    facts = collect_facts(tmp_path, probes(r730_table()))
    assert engine_cpus(facts, tmp_path) == {0: [0, 2], 1: [13]}


def test_a_containers_quota_is_so_many_cpus(tmp_path):
    r730(tmp_path, cores=4)
    write(tmp_path, "sys/fs/cgroup/user.slice/cpu.max", "550000 100000")
    facts = collect_facts(tmp_path, probes(r730_table()))
    assert facts.usable.cpu_quota == 5.5
    assert engine_cpus(facts, tmp_path) == {0: [0, 2, 4, 6], 1: [1]}
    write(tmp_path, "sys/fs/cgroup/user.slice/cpu.max", "50000 100000")
    facts = collect_facts(tmp_path, probes(r730_table()))
    assert engine_cpus(facts, tmp_path) == {0: [0]}


def test_a_quiet_machine_is_not_noisy():
    noise = judge(logged([1.0, 1.02, 0.99] * 9, [2.0] * 9), Taken(0.01, 0.02, 0.0), [], MAINS)
    assert (noise.is_noisy, noise.reasons) == (False, [])
    assert noise.pilot_s == {"memory": 0.99, "compute": 2.0}


QUIET = Taken(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("log", "taken", "throttled", "power", "reason"),
    [
        (logged([1.0] * 9), Taken(0.3, 0.6, None), [], MAINS, "other processes took 30%"),
        (logged([1.0] * 9), Taken(0.0, 0.0, 0.1), [], MAINS, "10% of the processor time to other"),
        (logged([1.0] * 9), QUIET, ["core: 3 times"], MAINS, "throttled: core: 3 times"),
        (logged([1.0, 1.5] * 9), QUIET, [], MAINS, "0.67 to 1.00 of its undisturbed speed"),
        (logged([1.0] * 9), QUIET, [], Power(on_battery=True, has_rapl=False), "on battery"),
    ],
)
def test_what_disturbs_a_measurement_is_said(log, taken, throttled, power, reason):
    noise = judge(log, taken, throttled, power)
    assert noise.is_noisy
    assert any(reason in line for line in noise.reasons), noise.reasons


def test_a_laptop_on_battery_is_seen(tmp_path):
    laptop(tmp_path)
    facts = collect_facts(tmp_path, probes())
    assert facts.power.on_battery
    assert judge(logged([1.0] * 9), Taken(0.0, 0.0, None), [], facts.power).is_noisy


def watched(monkeypatch, before, after, seconds):
    """What a watch says of that many seconds, from psutil's times of all CPUs."""
    times, clock = iter([before, after]), iter([0.0, seconds])
    with monkeypatch.context() as patch:
        patch.setattr("hetero.profile.node.noise.psutil.cpu_times", lambda: next(times))
        patch.setattr(
            "hetero.profile.node.noise.time", SimpleNamespace(monotonic=lambda: next(clock))
        )
        return CPUWatch().taken()


@pytest.mark.parametrize(("num_cpus", "busy", "is_noisy"), [
    (48, 1.0, True), (48, 0.25, False), (2, 1.0, True), (2, 0.2, True), (2, 0.05, False),
])  # fmt: skip
def test_one_hog_is_seen_among_many_cpus_and_few(monkeypatch, num_cpus, busy, is_noisy):
    kind = namedtuple("scputimes", "user nice system idle iowait irq softirq steal guest")
    seconds = 1000.0  # our own part is then nothing
    idle = (num_cpus - busy) * seconds
    before, after = kind(*[0.0] * 9), kind(busy * seconds, 0, 0, idle, 0, 0, 0, 0, 0)
    taken = watched(monkeypatch, before, after, seconds)
    assert taken.others_cores == pytest.approx(busy, abs=0.01)
    assert taken.others == pytest.approx(busy / num_cpus, abs=0.01)
    assert taken.steal == 0
    assert judge(logged([1.0] * 9), taken, [], MAINS).is_noisy == is_noisy


def test_times_without_steal_or_iowait_are_enough(monkeypatch):
    """As macOS has them."""
    kind = namedtuple("scputimes", "user nice system idle")
    before, after = kind(10.0, 0.0, 5.0, 100.0), kind(210.0, 100.0, 105.0, 3700.0)
    taken = watched(monkeypatch, before, after, 1000.0)
    assert taken.others_cores == pytest.approx(0.4, abs=0.01)
    assert taken.steal is None


def test_a_hog_beside_us_is_seen():
    """By a process of its own: our own children are ourselves."""
    watching = (
        "import time; from hetero.profile.node.noise import CPUWatch; watch = CPUWatch();"
        "time.sleep(1); print(watch.taken().others_cores)"
    )
    with hogs(1):
        run = subprocess.run([sys.executable, "-c", watching], capture_output=True, text=True)
    assert float(run.stdout) > 0.3, run.stderr


def test_our_own_work_is_nobody_elses():
    """Whatever else runs: what our children took and what others took is no more than there is."""
    num_cpus = psutil.cpu_count()
    watch, started = CPUWatch(), time.monotonic()
    with hogs(num_cpus):
        subprocess.run(["sleep", "0.5"], check=True)
        ours_s = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children())
    seconds = time.monotonic() - started
    others_s = watch.taken().others_cores * seconds
    assert ours_s > 0
    assert ours_s + others_s < 1.1 * num_cpus * seconds


def test_what_hits_half_of_the_pilots_leaves_the_machines_speed_alone():
    log = PilotLog()
    log.seconds += [1.0, 1.0, 1.7, 3.0] * 10
    assert log.undisturbed_s == 1.0
    assert {log.speed(run) for run in range(40)} == {1.0}


def test_a_machine_that_slows_down_for_good_is_seen_by_its_pilots():
    log = PilotLog()
    log.seconds += [1.0] * 30 + [2.0] * 30
    assert log.speed(10) == 1.0
    assert log.speed(50) == 0.5


def test_the_fewest_threads_that_are_nearly_as_fast_are_best():
    assert best({1: 4.0, 2: 2.0, 4: 1.0}) == 4
    assert best({1: 4.0, 2: 1.01, 4: 1.0}) == 2
    assert candidates(1) == [1]
    assert candidates(14) == [14, 13, 10, 7]


def test_threads_are_tried_in_turns_and_each_warms_up():
    order = []
    seconds = iter([9.0, 1.0, 9.0, 2.0] * 3)
    taken = time_threads([1, 2], order.append, lambda: next(seconds), until=math.inf)
    assert order == [1, 2] * 3
    assert taken == {1: 1.0, 2: 2.0}


def test_without_time_all_cores_are_taken():
    taken = time_threads(candidates(8), lambda count: None, lambda: 5.0, until=0.0)
    assert best(taken) == 8


def test_a_soak_tells_first_and_last_rates():
    num_steps = 0

    def step():
        nonlocal num_steps
        num_steps += 1

    found = soak(step, 0.05, [], lambda line: None)
    assert num_steps >= 10
    assert 0 < found.lowest_rate <= min(found.first_rate, found.last_rate)
    assert found.seconds >= 0.05


@pytest.mark.slow
def test_beside_hogs_a_profile_says_that_it_is_noisy(tmp_path):
    path = tmp_path / "noisy.yaml"
    command = [sys.executable, "-m", "hetero", "profile", "node", "-m", "demo", *SMALL]
    with hogs(os.cpu_count() or 1):
        run = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    noise = read_profile(path).noise
    assert noise.is_noisy
    assert any("other processes took" in reason for reason in noise.reasons)
    assert "NOISY" in run.stdout


@pytest.mark.parametrize(
    ("elapsed_s", "told", "shown"),
    [(45.0, 0.0, 0.25), (45.0, 0.2, 0.25), (45.0, 0.9, 0.9), (900.0, 0.5, 0.99), (170.0, 1.0, 1.0)],
)
def test_the_bar_is_a_clock_that_can_be_told_of_more(elapsed_s, told, shown):
    assert profile_node.shown_share(elapsed_s, 180.0, told) == shown
