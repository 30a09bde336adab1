"""What is watched of a machine: settings that make a profile stale, and meters of a long run."""

import pytest
from machine_trees import FakeNVML, add_rapl, laptop, probes, r730, write

from hetero.profile.facts.collect import collect_facts
from hetero.profile.facts.gpu_meter import GPUMeter
from hetero.profile.facts.meters import (
    cpu_mhz,
    read_energy,
    throttle_counts,
    throttled_between,
    watts_between,
)
from hetero.profile.facts.state import settings_now, stale_because


def test_settings_that_change_make_a_profile_stale(tmp_path):
    r730(tmp_path)
    then = settings_now(tmp_path, {"OMP_NUM_THREADS": "24", "HOME": "/root"})
    assert then == {
        "governor": "powersave",
        "transparent_huge_pages": "madvise",
        "huge_pages": "16",
        "power_limit_watts": "120",
        "boost": "on",
        "smt": "on",
        "usable_cpus": "48",
        "cpu_quota": "unlimited",
        "kernel": "6.1.0-28-amd64",
        "OMP_NUM_THREADS": "24",
    }
    for cpu in range(48):
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor", "performance")
    write(tmp_path, "sys/devices/system/cpu/intel_pstate/no_turbo", 1)
    write(tmp_path, "proc/self/status", "Cpus_allowed_list:\t0-23")
    (tmp_path / "sys/kernel/mm/transparent_hugepage/enabled").unlink()
    now = settings_now(tmp_path, {"OMP_WAIT_POLICY": "passive"})
    assert stale_because(then, now) == [
        "governor: was powersave, is performance",
        "transparent_huge_pages: was madvise, is unseen",
        "boost: was on, is off",
        "usable_cpus: was 48, is 24",
        "OMP_NUM_THREADS: was 24, is not set",
        "OMP_WAIT_POLICY: was not set, is passive",
    ]
    assert stale_because(then, then) == []
    # A file from a version that did not look at a setting says nothing of it.
    assert stale_because({"governor": "performance"}, {"governor": "performance", "new": "1"}) == []


def test_boost_has_a_switch_of_its_own_off_intel(tmp_path):
    laptop(tmp_path)
    assert settings_now(tmp_path, {})["boost"] == "on"
    write(tmp_path, "sys/devices/system/cpu/cpufreq/boost", 0)
    assert settings_now(tmp_path, {})["boost"] == "off"


def test_settings_of_this_machine_hold_still():
    assert stale_because(settings_now(), settings_now()) == []


def test_watts_are_energy_over_time_of_all_packages(tmp_path):
    add_rapl(tmp_path, packages=2, watts=120)
    first = read_energy(tmp_path, now_s=10.0)
    write(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", 1_000_000 + 400_000_000)
    write(tmp_path, "sys/class/powercap/intel-rapl:1/energy_uj", 1_000_000 + 200_000_000)
    last = read_energy(tmp_path, now_s=14.0)
    assert watts_between(first, last) == pytest.approx(150.0)
    assert watts_between(last, last) is None
    assert watts_between(None, last) is None


def test_a_counter_that_started_anew_is_counted_on(tmp_path):
    add_rapl(tmp_path, packages=1, watts=120)
    top = 262143328850
    write(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", top - 30_000_000)
    first = read_energy(tmp_path, now_s=0.0)
    write(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", 70_000_000)
    assert watts_between(first, read_energy(tmp_path, now_s=1.0)) == pytest.approx(100.0)


def test_energy_is_none_with_a_package_missing(tmp_path):
    add_rapl(tmp_path, packages=2, watts=120)
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    assert read_energy(tmp_path) is None
    facts = collect_facts(tmp_path, probes())
    assert not facts.power.has_rapl
    assert facts.cpu.power_limit_watts == 120
    [line] = [line for line in facts.unseen if line.startswith("package power")]
    assert "intel-rapl:1/energy_uj is not there; " in line


def test_a_meter_that_is_roots_alone_can_be_opened(tmp_path, monkeypatch):
    """Root, who may run this, is refused nothing: so the file is unreadable in another way."""
    add_rapl(tmp_path, packages=1, watts=120)
    write(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", "")
    monkeypatch.setattr("hetero.profile.facts.power.why_unreadable", lambda path: "needs root")
    unseen = collect_facts(tmp_path, probes()).unseen
    assert (
        "package power: RAPL's intel-rapl:0/energy_uj needs root; sudo chmod a+r "
        "/sys/class/powercap/intel-rapl:*/energy_uj (until the next boot)"
    ) in unseen


def test_clock_is_that_of_the_cpus_asked_for(tmp_path):
    r730(tmp_path)
    assert cpu_mhz(root=tmp_path) == pytest.approx(2450)
    assert cpu_mhz([1, 3], tmp_path) == pytest.approx(2500)
    write(tmp_path / "bare", "proc/cpuinfo", "processor : 0\ncpu MHz : 2300.5\n")
    assert cpu_mhz(root=tmp_path / "bare") == 2300.5
    assert cpu_mhz(root=tmp_path / "nothing") is None


def test_heat_is_told_in_words(tmp_path):
    r730(tmp_path)
    first = throttle_counts(tmp_path)
    assert first == {"core": 3, "package": 11}
    write(tmp_path, "sys/devices/system/cpu/cpu2/thermal_throttle/package_throttle_count", 9)
    last = throttle_counts(tmp_path)
    assert throttled_between(first, last) == ["package slowed by heat 4 times"]
    assert throttled_between(None, last) == []
    assert throttle_counts(tmp_path / "nothing") is None


def test_gpu_meter_reads_power_clock_and_reasons():
    nvml = FakeNVML()
    with GPUMeter(lambda: nvml) as meter:
        assert meter.watts() == 48.5
        assert meter.throttled() == ["GPU 0: power limit", "GPU 0: heat (driver)"]
        assert nvml.num_open == 1
    assert nvml.num_open == 0
    assert meter.watts() is None


def test_gpu_meter_asks_old_drivers_by_the_old_name():
    nvml = FakeNVML(DeviceGetCurrentClocksEventReasons=None, DeviceGetPowerUsage=None)
    with GPUMeter(lambda: nvml) as meter:
        assert meter.throttled() == []  # idle is no throttling
        assert meter.watts() is None


def test_gpu_meter_without_nvml_reads_nothing():
    with GPUMeter(probes().nvml) as meter:
        assert (meter.watts(), meter.throttled()) == (None, None)
