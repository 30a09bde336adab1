"""Fetch a GGUF from the Hugging Face hub into the hub's own cache, where other programs find it.

`huggingface_hub` lists the repository and files the result; the bytes are fetched here, because
since version 1.18 the library starts an interrupted file again from its first byte, and a 40 GB
model takes a home line a night. Files above the hub's limit for plain HTTP are left to the library.
"""

import fcntl
import hashlib
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hetero.errors import ConfigError, HeteroError, ModelError, PlanError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

DEFAULT_QUANT = "Q4_K_M"

# The file's own server may be slow to start (cold storage); a dead line should still be noticed.
_READ_TIMEOUT_S = 60.0
# In a row, without a single new byte.
MAX_FAILURES = 5
RETRY_AFTER_S = 1.0

_SPLIT = re.compile(r"-\d{5}-of-(?P<count>\d{5})\.gguf$")
# GGUFs that are not language models: image encoders and quantization statistics.
_NOT_A_MODEL = ("mmproj", "imatrix")


@dataclass(frozen=True, slots=True, kw_only=True)
class _RemoteFile:
    name: str
    num_bytes: int
    sha256: str


def pull(
    repo_id: str,
    quant: str | None = None,
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download "org/repo" or "org/repo:QUANT" (or a file's name for QUANT); return its first part.

    What arrived of an interrupted download stays, and the next call goes on from there.
    Raises: ConfigError if there is no such repository, permission or file, ModelError if the
    download fails, PlanError if the disk is too small.
    """
    # Half a second that other users of this package should not pay.
    from huggingface_hub import HfApi, constants

    repo_id, _, named_quant = repo_id.partition(":")
    quant = quant or named_quant or None
    cache_dir = Path(cache_dir or constants.HF_HUB_CACHE)
    api = HfApi(endpoint=endpoint)
    info = _repo_info(api, repo_id, cache_dir)
    parts = _choose_parts(repo_id, info, quant)
    total_bytes = sum(part.num_bytes for part in parts)
    paths = []
    before_bytes = 0
    for part in parts:

        def report(part_bytes: int, before_bytes: int = before_bytes) -> None:
            if progress is not None:
                progress(before_bytes + part_bytes, total_bytes)

        paths.append(_pull_part(api, repo_id, info.sha, part, cache_dir, report))
        before_bytes += part.num_bytes
        report(part.num_bytes)
    return paths[0]
