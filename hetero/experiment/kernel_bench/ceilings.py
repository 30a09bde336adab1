"""What the machine can do, measured before the figures: copies, and a matrix product."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch

from hetero.experiment.figures import Say
from hetero.experiment.kernel_bench.physics import matmul_flops
from hetero.experiment.kernel_bench.settings import Settings
from hetero.experiment.kernel_bench.stopwatch import Arm, Call, Stopwatch

_NUM_COPIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    copy_bytes_per_s: float  # on the device, read and written
    matmul_flops_per_s: float  # bf16, random data
    host_to_device_bytes_per_s: float  # from pinned memory
    device_to_host_bytes_per_s: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def measure_ceilings(
    settings: Settings, device: torch.device, stopwatch: Stopwatch, say: Say
) -> Ceilings:
    def seconds(calls: Sequence[Call], turn_s: float, most_calls: int) -> float:
        arm = Arm(stopwatch, calls, turn_s, most_calls)
        arm.warm_up()
        return median(arm.turn()[0] for _ in range(settings.num_rounds))

    def random(size: int) -> torch.Tensor:
        return torch.randn(size, size, dtype=torch.bfloat16, device=device)

    copy_s, to_device_s, to_host_s = (
        seconds([partial(a.copy_, b, non_blocking=True)], settings.turn_s, _NUM_COPIES)
        for a, b in _copies(settings, device)
    )
    size = settings.matmul_size
    factors = [(random(size), random(size)) for _ in range(2)]
    matmul_s = seconds(
        [partial(torch.mm, a, b) for a, b in factors], settings.sustained_s, most_calls=1000
    )
    ceilings = Ceilings(
        copy_bytes_per_s=2 * settings.copy_bytes / copy_s,
        matmul_flops_per_s=matmul_flops(size, size, size) / matmul_s,
        host_to_device_bytes_per_s=settings.host_bytes / to_device_s,
        device_to_host_bytes_per_s=settings.host_bytes / to_host_s,
    )
    say(f"copy on the device: {ceilings.copy_bytes_per_s / 1e9:.0f} GB/s read and written")
    say(f"bf16 matrix product: {ceilings.matmul_flops_per_s / 1e12:.0f} TFLOP/s")
    say(f"pinned host to device: {ceilings.host_to_device_bytes_per_s / 1e9:.1f} GB/s")
    say(f"device to pinned host: {ceilings.device_to_host_bytes_per_s / 1e9:.1f} GB/s")
    return ceilings


def _copies(
    settings: Settings, device: torch.device
) -> Sequence[tuple[torch.Tensor, torch.Tensor]]:
    """(target, source): on the device, to it, from it."""
    source, target = (
        torch.empty(settings.copy_bytes, dtype=torch.uint8, device=device).random_()
        for _ in range(2)
    )
    host = torch.empty(
        settings.host_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda"
    ).random_()
    part = source[: settings.host_bytes]
    return (target, source), (part, host), (host, part)
