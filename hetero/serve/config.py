"""What a node process is told in its file (`hetero node ROLE --config F`)."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from hetero.errors import ConfigError
from hetero.llama.load_mode import LoadMode
from hetero.messages import SealName, TransportName
from hetero.transport.window import MAX_CONNECTIONS

# Where nothing is measured: a step of this many tokens is near the best rate of a CPU.
DEFAULT_CHUNK_TOKENS = 512

Positive = Annotated[int, msgspec.Meta(ge=1)]
CPU = Annotated[int, msgspec.Meta(ge=0)]
NumaNode = Annotated[int, msgspec.Meta(ge=0, le=1023)]  # more than any kernel is built for
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Connections = Annotated[int, msgspec.Meta(ge=1, le=MAX_CONNECTIONS)]
Address = Annotated[str, msgspec.Meta(pattern=r"^tcp://[^/]+:(\d+|\*)$")]
_T = TypeVar("_T", bound=msgspec.Struct)


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    model: str  # path of the GGUF file; of a split one the first part


class _NodeConfig(_Config, frozen=True, kw_only=True):
    router: Address  # the router's control address
    router_key: str  # its public key, as `hetero keys list` there prints it
    key: str  # path of this node's NAME.key_secret


class _EngineConfig(_NodeConfig, frozen=True, kw_only=True):
    """`hetero profile node` finds these for a machine and a model."""

    threads: Positive = 1
    cpus: tuple[CPU, ...] = ()  # to run on; empty: as the system likes
    interleave: tuple[NumaNode, ...] = ()  # that memory lies on in turn; empty: as it is touched
    load: LoadMode = "read"  # llama.cpp: how weights come into memory


class RouterConfig(_Config, frozen=True, kw_only=True):
    """Listens for clients on host:port and for nodes on `control`. Port 0 takes a free one."""

    keys: str  # path of the directory with the router's NAME.key_secret and the list, allowed/

    host: str = "127.0.0.1"
    port: Port = 8080
    control: Address = "tcp://127.0.0.1:0"
    keep_alive_s: float = 10.0
    # A new file for what requests were like: times, lengths, which began alike; no text. Mooncake's
    # JSONL, to replay or to plan with. If it is there, the next free name after it is taken.
    record: str | None = None
    # Whether prefill nodes may replay recorded rows (`engine: replay`), for experiments: most
    # answers are then nonsense.
    allow_emulated: bool = False


class PrefillConfig(_EngineConfig, frozen=True, kw_only=True):
    kv_k: str = "q8_0"
    kv_v: str = "q8_0"
    context_tokens: Positive = 8192
    engine: Literal["auto", "torch", "llama", "replay"] = "auto"
    attention: Literal["auto", "sdpa", "triton"] = "auto"
    residency: Literal["auto", "resident", "quantized", "streamed"] = "auto"  # torch: the weights
    device: str = "auto"  # torch: cpu, cuda, cuda:1 ...
    dtype: str = "auto"
    chunk_tokens: Positive | None = None  # None: torch on a GPU measures
    gpu_layers: int = 0  # llama
    recording: str | None = None  # replay: path of the rows to send
    pace: str | None = None  # replay: path of a profile of the device to take the time of
    seal: SealName = "aead"  # the weakest protection of KV on the wire that this node agrees to
    connections: Connections | None = None  # per transfer; None: as many as the link needs
    transport: TransportName = "tcp"  # what carries rows: the same on both sides
    allow_tcp: bool = False  # nixl-*: send over TCP to decode nodes that have nothing else


class DecodeConfig(_EngineConfig, frozen=True, kw_only=True):
    listen: Address = "tcp://127.0.0.1:0"  # where prefill nodes send KV
    advertise: Address | None = None  # what they dial, where that differs: behind NAT or a proxy
    seal: SealName = "aead"  # how KV is protected on the wire
    transport: TransportName = "tcp"  # what carries rows: the same on both sides
    allow_tcp: bool = False  # nixl-*: take rows over TCP, too, where there is no free slot
    nixl_slots: Positive = 16  # nixl-*: of 2.1 MiB each, for all transfers
    kv_k: str = "q8_0"
    kv_v: str = "q8_0"
    context_tokens: Positive = 8192  # of one sequence: prompt and answer
    slots: Positive = 4
    unified: bool = False
    chunk_tokens: Positive = DEFAULT_CHUNK_TOKENS
    # Of the time, at least, for prompts read here while sequences run. Fuller batches make up for
    # what those wait; less of it keeps their tokens coming.
    prefill_share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.9
    credit_bytes: Positive = 64 * 2**20  # rows that may be in flight per transfer
    gpu_layers: int = 0


def load_config(path: Path, kind: type[_T]) -> _T:
    """Raises: ConfigError naming the file and the field."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ConfigError(
            f"{path}: can't read it: {(error.strerror or str(error)).lower()}"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        fields = ", ".join(field.encode_name for field in msgspec.structs.fields(kind))
        role = kind.__name__.removesuffix("Config").lower()
        raise ConfigError(
            f"{path}: need the settings of a {role} node, have: {error}; it has the fields "
            f"{fields}, and addresses are tcp://HOST:PORT"
        ) from None
