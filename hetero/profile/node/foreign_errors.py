"""What torch, Triton or a driver raise when they fail: exceptions of their own, of any type."""

from collections.abc import Iterator
from contextlib import contextmanager

from hetero.errors import EngineError, HeteroError


@contextmanager
def as_engine_errors() -> Iterator[None]:
    """Turns what is no HeteroError into an EngineError that names its type: a measurement can be
    gone on from without it. An interrupt or an exit passes."""
    try:
        yield
    except HeteroError:
        raise
    except Exception as error:
        raise EngineError(f"{type(error).__name__}: {error}") from error
