"""Runs a command that yields to engines: `python low_priority.py NICE COMMAND...`.

For what must run beside an engine on its core and not slow it: a router, a load generator. It gets
a session of its own, less of a contended core, and its turn soon after it wakes. Run as a file,
like tether.py.

Niceness alone is not enough. Where the kernel groups tasks by session (sched_autogroup_enabled), it
counts among those of one session only, and ours are in sessions of their own: so the session's own
niceness is set, too. A lab's limit on CPUs alone changes nothing with cgroup v1, where cpuset is
apart from cpu; a host with a quota is a group that weighs as much as a session at 0. With cgroup
v2 a host with any limit weighs as much as all that has none together, whatever is said here.

And a task of small weight waits after it wakes: beside one that never rests, for 2.7 ms (the
median) at nice 10 and 15 ms at nice 19, with 5% of a core to do in bursts of 0.3 ms. From 6.12 on
Linux lets it ask for short turns, which come sooner: with turns of 0.1 ms at nice 5 after 0.06 ms,
and after 0.07 in nine cases of ten. One reading each on Linux 6.18; older kernels ignore the wish.
"""

import ctypes
import os
import platform
import struct
import sys
from contextlib import suppress

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_TURN_NS = 100_000  # the least that the kernel gives


def main() -> None:
    nice, command = int(sys.argv[1]), sys.argv[2:]
    if os.getsid(0) != os.getpid():
        # Of its own, so that only its niceness changes. Who leads a group can't have one.
        with suppress(PermissionError):
            os.setsid()
    if os.getsid(0) == os.getpid():
        with suppress(OSError), open("/proc/self/autogroup", "w") as file:
            file.write(str(nice))
    os.nice(nice)
    if sys.platform == "linux" and platform.machine() in _SCHED_SETATTR:
        # struct sched_attr: size, policy (normal), flags, nice, real-time priority, turn.
        attributes = struct.pack("IIQiIQQQ", 48, 0, 0, os.nice(0), 0, _TURN_NS, 0, 0)
        ctypes.CDLL(None).syscall(_SCHED_SETATTR[platform.machine()], 0, attributes, 0)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
