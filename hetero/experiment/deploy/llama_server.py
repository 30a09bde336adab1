"""llama-server in our place: one process on one host, with our model, cores, slots and cache."""

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from hetero.errors import ConfigError, EngineError
from hetero.experiment.deploy.node_configs import kv_pair
from hetero.experiment.deploy.site import Site
from hetero.experiment.recipe.recipe import Peer, Settings

VARIABLE = "HETERO_LLAMA_SERVER"
NAME = "llama-server"


def find_binary(peer: Peer) -> Path:
    """Raises: ConfigError saying how to get one."""
    said = peer.binary or os.environ.get(VARIABLE)
    way_out = (
        f"build one with tools/build_llama_server.sh DIR, and set {VARIABLE} to its path, behind "
        f"sudo, which drops it: `sudo {VARIABLE}=PATH hetero run ...`"
    )
    if not said:
        raise ConfigError(f"peer.binary: need the path of llama-server, have none; {way_out}")
    path = Path(said).expanduser().absolute()
    if not path.is_file() or not os.access(path, os.X_OK):
        field = "peer.binary" if peer.binary else VARIABLE
        raise ConfigError(f"{field}: need llama-server there, have no program {path}; {way_out}")
    return path


def binary_version(path: Path) -> str:
    """In its own words. Raises: EngineError if it does not run."""
    try:
        run = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{path}: need its version, have: {error}") from None
    words = " ".join((run.stdout + run.stderr).split())
    if run.returncode != 0:
        raise EngineError(f"{path}: need its version, have: {words or run.returncode}")
    return words


def server_argv(
    binary: Path, model: Path, settings: Settings, address: str, port: int
) -> list[str]:
    """Its defaults, but for these.

    As ours: K and V of these types with flash attention, a cache of its own per slot, as many
    threads for a prompt as for tokens, weights read instead of mapped (so that they get huge pages
    where ours do), at most chunk_tokens in a pass over them (a step of several passes reads all
    the prompts that wait, up to --batch-size), and nothing remembered between requests. It could
    use again what a slot or its host memory holds of the same beginning
    (--cache-prompt, --slot-prompt-similarity, --cache-ram), and we can't. Left on, a prompt that a
    run repeats would cost it nothing; off, a workload whose prompts share beginnings hides a
    strength of it, which a report must say.
    """
    kv_k, kv_v = kv_pair(settings.kv)
    options = {
        "--model": model,
        "--host": address,
        "--port": port,
        "--ctx-size": settings.slots * settings.context_tokens,
        "--parallel": settings.slots,
        "--threads": settings.threads,
        "--threads-batch": settings.threads,
        "--ubatch-size": settings.chunk_tokens,
        "--cache-type-k": kv_k,
        "--cache-type-v": kv_v,
        "--flash-attn": "on",
        "--load-mode": "none",
        "--fit": "off",  # it would choose what is not said by the memory that is free
        "--slot-prompt-similarity": "0",
        "--cache-ram": "0",
        "--ctx-checkpoints": "0",
        # A line a request is printed by default, which is work on the engine's core.
        "--log-verbosity": "2",
    }
    flags = ["--no-kv-unified", "--cont-batching", "--no-cache-prompt", "--no-webui", "--offline"]
    return [str(binary), *(str(word) for pair in options.items() for word in pair), *flags]


def free_port() -> int:
    """A free one here; in a namespace of its own any is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def await_healthy(site: Site, host: str, port: int, check_alive: Callable[[], None]) -> None:
    """Until its model is loaded. Raises: what `check_alive` does."""
    while True:
        check_alive()
        answer = site.get(host, port, "/health")
        if answer is not None and answer[0] == 200:
            return
        time.sleep(0.05)
