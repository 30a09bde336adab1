"""One NIXL agent and its memory, registered once. The only code that calls NIXL.

Peers are trusted with each other's memory, not only with what was registered: UCX writes where a
peer's message says when it does without hardware. So what is needed to reach an agent travels over
the control channel only; and over `nixl-tcp`, where UCX listens for anybody, it is for a network
whose every machine is trusted. NIXL's pickled descriptors are not used: an address is an integer.
"""

import ctypes
import importlib
import logging
import mmap
import socket
import threading
import time
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from hetero.errors import ConfigError, HeteroError, PeerError
from hetero.messages import SlotRing, TransportName
from hetero.transport.nixl_lanes import UcxLog, lane_transport

logger = logging.getLogger(__name__)

# Frames aim at 2 MiB; their seal comes on top. NIXL wants 64 KiB at a time or more.
SLOT_BYTES = 2 * 2**20 + 64 * 2**10

# What UCX may take for each. A dead peer is an error that UCX hands up, but shared memory knows of
# no such thing: there it has to be done without.
_SETTINGS = {
    "nixl-rdma": {"ucx_error_handling_mode": "peer", "engine_config": "TLS=ib"},
    "nixl-shm": {"ucx_error_handling_mode": "none", "engine_config": "TLS=shm"},
    "nixl-tcp": {"ucx_error_handling_mode": "peer", "engine_config": "TLS=tcp"},
}

_RDMA_DEVICES = Path("/sys/class/infiniband")

# There is nothing to wait on, so a write is looked after: often at first, for most take less.
_FIRST_LOOK_S, _LAST_LOOK_S = 20e-6, 500e-6

_PROBE_S = 10.0

# NIXL's thread sleeps until UCX wakes it, or for so long. At 0, which its Python classes set, it
# never sleeps: that would take a core from whoever generates.
_PROGRESS_US = 1000

_log = UcxLog()
_starting = threading.Lock()


class NixlAgent:
    """`num_slots` slots of memory that others write to, or that is written from."""

    def __init__(
        self, transport: TransportName, num_slots: int, *, interface_of: str | None = None
    ) -> None:
        """interface_of: an address of this machine; over `nixl-tcp` its interface alone is used.

        Raises: ConfigError if NIXL or the hardware is missing.
        """
        self.transport = transport
        self._interface_of = interface_of
        self.name = f"hetero-{uuid.uuid4().hex[:16]}"  # never another's, also after a restart
        self.memory = np.frombuffer(mmap.mmap(-1, num_slots * SLOT_BYTES), np.uint8)
        self._lock = threading.Lock()
        self._known: dict[str, None] = {}
        if transport == "nixl-rdma" and not any(_RDMA_DEVICES.glob("*")):
            raise ConfigError(
                "transport nixl-rdma: need an RDMA device, have none in "
                f"{_RDMA_DEVICES}; load its driver, or set `transport: tcp`"
            )
        if transport == "nixl-tcp":
            logger.warning(
                "transport nixl-tcp: who reaches UCX's port can write to this process's memory; "
                "use it only on a network whose every machine is trusted"
            )
        settings = dict(_SETTINGS[transport])
        if transport == "nixl-tcp" and interface_of is not None:
            settings["engine_config"] += f",NET_DEVICES={_interface(interface_of)}"
        self._nixl = nixl = _library()
        config = nixl.nixlAgentConfig()
        config.useProgThread = True  # without it a write over TCP to this agent would never end
        config.pthrDelay = _PROGRESS_US
        config.syncMode = nixl.NIXL_THREAD_SYNC_RW
        region = (self.memory.ctypes.data, self.memory.nbytes, 0, b"")
        try:
            with _starting, _log.capture():
                self._agent = nixl.nixlAgent(self.name, config)
                self._agent.createBackend("UCX", settings)
            self._registered = nixl.nixlRegDList(nixl.DRAM_SEG, [region])
            self._agent.registerMem(self._registered)
        except Exception as error:
            raise ConfigError(f"transport {transport}: NIXL can't start: {_why(error)}") from None

    def ring(self) -> SlotRing:
        """What another agent needs to write here."""
        return SlotRing(
            transport=self.transport,
            agent=self.name,
            metadata=self._agent.getLocalMD(),
            address=self.memory.ctypes.data,
            slot_bytes=SLOT_BYTES,
            num_slots=self.memory.nbytes // SLOT_BYTES,
        )

    def slot(self, index: int) -> memoryview:
        return self.memory[index * SLOT_BYTES : (index + 1) * SLOT_BYTES].data

    def connect(self, ring: SlotRing) -> None:
        """Once per agent; again after a write to it failed.

        Raises: PeerError if it can't be reached over this agent's transport.
        """
        if ring.transport != self.transport:
            raise PeerError(
                f"transport: need {self.transport} at both ends, the decode node has "
                f"{ring.transport}; set the same in both nodes' files"
            )
        with self._lock:
            if ring.agent in self._known:
                return
            try:
                name = self._agent.loadRemoteMD(ring.metadata)
            except Exception as error:
                raise PeerError(f"NIXL: can't reach the decode node: {_why(error)}") from None
            if name != ring.agent.encode():
                raise PeerError("NIXL: need metadata of the agent that the ticket names")
            self._known[ring.agent] = None
        self.check_lanes(PeerError)

    def write(self, index: int, num_bytes: int, ring: SlotRing, slot: int, limit_s: float) -> None:
        """From the start of a slot here to the start of a slot there; returns when it is there.

        Raises: PeerError if it is not. `WriteStillOn` if NIXL may go on reading from here.
        """
        here = self.memory.ctypes.data + index * SLOT_BYTES
        there = ring.address + slot * ring.slot_bytes
        agent, nixl = self._agent, self._nixl
        deadline = time.monotonic() + limit_s
        handle = None
        try:
            handle = agent.createXferReq(
                nixl.NIXL_WRITE,
                nixl.nixlXferDList(nixl.DRAM_SEG, [(here, num_bytes, 0)]),
                nixl.nixlXferDList(nixl.DRAM_SEG, [(there, num_bytes, 0)]),
                ring.agent,
            )
            state = agent.postXferReq(handle)
            pause_s = _FIRST_LOOK_S
            while state == nixl.NIXL_IN_PROG and time.monotonic() < deadline:
                time.sleep(pause_s)
                pause_s = min(_LAST_LOOK_S, 1.5 * pause_s)
                state = agent.getXferStatus(handle)
            if state == nixl.NIXL_SUCCESS:
                agent.releaseXferReq(handle)
                return
            problem = f"need it done within {limit_s:g} s, it is not"
        except Exception as error:  # NIXL's have no base of their own
            problem = _why(error)
        self._give_up(handle, ring.agent, f"write to the decode node: {problem}")

    def lanes(self) -> set[str]:
        return _log.lanes(self.name)

    def check_lanes(self, error: type[HeteroError]) -> None:
        """Raises: `error` if UCX has taken something else than what it was to take."""
        lanes = self.lanes()
        wrong = sorted(lane for lane in lanes if lane_transport(lane) != self.transport)
        if wrong or not lanes:
            raise error(
                f"transport: need {self.transport}, UCX took {', '.join(wrong) or 'nothing known'};"
                " unset the UCX_ variables of its environment, or set another `transport`"
            )

    def prove(self) -> None:
        """Write to another agent in this process, and see that it came, and how.

        Raises: ConfigError
        """
        other = NixlAgent(self.transport, 1, interface_of=self._interface_of)
        self.memory[:SLOT_BYTES] = 7
        try:
            self.connect(other.ring())
            self.write(0, SLOT_BYTES, other.ring(), 0, _PROBE_S)
        except PeerError as error:
            raise ConfigError(f"transport {self.transport}: {error}") from None
        if not (other.memory == 7).all():
            raise ConfigError(f"transport {self.transport}: a write was said to be done and is not")
        self._forget(other.name)
        other.close()
        logger.info("rows travel by %s over %s", self.transport, ", ".join(sorted(self.lanes())))

    def close(self) -> None:
        """Nobody can write here any more."""
        for name in list(self._known):
            self._forget(name)
        self._agent.deregisterMem(self._registered)
        del self._agent

    def _give_up(self, handle: int | None, peer: str, problem: str) -> None:
        """Raises: PeerError."""
        for line in _log.complaints():
            logger.warning("UCX: %s", line)
        self._forget(peer)
        try:
            if handle is not None:
                self._agent.releaseXferReq(handle)
        except Exception:
            raise WriteStillOn(problem) from None
        raise PeerError(problem)

    def _forget(self, peer: str) -> None:
        with self._lock:
            if self._known.pop(peer, "unknown") is None:
                try:
                    self._agent.invalidateRemoteMD(peer)
                except Exception as error:
                    logger.info("NIXL does not let go of agent %s: %s", peer, _why(error))


class WriteStillOn(PeerError):
    """A write was given up that NIXL could not call back."""


def _library() -> Any:
    try:
        library = importlib.import_module("nixl_cu12._bindings")
    except ImportError as error:
        raise ConfigError(
            f"transport: NIXL can't be loaded: {error}; pip install 'hetero[rdma]', or set "
            "`transport: tcp`"
        ) from None
    # It logs to stdout, which belongs to the CLI.
    logging.getLogger("nixl").handlers.clear()
    logging.getLogger("nixl").setLevel(logging.WARNING)
    _leave_without_destructors()
    return library


@cache
def _leave_without_destructors() -> None:
    """A library that comes with the wheel (libnl-route, for UCX's verbs) crashes in its destructor,
    so a process that is done and wants to exit is made to, with its status, before that."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc's
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)


def _interface(address: str) -> str:
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(address, None)}
    except OSError:
        found = set()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] in found for one in addresses):
            return name
    raise ConfigError(f"{address}: need an address of this machine")


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
