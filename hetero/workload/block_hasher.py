"""Token blocks -> ids that tell which prompts begin alike, and nothing of what they say."""

import hashlib
import secrets
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from hetero.workload.schedule import BLOCK_TOKENS

_DIGEST_BYTES = 16

# 134 million tokens of different text, in some 50 MB of memory. The block longest not seen is
# forgotten first: seen again, it gets a new id and counts as new text.
_MAX_BLOCKS = 2**18


class BlockHasher:
    """Ids of one recording: 0, 1, 2 ... as blocks are first seen.

    An id stands for its block and all before it: equal ids are equal prefixes. The digests behind
    the ids are keyed with a secret that is drawn here and never leaves, so neither they nor the
    ids can be computed from guessed text, and two recordings' ids have nothing to do with each
    other.
    """

    def __init__(self, block_tokens: int = BLOCK_TOKENS, max_blocks: int = _MAX_BLOCKS) -> None:
        self._block_tokens = block_tokens
        self._max_blocks = max_blocks
        self._secret = secrets.token_bytes(32)
        self._ids: OrderedDict[bytes, int] = OrderedDict()
        self._num_seen = 0

    def ids(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Of each block of a prompt; the last block may be cut short."""
        found = []
        digest = b""
        for start in range(0, len(prompt), self._block_tokens):
            tokens = array("q", prompt[start : start + self._block_tokens]).tobytes()
            digest = hashlib.blake2b(
                digest + tokens, digest_size=_DIGEST_BYTES, key=self._secret
            ).digest()
            found.append(self._id(digest))
        return tuple(found)

    def _id(self, digest: bytes) -> int:
        known = self._ids.pop(digest, None)
        if known is None:
            known = self._num_seen
            self._num_seen += 1
            if len(self._ids) >= self._max_blocks:
                self._ids.popitem(last=False)
        self._ids[digest] = known
        return known
