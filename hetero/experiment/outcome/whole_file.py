"""Files that are whole or not there: written beside, brought to the disk, then put in place."""

import os
from contextlib import suppress
from pathlib import Path

from hetero.errors import HeteroError


def write_whole(path: Path, content: bytes) -> None:
    """A file of that name stays as it is until the new one is complete, and if that fails.

    Raises: HeteroError if it can't be written, as on a full disk.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise HeteroError(
            f"{path}: can't write it: {(error.strerror or str(error)).lower()}; what was there "
            "before still is"
        ) from None
