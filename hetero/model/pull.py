"""Fetch a GGUF from the Hugging Face hub into the hub's own cache, where other programs find it.

`huggingface_hub` lists the repository and files the result; the bytes are fetched here, because
since version 1.18 the library starts an interrupted file again from its first byte, and a 40 GB
model takes a home line a night. What plain HTTP doesn't carry is left to the library.
"""

import fcntl
import hashlib
import logging
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import httpx

from hetero.errors import ConfigError, HeteroError, ModelError, PlanError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

DEFAULT_QUANT = "Q4_K_M"

# Cold storage may take a while to start; a dead line should still be noticed.
_TIMEOUT_S = 60.0
# In a row, without a new byte in between.
MAX_FAILURES = 5
RETRY_AFTER_S = 1.0

_SPLIT = re.compile(r"-\d{5}-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
# GGUFs that are not language models: image encoders and quantization statistics.
_NOT_A_MODEL = ("mmproj", "imatrix")


@dataclass(frozen=True, slots=True, kw_only=True)
class _RemoteFile:
    name: str
    num_bytes: int
    sha256: str | None  # only files in large-file storage have one


def pull(
    repo_id: str,
    quant: str | None = None,
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download "org/repo" or "org/repo:QUANT" (or a file's name for QUANT); return its first part.

    What arrived of an interrupted download stays, and the next call goes on from there. `progress`
    is told the bytes that are here and their total.
    Raises: ConfigError if there is no such repository, permission or file, ModelError if the
    download fails, PlanError if the disk is too small.
    """
    # A tenth of a second and more, which only this function should pay.
    from huggingface_hub import HfApi, constants

    repo_id, _, quant_of_name = repo_id.partition(":")
    api = HfApi(endpoint=endpoint)
    cache_dir = Path(cache_dir or constants.HF_HUB_CACHE)
    commit, files = _list_models(api, repo_id)
    parts = _choose(repo_id, files, quant or quant_of_name or None)
    total_bytes = sum(part.num_bytes for part in parts)
    paths = []
    for index, part in enumerate(parts):
        here_bytes = sum(earlier.num_bytes for earlier in parts[:index])

        def report(part_bytes: int, here_bytes: int = here_bytes) -> None:
            if progress is not None:
                progress(here_bytes + part_bytes, total_bytes)

        paths.append(_pull_file(api, repo_id, commit, part, cache_dir, report))
        report(part.num_bytes)
    return paths[0]


def _list_models(api: "HfApi", repo_id: str) -> tuple[str, list[_RemoteFile]]:
    """The newest commit, and its GGUF files that are language models."""
    from huggingface_hub.errors import HFValidationError

    try:
        info = api.model_info(repo_id, files_metadata=True)
    except HFValidationError as error:
        raise ConfigError(f"{repo_id!r}: not a repository name: need org/repo[:QUANT]") from error
    except _hub_errors() as error:
        raise _explained(api, repo_id, error) from error
    files = []
    for entry in info.siblings or ():
        name = entry.rfilename.rsplit("/", 1)[-1].lower()
        if name.endswith(".gguf") and not any(word in name for word in _NOT_A_MODEL):
            sha256 = entry.lfs.sha256 if entry.lfs else ""
            files.append(
                _RemoteFile(
                    name=entry.rfilename,
                    num_bytes=entry.size or 0,
                    sha256=sha256 if _SHA256.fullmatch(sha256) else None,
                )
            )
    if info.sha is None or not files:
        raise ConfigError(f"{repo_id}: no GGUF model in this repository: look for one named -GGUF")
    return info.sha, files


def _choose(repo_id: str, files: list[_RemoteFile], quant: str | None) -> list[_RemoteFile]:
    """The parts of the one model that `quant` names, in order."""
    models: dict[str, list[_RemoteFile]] = defaultdict(list)
    for file in sorted(files, key=lambda file: file.name):
        models[_SPLIT.sub(".gguf", file.name)].append(file)
    names = ", ".join(models)
    label = re.compile(rf"(?<![a-z0-9_]){re.escape(quant or DEFAULT_QUANT)}(?![a-z0-9_])", re.I)
    # A name may come with its folder or without; a label is a word of it: Q4_K is not in Q4_K_M.
    chosen = [name for name in models if quant in (name, name.rsplit("/", 1)[-1])]
    chosen = chosen or [name for name in models if label.search(name)]
    if quant is None and len(models) == 1:
        chosen = list(models)
    if not chosen:
        raise ConfigError(f"{repo_id}: no {quant or DEFAULT_QUANT} here, need one of: {names}")
    if len(chosen) > 1:
        raise ConfigError(
            f"{repo_id}: {quant or DEFAULT_QUANT} names several models, need one of: "
            f"{', '.join(chosen)}; write {repo_id}:FILE"
        )
    parts = models[chosen[0]]
    split = _SPLIT.search(parts[0].name)
    need = int(split["count"]) if split else 1
    if len(parts) != need:
        raise ConfigError(f"{repo_id}: {chosen[0]}: need {need} parts, the hub has {len(parts)}")
    return parts


def _pull_file(
    api: "HfApi",
    repo_id: str,
    commit: str,
    file: _RemoteFile,
    cache_dir: Path,
    report: Callable[[int], None],
) -> Path:
    from huggingface_hub import constants, get_token, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name

    if file.sha256 is not None and file.num_bytes <= constants.MAX_HTTP_DOWNLOAD_SIZE:
        # The cache's documented layout: contents by hash, which the library then links by name.
        folder = repo_folder_name(repo_id=repo_id, repo_type="model")
        blob = cache_dir / folder / "blobs" / file.sha256
        if not blob.exists():
            url = hf_hub_url(repo_id, file.name, revision=commit, endpoint=api.endpoint)
            token = get_token()
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            _fetch_blob(url, headers, file, file.sha256, blob, report)
    try:
        path = api.hf_hub_download(repo_id, file.name, revision=commit, cache_dir=cache_dir)
    except _hub_errors() as error:
        raise _explained(api, repo_id, error) from error
    return Path(path)


def _fetch_blob(
    url: str,
    headers: Mapping[str, str],
    file: _RemoteFile,
    sha256: str,
    blob: Path,
    report: Callable[[int], None],
) -> None:
    """Complete `<blob>.partial`, check it, and give it its name."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial_path = blob.with_name(f"{blob.name}.partial")
    partial_path.touch()
    with open(partial_path, "r+b") as partial:
        try:
            fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{file.name}: another pull is downloading it") from None
        if blob.exists():
            # Another pull finished it, and renamed what we have open, before we had the lock.
            return
        need_bytes = file.num_bytes - partial.seek(0, 2)
        free_bytes = shutil.disk_usage(blob.parent).free
        if free_bytes < need_bytes:
            raise PlanError(
                f"{blob.parent}: need {need_bytes / 2**30:.1f} GiB for {file.name}, "
                f"have {free_bytes / 2**30:.1f} GiB free; HF_HOME moves the cache"
            )
        _fetch(url, headers, file, partial, report)
        partial.seek(0)
        if hashlib.file_digest(partial, "sha256").hexdigest() != sha256:
            partial_path.unlink()
            raise ModelError(f"{file.name}: what arrived has another checksum: pull it again")
        partial_path.replace(blob)


def _fetch(
    url: str,
    headers: Mapping[str, str],
    file: _RemoteFile,
    partial: IO[bytes],
    report: Callable[[int], None],
) -> None:
    """Append the bytes that `partial` lacks, asking again where the line broke."""
    failures = 0
    while (have := partial.tell()) < file.num_bytes:
        # Not compressed, so that an offset in the stream is an offset in the file.
        ask = {**headers, "Range": f"bytes={have}-", "Accept-Encoding": "identity"}
        try:
            with httpx.stream(
                "GET", url, headers=ask, follow_redirects=True, timeout=_TIMEOUT_S
            ) as response:
                response.raise_for_status()
                if response.status_code != httpx.codes.PARTIAL_CONTENT:
                    partial.seek(0)
                    partial.truncate()
                for chunk in response.iter_raw():
                    partial.write(chunk)
                    report(partial.tell())
        except httpx.HTTPStatusError as error:
            if not error.response.is_server_error:
                status = error.response.status_code
                raise ModelError(f"{file.name}: the hub refuses it with status {status}") from error
            reason = f"status {error.response.status_code}"
        except httpx.RequestError as error:
            reason = str(error) or type(error).__name__
        else:
            reason = "the connection closed early"
        partial.flush()
        here = partial.seek(0, 2)
        if here >= file.num_bytes:
            break
        failures = 0 if here > have else failures + 1
        if failures >= MAX_FAILURES:
            raise ModelError(
                f"{file.name}: need {file.num_bytes} bytes, have {here}: {reason}; "
                "pull again to go on from there"
            )
        logger.warning("%s: %s at byte %d, asking for the rest", file.name, reason, here)
        time.sleep(RETRY_AFTER_S)


def _hub_errors() -> tuple[type[Exception], ...]:
    # The library's HTTP client, whose errors it lets through, has changed between its versions.
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    return (HTTPError, OSError)


def _explained(api: "HfApi", repo_id: str, error: Exception) -> HeteroError:
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    match error:
        case GatedRepoError():
            return ConfigError(
                f"{repo_id}: gated: accept its terms at {api.endpoint}/{repo_id}, "
                "then log in with `hf auth login` or set HF_TOKEN"
            )
        case RepositoryNotFoundError():
            return ConfigError(
                f"{repo_id}: no such repository at {api.endpoint}, or a private one: "
                "check the name, or set HF_TOKEN"
            )
        case OfflineModeIsEnabled():
            return ConfigError(f"{repo_id}: HF_HUB_OFFLINE is set: unset it to pull")
        case _:
            return ModelError(f"{repo_id}: {api.endpoint} can't be reached or failed: {error}")
