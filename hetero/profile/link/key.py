"""The key of one measurement: short enough to be typed on the other machine."""

import base64
import binascii
import secrets

import blake3

from hetero.errors import ConfigError
from hetero.messages import Ticket

SESSION = "link profile"

_SECRET_BYTES = 15  # 24 characters, no padding

# The ends of a measurement may be silent for as long as a transfer takes.
PATIENCE_S = 60.0


def new_key() -> str:
    """24 letters and digits in groups of six."""
    text = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode().lower()
    return "-".join(text[start : start + 6] for start in range(0, len(text), 6))


def session_ticket(key: str, address: str) -> Ticket:
    """What both ends make of a key. Raises: ConfigError if it isn't one."""
    try:
        secret = base64.b32decode(key.replace("-", "").strip().upper())
    except binascii.Error:
        secret = b""
    if len(secret) != _SECRET_BYTES:
        raise ConfigError(
            "key: need the 24 letters and digits that `hetero profile link --listen` printed, "
            "have something else"
        )
    return Ticket(
        ticket_id=SESSION,
        address=address,
        num_tokens=0,
        lease_s=PATIENCE_S,
        key=blake3.blake3(secret, derive_key_context="hetero link profile session").digest(),
        seal="aead",
    )
