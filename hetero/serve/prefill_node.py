"""The prefill node: jobs come from the router on one thread, prompts are read on another."""

import logging
import time

import zmq

from hetero.errors import PeerError
from hetero.messages import Cancel, Failed, NodeInfo, NodeLoad, Prefill, Renew, Sent, ToNode, failed
from hetero.serve.control import ControlLink
from hetero.serve.leases import Leases
from hetero.serve.prefill_worker import PrefillWorker
from hetero.transport.control_socket import RouterContact

logger = logging.getLogger(__name__)


class PrefillNode:
    """Runs until `stop`, or until its worker breaks."""

    def __init__(
        self,
        worker: PrefillWorker,
        info: NodeInfo,
        *,
        router: RouterContact,
        context: "zmq.Context[zmq.Socket[bytes]]",
    ) -> None:
        self._worker = worker
        self._leases = Leases()
        self._control = ControlLink(context, router, info, self.load)
        self._stopped = False

    def load(self) -> NodeLoad:
        return NodeLoad(
            active=self._worker.num_active,
            queued=self._worker.num_queued,
            kv_bytes_held=self._worker.kv_bytes_held,
            kv_moved_bytes=self._worker.moved_bytes,
        )

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._control.socket, zmq.POLLIN)
        poller.register(self._worker.results, zmq.POLLIN)
        while not self._stopped:
            poller.poll(int(1000 * self._control.beat()))
            for message in self._control.receive():
                self._obey(message)
            for result in self._worker.results.take_all():
                if isinstance(result, BaseException):
                    raise result
                if isinstance(result, Sent | Failed):  # always its last word on a request
                    self._leases.end(result.request_id)
                self._control.send(result)
            self._give_up_expired()
        self._control.close()

    def _obey(self, message: ToNode) -> None:
        match message:
            case Prefill():
                self._leases.start(message.request_id, time.monotonic())
                self._worker.submit(message)
            case Cancel():
                self._leases.end(message.request_id)
                self._worker.cancel(message.request_id)
            case Renew():
                for unknown in self._leases.renew(message.request_ids, time.monotonic()):
                    self._control.send(failed(unknown, PeerError("the node has forgotten it")))
            case _:
                logger.warning("need no %s on a prefill node, have one", type(message).__name__)

    def _give_up_expired(self) -> None:
        for request_id in self._leases.expired(time.monotonic()):
            self._leases.end(request_id)
            self._worker.cancel(request_id)
            late = PeerError(f"router: need a renewal every {self._leases.lease_s:g} s, have none")
            self._control.send(failed(request_id, late))
