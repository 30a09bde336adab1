"""Time spent inside some of llama.cpp's functions, by wrapping them in the bindings.

`hetero.llama` looks functions up in the `llama_cpp` module at each call, so replacing them there
reaches every caller. Wrapping costs time of its own, measured here and subtracted.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import llama_cpp

_NUM_CALIBRATION_CALLS = 20_000


class CallTimers(AbstractContextManager["CallTimers"]):
    """Wraps the functions of the bindings whose names begin with one of `prefixes`."""

    def __init__(self, *prefixes: str) -> None:
        self._names = [
            name
            for name in dir(llama_cpp)
            if name.startswith(prefixes) and _is_function(getattr(llama_cpp, name))
        ]
        self._originals: dict[str, Any] = {}
        self._wrapper_s, self._marshalling_s = _wrapper_cost_s(), _marshalling_cost_s()
        # Shared with the wrappers; lists, because those write to them.
        self._seconds, self._num_calls = [0.0], [0]

    @property
    def num_calls(self) -> int:
        """Since `reset`."""
        return self._num_calls[0]

    def reset(self) -> None:
        self._seconds[0], self._num_calls[0] = 0.0, 0

    def outside_s(self, wall_s: float) -> float:
        """Of a time since `reset`: what was spent outside of the functions, in Python.

        Turning Python's arguments into C's is Python's work too; it happens inside the call, and is
        estimated by a function that does nothing else.
        """
        unseen_s = self.num_calls * (self._wrapper_s - self._marshalling_s)
        return wall_s - self._seconds[0] - unseen_s

    def __enter__(self) -> Self:
        self._originals = {name: getattr(llama_cpp, name) for name in self._names}
        for name, original in self._originals.items():
            setattr(llama_cpp, name, _timed(original, self._seconds, self._num_calls))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for name, original in self._originals.items():
            setattr(llama_cpp, name, original)
        self._originals = {}


def _is_function(value: object) -> bool:
    """Structures and pointer types bear such names too."""
    return callable(value) and not isinstance(value, type)


def _timed(
    function: Callable[..., Any], seconds: list[float], num_calls: list[int]
) -> Callable[..., Any]:
    clock = time.perf_counter

    def timed(*arguments: Any) -> Any:
        started = clock()
        result = function(*arguments)
        seconds[0] += clock() - started
        num_calls[0] += 1
        return result

    return timed


def _wrapper_cost_s() -> float:
    """Per call: what a wrapped function takes that the wrapper doesn't see."""
    seconds, num_calls = [0.0], [0]
    call = _timed(lambda _: None, seconds, num_calls)
    started = time.perf_counter()
    for _ in range(_NUM_CALIBRATION_CALLS):
        call(0)
    return (time.perf_counter() - started - seconds[0]) / _NUM_CALIBRATION_CALLS


def _marshalling_cost_s() -> float:
    """Per call: what it takes to get into a C function and back, where the function is trivial."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    started = time.perf_counter()
    for _ in range(_NUM_CALIBRATION_CALLS):
        llama_cpp.llama_sampler_chain_n(chain)
    seconds = time.perf_counter() - started
    llama_cpp.llama_sampler_free(chain)
    return seconds / _NUM_CALIBRATION_CALLS
