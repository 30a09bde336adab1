"""Memory spread over NUMA nodes: Linux's policy of a thread, set_mempolicy(2).

By number, since glibc has no function for these calls, and libnuma is not everywhere.
"""

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from hetero.errors import ConfigError

# As the kernel's tables of system calls have them for 64-bit processes.
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237, "ppc64le": 261}
_GET_MEMPOLICY = {"x86_64": 239, "aarch64": 236, "ppc64le": 260}

_MPOL_INTERLEAVE = 3
_WORD_BITS = 64


def can_interleave() -> bool:
    """False on other systems than Linux, and where it is forbidden, as in most containers."""
    return _call(_GET_MEMPOLICY, None, None, 0, None, 0) == 0


def interleave(nodes: Sequence[int]) -> None:
    """Pages that this thread touches first from now on, and threads that it makes, lie on these
    nodes in turn. The kernel passes over nodes without memory. None: as it is.

    Raises: ConfigError if none of them has memory for this process, or the system won't do it.
    """
    if not nodes:
        return
    words = [0] * (max(nodes) // _WORD_BITS + 1)
    for node in nodes:
        words[node // _WORD_BITS] |= 1 << node % _WORD_BITS
    mask = (ctypes.c_uint64 * len(words))(*words)
    # The kernel reads one bit less than it is told.
    reason = _call(_SET_MEMPOLICY, _MPOL_INTERLEAVE, mask, _WORD_BITS * len(words) + 1)
    if reason == errno.EINVAL:
        raise ConfigError(
            "interleave: need NUMA nodes with memory for this process, have "
            f"{', '.join(map(str, nodes))}; measure again with `hetero profile node`"
        )
    if reason:
        raise ConfigError(
            "interleave: need the right to choose where memory lies, have: "
            f"{os.strerror(reason).lower()}; give a container SYS_NICE, or leave it out"
        )


def _call(numbers: Mapping[str, int], *arguments: Any) -> int:
    """0, or why it failed, as errno. Integers are passed as long, None as a null pointer."""
    # A 32-bit process has other calls of these numbers.
    is_known = sys.platform == "linux" and sys.maxsize > 2**32
    number = numbers.get(platform.machine()) if is_known else None
    if number is None:
        return errno.ENOSYS
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    longs = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return 0 if syscall(ctypes.c_long(number), *longs) == 0 else ctypes.get_errno()
