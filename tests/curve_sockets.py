"""A test's own end of control lines: CURVE like any other, with keys made for the occasion."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hetero.serve.control import MAX_CONTROL_BYTES
from hetero.transport.allow_list import AllowList
from hetero.transport.control_socket import ControlListener, RouterContact, RouterKeys, dial
from hetero.transport.keys import load_key, make_key, secret_file_of


class ScratchKeys:
    """A router's keys, and those of nodes: made and allowed when first asked for."""

    def __init__(self):
        self._directory = TemporaryDirectory()
        self.directory = Path(self._directory.name)
        self.router_key = make_key(self.directory, "router").public
        self.allowed = AllowList(self.directory)

    def router(self):
        return RouterKeys.load(self.directory, "router")

    def node(self, name):
        path = secret_file_of(self.directory / "nodes", name)
        if path.exists():
            return load_key(path)
        key = make_key(path.parent, name)
        self.allowed.allow(name, key.public)
        return key

    def contact(self, name, address):
        return RouterContact(address=address, router_key=self.router_key, key=self.node(name))

    def close(self):
        self._directory.cleanup()


class CurveRouter:
    """A router's socket, driven by hand."""

    def __init__(self):
        self.keys = ScratchKeys()
        self._listener = ControlListener("tcp://127.0.0.1:0", self.keys.router(), MAX_CONTROL_BYTES)
        self.address = self._listener.address
        self.poll = self._listener.socket.poll
        self.recv_multipart = self._listener.socket.recv_multipart
        self.send_multipart = self._listener.socket.send_multipart

    def contact(self, name):
        return self.keys.contact(name, self.address)

    def close(self):
        self._listener.close()
        self.keys.close()


def node_socket(context, contact, route):
    """A node's socket, driven by hand."""
    return dial(context, contact, route, MAX_CONTROL_BYTES)
