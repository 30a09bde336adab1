"""NVIDIA cards' power, and what holds their clocks back, to be read through a long run."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from hetero.profile.facts.nvidia_gpu import ask
from hetero.profile.facts.probes import import_nvml

# NVML's reasons for a clock below the highest. Left out: 0x1, nothing to do.
_REASONS = {
    0x2: "clocks set by the user",
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "clocks kept equal to another card's",
    0x20: "heat (driver)",
    0x40: "heat (hardware)",
    0x80: "power brake from outside",
    0x100: "clocks set for the display",
    0x200: "board's limit",
    0x400: "reliability",
}


class GPUMeter:
    """NVML stays open between readings: without a client the driver unloads the card's state, and
    opening takes seconds. Without NVML every reading is None."""

    def __init__(self, load: Callable[[], Any] = import_nvml) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        try:
            nvml = load()
        except ImportError:
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return
        self._nvml = nvml
        number = ask(nvml, nvml.nvmlDeviceGetCount) or 0
        handles = [ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index) for index in range(number)]
        self._handles = [handle for handle in handles if handle is not None]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._nvml is not None:
            ask(self._nvml, self._nvml.nvmlShutdown)
        self._nvml, self._handles = None, []

    def watts(self) -> float | None:
        """Of all cards together, with their memory; None if one does not say."""
        if self._nvml is None or not self._handles:
            return None
        milliwatts = [
            ask(self._nvml, self._nvml.nvmlDeviceGetPowerUsage, handle) for handle in self._handles
        ]
        return None if None in milliwatts else sum(milliwatts) / 1e3

    def throttled(self) -> list[str] | None:
        """Why clocks are below their highest at this moment: "GPU 0: power limit". None if no card
        says."""
        if self._nvml is None:
            return None
        masks = {index: self._reasons(handle) for index, handle in enumerate(self._handles)}
        if all(mask is None for mask in masks.values()):
            return None
        return [
            f"GPU {index}: {word}"
            for index, mask in masks.items()
            for bit, word in _REASONS.items()
            if mask is not None and mask & bit
        ]

    def _reasons(self, handle: Any) -> int | None:
        """Drivers before 535 know the question by its older name alone."""
        nvml = self._nvml
        mask: int | None = ask(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if mask is None:
            mask = ask(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return mask
