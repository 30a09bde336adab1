"""What can go wrong, by whose fault it is.

Messages say which, need, have, and the way out. Only `hetero.cli` turns these into exit codes;
a node turns them into the failure of one request and lives on.
"""


class HeteroError(Exception):
    """Anything hetero refuses to do, with a message fit for the user."""


class ConfigError(HeteroError):
    """The user's file, option or request body is wrong."""


class ModelError(HeteroError):
    """The model file is missing, damaged, or of a kind this part can't run."""


class PlanError(HeteroError):
    """It does not fit: memory, context, slots."""


class CodecError(HeteroError):
    """Bytes or values that can't be encoded or decoded."""


class PeerError(HeteroError):
    """The other side broke the protocol, or is not the peer we took it for."""


class NodeLostError(HeteroError):
    """A node went away with the request: sent again, it may succeed elsewhere."""


class EngineError(HeteroError):
    """An engine (torch, llama.cpp) failed at something it should have managed."""
