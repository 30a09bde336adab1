"""The loaded llama.cpp library: its log lines, and parameter structures that refuse unknown names.

The only package that calls llama-cpp-python's C bindings is `hetero.llama`; the rest of hetero
never sees a pointer.
"""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import llama_cpp

from hetero.errors import EngineError

logger = logging.getLogger(__name__)

# ggml's DEBUG, INFO, WARN and ERROR. Its INFO tells of every buffer: debugging, to us. CONT (5)
# continues the line before it, which only INFO and DEBUG lines do.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _forward_log(level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    if line:
        logger.log(_LEVELS.get(level, logging.DEBUG), "%s", line)


llama_cpp.llama_log_set(_forward_log, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()


@contextmanager
def captured_log(level: int = logging.ERROR) -> Iterator[list[str]]:
    """Collect what llama.cpp logs at `level` or above, to say why a call failed or what it took."""
    lines: list[str] = []

    class _Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    collect = _Collect(level)
    before = logger.level
    logger.addHandler(collect)
    if logger.getEffectiveLevel() > level:
        logger.setLevel(level)
    try:
        yield lines
    finally:
        logger.removeHandler(collect)
        logger.setLevel(before)


class Owned:
    """Something of llama.cpp's that must be freed: by `close`, or at the end of a `with` block."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def set_fields(struct: ctypes.Structure, **values: Any) -> None:
    """Set fields by name. ctypes accepts unknown names silently, and fields have been renamed."""
    known = {field[0] for field in struct._fields_}
    for name, value in values.items():
        if name not in known:
            raise EngineError(
                f"llama.cpp: need a field {name} in {type(struct).__name__}, "
                f"have a library without it; install llama-cpp-python==0.3.36"
            )
        setattr(struct, name, value)


def ggml_library(stem: Literal["ggml-base", "ggml-cpu"]) -> ctypes.CDLL:
    """A part of llama.cpp that its bindings don't reach: `ggml-base` reads tensors, `ggml-cpu`
    holds the quantizers that llama.cpp's own cache writes with."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    for name in (f"lib{stem}.so", f"lib{stem}.dylib", f"{stem}.dll"):
        if (folder / name).exists():
            return ctypes.CDLL(str(folder / name))
    raise EngineError(
        f"llama.cpp: need lib{stem} in {folder}, have {sorted(p.name for p in folder.glob('*'))}"
    )
