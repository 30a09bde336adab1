"""Writing and reading one file in sequence, past the page cache where the filesystem lets us."""

import errno
import fcntl
import io
import mmap
import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from hetero.errors import ConfigError, EngineError, PlanError
from hetero.profile.node_profile import DiskCeilings

_BLOCK_BYTES = 4 * 2**20
_SYNC_BYTES = 32 * 2**20
_FREE_FACTOR = 4
_IN_MEMORY = ("tmpfs", "ramfs")


def disk_ceilings(folder: Path, *, seconds: float, num_bytes: int = 256 * 2**20) -> DiskCeilings:
    """A file of at most `num_bytes` in `folder`, for about `seconds`. It has no name, so that it is
    gone when we are, however we end.

    Raises: ConfigError if nothing can be written there or it is memory, PlanError if the disk has
    less than four times `num_bytes` free, EngineError if it fails on the way.
    """
    num_bytes = max(num_bytes // _BLOCK_BYTES, 1) * _BLOCK_BYTES
    _check_room(folder, _FREE_FACTOR * num_bytes)
    with _nameless_file(folder) as file, mmap.mmap(-1, _BLOCK_BYTES) as block:
        # Random: some filesystems compress. A mapping starts at a page, as direct I/O wants.
        block[:] = os.urandom(_BLOCK_BYTES)
        try:
            is_direct = _bypass_cache(file.fileno(), block)
            written, write_s = _write(file.fileno(), block, num_bytes, seconds / 2)
            read, read_s = _read(file.fileno(), block, written, seconds / 2)
        except OSError as error:
            raise EngineError(
                f"disk of {folder}: need {num_bytes / 2**20:.0f} MiB written and read, "
                f"have {error.strerror}"
            ) from None
    return DiskCeilings(
        path=str(folder),
        read_gb_s=read / read_s / 1e9,
        write_gb_s=written / write_s / 1e9,
        is_direct=is_direct,
    )


def _check_room(folder: Path, need_bytes: int) -> None:
    if _filesystem(folder) in _IN_MEMORY:
        raise ConfigError(f"disk: need a folder on a disk, have {folder} in memory")
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise _unusable(folder, error) from None
    if free_bytes < need_bytes:
        raise PlanError(
            f"disk of {folder}: need {need_bytes / 2**30:.1f} GiB free, "
            f"have {free_bytes / 2**30:.1f} GiB: choose another folder"
        )


def _nameless_file(folder: Path) -> io.FileIO:
    try:
        return tempfile.TemporaryFile(dir=folder, buffering=0)
    except OSError as error:
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"disk: need a folder to write in, have {folder}: {error.strerror}")


def _filesystem(folder: Path) -> str | None:
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    folder = folder.resolve()
    return next((mounts[path] for path in (folder, *folder.parents) if path in mounts), None)


def _bypass_cache(file: int, block: mmap.mmap) -> bool:
    """Whether it can: some filesystems refuse at once, some at the first block."""
    if not hasattr(os, "O_DIRECT"):
        return False
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | os.O_DIRECT)
        os.pwrite(file, block, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fcntl.fcntl(file, fcntl.F_SETFL, flags)
        return False
    return True


def _write(file: int, block: mmap.mmap, most_bytes: int, seconds: float) -> tuple[int, float]:
    """(bytes, seconds) until they are on the disk. Syncs on the way, or a slow disk would take its
    time after the last block."""
    started = time.perf_counter()
    done = 0
    while done < most_bytes:
        if os.pwrite(file, block, done) < _BLOCK_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done += _BLOCK_BYTES
        if done % _SYNC_BYTES == 0:
            os.fsync(file)
            if time.perf_counter() - started > seconds:
                break
    os.fsync(file)
    return done, time.perf_counter() - started


def _read(file: int, block: mmap.mmap, num_bytes: int, seconds: float) -> tuple[int, float]:
    """(bytes, seconds) of as much as `seconds` are enough for, `num_bytes` at most. What the page
    cache has of the file is dropped before."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    done = 0
    while done < num_bytes and (done == 0 or time.perf_counter() - started < seconds):
        if os.preadv(file, [block], done) < _BLOCK_BYTES:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        done += _BLOCK_BYTES
    return done, time.perf_counter() - started
