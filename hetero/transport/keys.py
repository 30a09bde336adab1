"""CURVE key pairs, and their files in pyzmq's certificate format.

`NAME.key_secret` holds both halves, has mode 600 and stays on its machine. `NAME.key` is the public
half: 40 characters of Z85 that anyone may see.
"""

import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.utils import z85

from hetero.errors import ConfigError

SECRET_SUFFIX, PUBLIC_SUFFIX = ".key_secret", ".key"

# It names files, on the router's machine too.
_NAME = re.compile(r"[^/.\x00-\x1f][^/\x00-\x1f]{0,62}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The secret half can be put on a socket, and nowhere else."""

    public: str
    _secret: bytes = field(repr=False)

    def set_on(self, socket: "zmq.Socket[Any]") -> None:
        """The socket is this key's from now on."""
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._secret)


def default_keys_directory() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config, "hetero", "keys")


def make_key(directory: Path, name: str) -> KeyPair:
    """A new pair in `directory`: NAME.key_secret and NAME.key.

    Raises: ConfigError if there is a key of that name, or it can't be written.
    """
    check_name(name)
    check_curve()
    secret_file = secret_file_of(directory, name)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Mode 700: nobody else sees what is written there, whatever the umask.
        with TemporaryDirectory(dir=directory, prefix=".new-") as draft:
            while True:
                public_draft, secret_draft = map(Path, create_certificates(draft, name))
                key = _key_pair(secret_draft)
                # So that it is not taken for an option, nor for YAML's syntax.
                if key.public[0].isalnum() and key.public[-1].isalnum():
                    break
            with open(os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.write(secret_draft.read_bytes())
            public_draft.chmod(0o644)
            public_draft.replace(public_file_of(directory, name))
    except FileExistsError:
        raise ConfigError(
            f"{secret_file}: there is a key of that name already; take another name, or move the "
            "file away first (and revoke it where it is allowed)"
        ) from None
    except OSError as error:
        raise ConfigError(f"{directory}: can't write a key there: {_reason(error)}") from None
    return key


def load_key(path: Path) -> KeyPair:
    """Raises: ConfigError if there is no secret key in that file, or others may read it."""
    check_curve()
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            raise ConfigError(
                f"{path}: need a secret key that only its owner can read, have mode "
                f"{mode & 0o777:o}: chmod 600 {path}"
            )
        return _key_pair(path)
    except OSError as error:
        name = "what stands there" if _looks_like_a_key(str(path)) else str(path)
        raise ConfigError(
            f"{name}: can't read the key's file: {_reason(error)}; `hetero keys make` makes one"
        ) from None


def load_public_key(path: Path) -> str:
    """Of a .key file. Raises: ConfigError; also for a file that holds a secret."""
    try:
        return read_public_key(path)
    except OSError as error:
        raise ConfigError(f"{path}: can't read the key: {_reason(error)}") from None


def read_public_key(path: Path) -> str:
    """Raises: ConfigError if it holds none, or a secret; OSError."""
    try:
        public, secret = load_certificate(path)
    except ValueError:
        raise ConfigError(
            f"{path}: need a public key (NAME.key), have another kind of file"
        ) from None
    if secret is not None:
        raise ConfigError(
            f"{path}: need a public key (NAME.key), have a secret one: it should not leave the "
            "machine it was made on; give the .key file beside it"
        )
    return check_public_key(public.decode("ascii", "replace"), str(path))


def _looks_like_a_key(text: str) -> bool:
    """Then it may be a secret, put where a file's name belongs: not to be repeated."""
    return len(text) == 40 and not text.endswith(SECRET_SUFFIX)


def check_public_key(text: str, which: str) -> str:
    """The key, if it is one. Raises: ConfigError that does not repeat it: it may be a secret."""
    try:
        if len(z85.decode(text)) == 32:
            return text
    except (KeyError, ValueError, struct.error):
        pass
    raise ConfigError(
        f"{which}: need a public key, 40 characters as `hetero keys list` prints them, have "
        f"{len(text)} characters that are none"
    )


def check_name(name: str) -> str:
    """Raises: ConfigError if a key can't have that name."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name {name!r}: need 1 to 63 characters without a slash, not beginning with a dot"
        )
    return name


def check_curve() -> None:
    """Raises: ConfigError if this libzmq can't encrypt."""
    if not zmq.has("curve"):
        raise ConfigError(
            f"libzmq {zmq.zmq_version()}: need one with CURVE, have one without; pip install "
            "--force-reinstall pyzmq brings its own"
        )


def secret_file_of(directory: Path, name: str) -> Path:
    return directory / f"{name}{SECRET_SUFFIX}"


def public_file_of(directory: Path, name: str) -> Path:
    return directory / f"{name}{PUBLIC_SUFFIX}"


def own_public_keys(directory: Path) -> dict[str, str]:
    """Of the pairs whose secret half is in `directory`, by name."""
    secrets = directory.glob(f"[!.]*{SECRET_SUFFIX}")
    return {path.name.removesuffix(SECRET_SUFFIX): load_key(path).public for path in secrets}


def _key_pair(path: Path) -> KeyPair:
    """Raises: ConfigError, OSError."""
    try:
        public, secret = load_certificate(path)
    except ValueError:
        public, secret = b"", None
    if secret is None:
        have = "a public one" if public else "another kind of file"
        raise ConfigError(f"{path}: need a secret key (NAME.key_secret), have {have}")
    try:
        matches = zmq.curve_public(secret) == public
    except (zmq.ZMQError, ValueError):
        matches = False
    if not matches:
        raise ConfigError(f"{path}: need both halves of one key, have a damaged file")
    return KeyPair(public.decode("ascii"), secret)


def _reason(error: OSError) -> str:
    return (error.strerror or "no such file").lower()
