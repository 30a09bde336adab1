"""One step again and again: what is left of the rate when everything is warm, and at what power."""

import time
from collections.abc import Callable, Sequence
from statistics import mean

from hetero.profile.facts.gpu_meter import GPUMeter
from hetero.profile.facts.meters import (
    cpu_mhz,
    read_energy,
    throttle_counts,
    throttled_between,
    watts_between,
)
from hetero.profile.node_profile import Soak

# The first and the last are compared, so they should be short beside the whole.
_NUM_WINDOWS = 10

Say = Callable[[str], None]


def soak(step: Callable[[], object], seconds: float, cpus: Sequence[int], say: Say) -> Soak:
    """cpus: those that the step runs on; empty: all."""
    rates: list[float] = []
    clocks: list[float | None] = []
    gpu_watts: list[float] = []
    throttles = throttle_counts()
    words: dict[str, None] = {}
    began, energy = time.monotonic(), read_energy()
    package_watts: list[float] = []
    with GPUMeter() as gpus:
        for _ in range(_NUM_WINDOWS):
            rates.append(_rate(step, seconds / _NUM_WINDOWS))
            clocks.append(cpu_mhz(cpus))
            # Each window: a package's counter starts anew every few minutes.
            now = read_energy()
            watts = watts_between(energy, now)
            energy = now
            if watts is not None:
                package_watts.append(watts)
            of_gpus = gpus.watts()
            if of_gpus is not None:
                gpu_watts.append(of_gpus)
            words |= dict.fromkeys(gpus.throttled() or ())
            say(f"{rates[-1]:.3g} steps/s")
    meters = [
        name for name, found in (("RAPL packages", package_watts), ("NVML", gpu_watts)) if found
    ]
    first_mhz, last_mhz = clocks[0], clocks[-1]
    return Soak(
        seconds=time.monotonic() - began,
        first_rate=rates[0],
        last_rate=rates[-1],
        lowest_rate=min(rates),
        mhz=None if first_mhz is None or last_mhz is None else (first_mhz, last_mhz),
        watts=sum(mean(found) for found in (package_watts, gpu_watts) if found) or None,
        meter=" and ".join(meters) or None,
        throttled=[*throttled_between(throttles, throttle_counts()), *words],
    )


def _rate(step: Callable[[], object], seconds: float) -> float:
    """Steps per second over a window of whole steps, one at least."""
    started = time.perf_counter()
    num_steps = 0
    while not num_steps or time.perf_counter() < started + seconds:
        step()
        num_steps += 1
    return num_steps / (time.perf_counter() - started)
