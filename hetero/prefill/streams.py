"""CUDA streams where there is CUDA; on a CPU, where a call returns when it is done, nothing."""

import time
from types import TracebackType

import torch


class Lane:
    """Work in order, beside the work of other lanes. `with lane:` puts torch's calls on it."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._context: torch.cuda.StreamContext | None = None

    def __enter__(self) -> None:
        if self._stream is not None:
            self._context = torch.cuda.stream(self._stream)
            self._context.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._context is not None:
            self._context.__exit__(kind, error, traceback)
            self._context = None

    def uses(self, tensor: torch.Tensor) -> None:
        """The tensor's memory is not given to others before this lane's work so far is done."""
        if self._stream is not None:
            tensor.record_stream(self._stream)

    def wait(self, mark: "Mark") -> None:
        """What is put on this lane from now on starts after the mark."""
        if self._stream is not None and mark.event is not None:
            self._stream.wait_event(mark.event)


class Mark:
    """A point in the work of the lane that is current where it is made."""

    def __init__(self, device: torch.device, *, timed: bool = False) -> None:
        self._device = device
        self._made_at = time.perf_counter()
        self.event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=timed)
            self.event.record(torch.cuda.current_stream(device))

    def is_reached(self) -> bool:
        return self.event is None or self.event.query()

    def wait(self) -> None:
        """Block this thread until the work before the mark is done."""
        if self.event is not None:
            self.event.synchronize()

    def seconds_to(self, later: "Mark") -> float:
        """Between two timed marks that are reached."""
        if self.event is None or later.event is None:
            return later._made_at - self._made_at
        return float(self.event.elapsed_time(later.event)) / 1000

    def wait_on_device(self) -> None:
        """Let the current lane's next work start after the mark."""
        if self.event is not None:
            torch.cuda.current_stream(self._device).wait_event(self.event)
