"""Where the hosts of a recipe are, and how a process is started on one. Made once for a run.

Besides the recipe's hosts a site has `front`, for the router and the load generator: what is
started there yields to engines.
"""

import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from hetero.errors import EngineError
from hetero.experiment.recipe.recipe import FRONT as FRONT
from hetero.experiment.recipe.recipe import Cluster
from hetero.launch import low_priority
from hetero.launch.cores import num_usable_cores
from hetero.machine.whole_cores import usable_cpus

# A quarter of a contended core at most, and at once: see low_priority.
FRONT_NICE = 5

# Prints a status code and a body; nothing that takes long to import, and no proxies.
_GET = """
import http.client, sys
host, port, path = sys.argv[1:]
connection = http.client.HTTPConnection(host, int(port), timeout=10)
connection.request("GET", path)
answer = connection.getresponse()
print(answer.status, flush=True)
sys.stdout.buffer.write(answer.read())
"""


class Site(ABC):
    """Up between `with` and the block's end, which ends all that runs there."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    @property
    @abstractmethod
    def hosts(self) -> tuple[str, ...] | None:
        """The recipe's; None: any name stands for this machine."""

    @property
    @abstractmethod
    def cpus(self) -> list[int]:
        """Those that the recipe's hosts compute on; of a lab's cores one each. None where no
        process is bound to a CPU."""

    @abstractmethod
    def address(self, host: str) -> str:
        """IPv4, the same seen from every host: who has a cable to it takes that."""

    @abstractmethod
    def set_link(self, rate: str) -> None:
        """Of the cables between the recipe's hosts. Raises: ConfigError for one that can't be."""

    @abstractmethod
    def shares_cores(self, num_threads: int) -> bool:
        """Whether engines with so many threads in all share cores, with each other or the front."""

    @abstractmethod
    def _enter(self, host: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on `host`, and is replaced by it."""

    def command(self, host: str, argv: Sequence[str]) -> list[str]:
        """As `_enter`; at low priority on `front`."""
        if host == FRONT:
            nice = (sys.executable, "-I", "-S", low_priority.__file__, str(FRONT_NICE))
            argv = (*nice, *argv)
        return self._enter(host, argv)

    def popen(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Options are those of `subprocess.Popen`; the process started is that of `argv`."""
        return subprocess.Popen(self.command(host, argv), **options)

    def get(self, host: str, port: int, path: str) -> tuple[int, bytes] | None:
        """Status code and body of an HTTP server on `host`, asked from `front`; None: no answer."""
        ask = self._enter(
            FRONT, [sys.executable, "-I", "-S", "-c", _GET, self.address(host), str(port), path]
        )
        run = subprocess.run(ask, capture_output=True)
        if run.returncode != 0:
            return None
        code, _, body = run.stdout.partition(b"\n")
        if not code.isdigit():
            raise EngineError(f"{host}:{port}: need an HTTP answer, have {code[:80]!r}")
        return int(code), body


class LocalSite(Site):
    """This machine as it is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    @property
    def hosts(self) -> None:
        return None

    @property
    def cpus(self) -> list[int]:
        return usable_cpus()

    def address(self, host: str) -> str:
        return "127.0.0.1"

    def set_link(self, rate: str) -> None:
        raise AssertionError("a rate without a lab was refused")

    def shares_cores(self, num_threads: int) -> bool:
        return num_threads > num_usable_cores()

    def _enter(self, host: str, argv: Sequence[str]) -> list[str]:
        return list(argv)


def make_site(cluster: Cluster) -> Site:
    """Of the recipe's cluster; nothing is up yet. Raises: ConfigError, PlanError."""
    assert cluster.file is None, "a cluster of real hosts was refused"
    if cluster.lab is None:
        return LocalSite()
    # Linux alone has labs.
    from hetero.experiment.deploy.lab_site import LabSite

    return LabSite(cluster.lab)
