"""Processes start so that what they allocate lies in huge pages, where that takes asking."""

import os
import subprocess
import sys

import pytest

from hetero.machine.huge_pages import transparent_huge_pages, tunables

ASKED = "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    ("have", "thp", "want"),
    [
        ({}, "madvise", ASKED),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=1"}, "madvise", f"glibc.malloc.check=1:{ASKED}"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "madvise", None),  # the user's choice
        ({"GLIBC_TUNABLES": ASKED}, "madvise", None),  # started so already
        ({}, "always", None),
        ({}, "never", None),
        ({}, None, None),
    ],
)
def test_they_are_asked_for_where_that_helps(have, thp, want):
    assert tunables(have, thp) == want


@pytest.mark.skipif(transparent_huge_pages() != "madvise", reason="the kernel gives them unasked")
def test_a_process_that_starts_so_gets_them():
    code = """
import os
from hetero.machine.huge_pages import start_with_huge_pages
start_with_huge_pages()
block = bytearray(64 * 2**20)
block[::4096] = b"x" * (len(block) // 4096)
fields = dict(line.split(":") for line in open("/proc/self/smaps_rollup").readlines()[1:])
print(os.getpid(), int(fields["AnonHugePages"].split()[0]) // 1024)
"""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        pid, mebibytes = process.communicate()[0].split()
    assert int(pid) == process.pid  # whoever started it still knows it
    assert int(mebibytes) > 0  # a machine whose memory is in pieces may have few
