"""Which nodes may talk to a router: `allowed/NAME.key` in its keys directory, a public key each.

The files are the list: it is read again when they change, so that allowing and revoking need no
restart and no message.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from hetero.errors import ConfigError
from hetero.transport.keys import PUBLIC_SUFFIX, check_name, check_public_key, read_public_key

logger = logging.getLogger(__name__)

# Name, time of change, size and inode of every file: whatever puts another key there changes one.
_Signature = frozenset[tuple[str, int, int, int]]

_ALLOWED = "allowed"

# A file that came or went is seen at the next question, by the directory's time of change. One that
# was written over in place, or within a tick of the file system's clock, is seen after this.
_LOOK_CLOSER_S = 0.25


class AllowList:
    """Safe to ask from any thread: what was read is replaced as a whole."""

    def __init__(self, keys_directory: Path) -> None:
        self.directory = keys_directory / _ALLOWED
        # No signature: what could be read is not all.
        self._read: tuple[_Signature | None, dict[str, str]] = (frozenset(), {})
        self._changed_ns = 0
        self._look_at = 0.0

    def __contains__(self, public_key: str) -> bool:
        return public_key in self.keys().values()

    def permits(self, name: str, public_key: str) -> bool:
        """Whether the holder of that key may go by that name."""
        return self.keys().get(name) == public_key

    def names_of(self, public_key: str) -> list[str]:
        return sorted(name for name, key in self.keys().items() if key == public_key)

    def keys(self) -> dict[str, str]:
        """Public keys by name, as the files say now. No directory, no list: then nobody may."""
        now, changed_ns = time.monotonic(), self._directory_changed_ns()
        if changed_ns == self._changed_ns and now < self._look_at:
            return self._read[1]
        try:
            signature = self._signature()
            if signature != self._read[0]:
                self._read = (signature, self._load(signature))
        except OSError as error:
            # So it is when strangers hold the last file descriptor: they shut nobody else out.
            if self._read[0] is not None:
                logger.error("allow-list %s: can't read it: %s", self.directory, error.strerror)
            known = self._read[1].items()
            self._read = (None, {n: key for n, key in known if os.path.exists(self._file(n))})
        # Last: another thread must not go by them before it finds what was read.
        self._changed_ns, self._look_at = changed_ns, now + _LOOK_CLOSER_S
        return self._read[1]

    def allow(self, name: str, public_key: str) -> Path:
        """Its file. Raises: ConfigError if the name is another key's, or is none."""
        path = self._file(name)
        check_public_key(public_key, f"key of {name}")
        known = self.keys().get(name)
        if known == public_key:
            return path
        if known is not None:
            raise ConfigError(
                f"{name}: is allowed already with the key {known}; `hetero keys revoke` it first"
            )
        draft = path.with_name(f".{path.name}.new")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.write_text(f'metadata\ncurve\n    public-key = "{public_key}"\n')
            draft.chmod(0o644)
            draft.replace(path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{path}: can't write it: {reason}") from None
        return path

    def revoke(self, name: str) -> str:
        """The key that may not talk any more. Raises: ConfigError if there is none."""
        path = self._file(name)
        known = self.keys().get(name)
        try:
            path.unlink()
        except FileNotFoundError:
            names = ", ".join(sorted(self.keys())) or "nobody"
            raise ConfigError(f"{name}: need a node that is allowed, have {names}") from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ConfigError(f"{path}: can't remove it: {reason}") from None
        return known or ""

    def _file(self, name: str) -> Path:
        return self.directory / f"{check_name(name)}{PUBLIC_SUFFIX}"

    def _directory_changed_ns(self) -> int:
        try:
            return os.stat(self.directory).st_mtime_ns
        except OSError:
            return 0

    def _signature(self) -> _Signature:
        signature = set()
        with suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name.endswith(PUBLIC_SUFFIX) and not entry.name.startswith("."):
                    with suppress(FileNotFoundError):  # revoked at this moment
                        status = entry.stat()
                        signature.add(
                            (entry.name, status.st_mtime_ns, status.st_size, status.st_ino)
                        )
        return frozenset(signature)

    def _load(self, signature: _Signature) -> dict[str, str]:
        keys = {}
        for file_name, *_ in sorted(signature):
            path = self.directory / file_name
            try:
                keys[file_name.removesuffix(PUBLIC_SUFFIX)] = read_public_key(path)
            except ConfigError as error:
                logger.error("allow-list: %s; it allows nobody", error)
            except OSError:
                if os.path.exists(path):  # else it was revoked at this moment
                    raise
        return keys
