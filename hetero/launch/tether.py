"""Runs a command that can't outlive its parent: `python tether.py PARENT_PID COMMAND...`.

Linux kills the process when the thread that started it ends, however it ends; the order survives
exec. Elsewhere the command just runs. A step of its own, because code between fork and exec of a
process with threads can deadlock. Run as a file, without site packages: it takes milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        # It may have died before the order was given.
        if os.getppid() != parent:
            sys.exit(f"{command[0]}: its parent {parent} is gone")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
