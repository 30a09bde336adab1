"""A recipe: a question, and what must be measured to answer it. YAML, checked; no I/O here.

`kind` says what an arm is: load on a served model (`serving`), the answers of a quantized cache
(`kv-quality`), or KV over a wire with nothing at its ends (`kv-wire`).
"""

from typing import Annotated, Any, Literal

import msgspec

from hetero.experiment.recipe.figures import Check, Figure, NotEmpty, Plot, Value
from hetero.messages import SealName

RoleName = Literal["prefill", "decode"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
HostName = str
CandidateName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ModelShape(_Part, frozen=True, kw_only=True):
    """A llama of these sizes with random weights: for timing, never for text."""

    layers: Positive
    hidden: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    ffn: Positive
    vocab: Positive


class Model(_Part, frozen=True, kw_only=True):
    """One of: `demo: true`; `file` with its blake3 `hash`; `shape` (a name, or sizes) with `quant`
    and `seed`, written once."""

    demo: bool = False
    file: str | None = None
    hash: str | None = None
    shape: str | ModelShape | None = None
    quant: str = "f16"
    seed: int = 0


class LabHost(_Part, frozen=True, kw_only=True):
    """cpus: "any" is one whole core of this machine that no other host has."""

    cpus: str | None = "any"
    quota: PositiveFloat | None = None  # CPU seconds per second, refilled every 5 ms
    memory: str | None = None


class Lab(_Part, frozen=True, kw_only=True):
    """Hosts here, each a namespace, joined by one cable each pair; router and load generator run on
    a host of their own with fast cables to all, at low priority. rate: of the cables between hosts,
    where `link_rate` and `wire_ratio` of the settings do not say otherwise."""

    hosts: dict[HostName, LabHost]
    rate: str = "10gbit"
    mtu: int = 1500


class Cluster(_Part, frozen=True, kw_only=True):
    """`lab`, or neither: this machine as it is, with the host names in candidates standing for it.
    `file` will name a cluster.yaml of real hosts."""

    lab: Lab | None = None
    file: str | None = None


class Emulated(_Part, frozen=True, kw_only=True):
    """A prefill node that sleeps as long as a device of a preset would compute, and sends recorded
    rows. What it takes part in is marked emulated."""

    preset: NotEmpty


class Peer(_Part, frozen=True, kw_only=True):
    """Another server in our place, one process on one host, with the same model, cores and slots.

    binary: its path; None: from the settings' environment variable HETERO_LLAMA_SERVER.
    """

    server: Literal["llama-server"]
    binary: str | None = None


class Settings(_Part, frozen=True, kw_only=True):
    """Of an arm; the recipe's, then a candidate's own, then what is varied."""

    # Of the deployment.
    kv: str = "f16"  # type of K and V, or a pair as q8_0/q4_0
    context_tokens: Positive = 1024  # of one sequence
    slots: Positive = 4  # of each decode node
    chunk_tokens: Positive = 256
    threads: Positive = 1
    prefill_engine: Literal["auto", "torch", "llama"] = "llama"
    seal: SealName = "aead"
    connections: Positive | None = None
    # Of the network: a rate, or the ratio of what prefill yields in KV to what the link carries,
    # which stays meaningful on a faster machine. Neither: the lab's rate.
    link_rate: str | None = None
    wire_ratio: PositiveFloat | None = None
    # Of the load.
    route: Literal["auto", "local", "split"] = "auto"
    concurrency: Positive | None = None  # closed loop: sessions at once
    rate: PositiveFloat | None = None  # open loop: sessions per second
    requests: Positive | None = None  # in all; None: four for each concurrent one, eight at least
    prompt_tokens: Positive | None = None  # instead of the workload's
    output_tokens: Positive | None = None
    beside_rate: Annotated[float, msgspec.Meta(ge=0)] | None = None  # of the load beside


class Candidate(_Part, frozen=True, kw_only=True):
    """Who does what, on hosts of the cluster; or a peer on one of them."""

    prefill: list[HostName] = []
    decode: list[HostName] = []
    emulated: dict[HostName, Emulated] = {}  # of the prefill hosts
    peer: Peer | None = None
    settings: dict[str, Value] = {}  # instead of the recipe's
    # Settings that are varied and make no difference to this candidate: it runs once for all.
    ignores: list[str] = []


class _Recipe(_Part, frozen=True, kw_only=True, tag_field="kind"):
    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    question: NotEmpty  # a sentence
    vary: dict[str, list[Value]] = {}
    repetitions: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    seed: int = 0
    figures: dict[str, Figure]
    checks: list[Check] = []
    plots: list[Plot] = []
    caveats: list[str] = []  # for the report: what the answer does not cover
    minutes: PositiveFloat | None = None  # what a run took on the machine it was written on


class Serving(_Recipe, frozen=True, kw_only=True, tag="serving"):
    """load: as `-w` of `hetero bench` takes it: a name, a file of a trace, or lengths by hand."""

    cluster: Cluster
    model: Model
    candidates: dict[CandidateName, Candidate]
    load: str | dict[str, Any]
    beside: str | dict[str, Any] | None = None  # load that runs beside the measured one
    settings: Settings = Settings()
    slo: str = ""


class QualitySettings(_Part, frozen=True, kw_only=True):
    k: str = "f16"
    v: str = "f16"
    prompts: Positive = 20
    prompt_tokens: Positive = 1024


class Quality(_Recipe, frozen=True, kw_only=True, tag="kv-quality"):
    """texts: UTF-8 files to compute KL divergence on; without one, the demo model's recall task
    serves both."""

    model: Model
    settings: QualitySettings = QualitySettings()
    texts: list[str] = []


class WireSettings(_Part, frozen=True, kw_only=True):
    shape: str = "llama-3.1-8b"  # whose rows; no weights are needed
    kv: str = "q8_0"
    tokens: Positive = 2048  # of a transfer
    link_rate: str = "10gbit"
    mtu: Positive = 1500
    seal: SealName = "aead"
    connections: Positive | None = None
    frame_bytes: Positive | None = None  # None: as a node would
    seconds: Positive = 5


class Wire(_Recipe, frozen=True, kw_only=True, tag="kv-wire"):
    settings: WireSettings = WireSettings()


Recipe = Serving | Quality | Wire
