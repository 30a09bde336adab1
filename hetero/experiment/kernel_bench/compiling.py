"""Compile kernels for GPUs that are not there: what a launch would need of the chip.

Launches are recorded, not made: the wrappers run on meta tensors, so what is compiled is what a
node would launch, with the same options. Compiled code is read with the cuobjdump that Triton
brings. Needs Triton without its interpreter; no GPU, no driver.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from hetero.errors import EngineError

# Shared memory that one block may ask for, by compute capability.
# Source: CUDA C++ Programming Guide, technical specifications per compute capability.
SHARED_BYTES = {
    80: 163 * 1024,
    86: 99 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    120: 99 * 1024,
}

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    kernel: "JITFunction[Any]"
    arguments: dict[str, Any]  # by parameter name
    options: dict[str, Any]  # num_warps, num_stages


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What one compiled kernel takes. A stack means that registers were spilled."""

    registers: int
    stack_bytes: int
    shared_bytes: int


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Launches inside the block are appended to the list instead of reaching a GPU."""
    launches: list[Launch] = []

    def record(
        self: "JITFunction[Any]", *args: Any, grid: Any, warmup: bool, **kwargs: Any
    ) -> None:
        names = list(self.arg_names)
        arguments = dict(zip(names, args, strict=False))
        arguments |= {name: kwargs.pop(name) for name in names if name in kwargs}
        launches.append(Launch(kernel=self, arguments=arguments, options=kwargs))

    with patch.object(JITFunction, "run", record):
        yield launches


def compile_launch(launch: Launch, capability: int) -> Usage:
    """Raises: EngineError if the kernel does not compile for this chip."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, parameter in enumerate(launch.kernel.params):
        value = launch.arguments.get(parameter.name, parameter.default)
        kind = "constexpr" if parameter.is_constexpr else _type(value, parameter.do_not_specialize)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor) or _is_aligned(value, parameter.do_not_specialize):
            attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    try:
        compiled = triton.compile(source, target=target, options=launch.options)
    except Exception as error:
        name = launch.kernel.__name__
        raise EngineError(f"{name}: does not compile for {capability}: {error}") from error
    registers, stack_bytes = _resources(compiled.asm["cubin"])
    return Usage(
        registers=registers, stack_bytes=stack_bytes, shared_bytes=compiled.metadata.shared
    )


def _type(value: Any, do_not_specialize: bool) -> str:
    """How Triton's own launcher would declare an argument."""
    if isinstance(value, torch.Tensor):
        return _POINTERS[value.dtype]
    if value is None:
        return "constexpr"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, float):
        return "fp32"
    if value == 1 and not do_not_specialize:
        return "constexpr"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _is_aligned(value: Any, do_not_specialize: bool) -> bool:
    return isinstance(value, int) and value % 16 == 0 and not do_not_specialize


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers per thread, stack bytes per thread)."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+)", listing)
    return int(found[0]), int(found[1])
