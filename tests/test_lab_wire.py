"""Transfers over an emulated cable that slows down and is pulled while they run."""

import json
import os
import subprocess
import sys
import time

import pytest

from hetero.launch.lab.lab import Lab
from hetero.launch.lab.lab_file import parse_topology

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="a lab needs root"),
]

PROFILE = [sys.executable, "-m", "hetero", "profile", "link"]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
WAIT_S = 60


@pytest.fixture
def lab():
    with Lab(
        parse_topology(
            f"name: wire-{os.getpid()}\n"
            "hosts: {desktop: , server: }\n"
            "links:\n  - {between: [desktop, server], rate: 10gbit}\n"
        )
    ) as lab:
        yield lab


@pytest.fixture
def dialer(lab):
    """A measurement of ten seconds that has begun to send."""
    where = f"{lab.address('server')}:7000"
    listen = [*PROFILE, "--listen", where, "--shape", "qwen3-0.6b", "--json"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with lab.popen("server", listen, env=ENVIRONMENT, **options) as listener:
        said = json.loads(listener.stdout.readline())
        measure = [*PROFILE, where, "--seals", "aead", "--seconds", "10", "--rounds", "1", "--json"]
        environment = ENVIRONMENT | {"HETERO_LINK_KEY": said["key"]}
        with lab.popen("desktop", measure, env=environment, **options) as dialer:
            until_sent(lab, 10**8)
            yield dialer
            dialer.kill()
        listener.terminate()


def bytes_sent(lab):
    table = lab.run("desktop", ["cat", "/proc/net/dev"], capture_output=True, text=True).stdout
    return sum(int(line.split()[9]) for line in table.splitlines()[2:] if "lo:" not in line)


def until_sent(lab, num_bytes):
    """And that many more from now."""
    before, deadline = bytes_sent(lab), time.monotonic() + WAIT_S
    while bytes_sent(lab) < before + num_bytes:
        assert time.monotonic() < deadline, "nothing is sent any more"
        time.sleep(0.02)


def finishes(dialer):
    out, _ = dialer.communicate(timeout=2 * WAIT_S)
    assert dialer.returncode == 0
    found = json.loads(out)
    assert found["goodput"][0]["bytes_per_s"]["median"] > 0


def test_transfers_go_on_when_a_link_falls_from_10_to_1_gbit(lab, dialer):
    lab.set_rate("desktop", "server", "1gbit")
    until_sent(lab, 10**8)
    lab.set_rate("desktop", "server", "10gbit")
    finishes(dialer)


@pytest.mark.parametrize("pulled_s", [0.1, 2.0])
def test_transfers_survive_a_cable_that_is_pulled_for_a_moment(lab, dialer, pulled_s):
    lab.set_down("desktop", "server")
    time.sleep(pulled_s)
    lab.set_up("desktop", "server")
    until_sent(lab, 10**8)
    finishes(dialer)
