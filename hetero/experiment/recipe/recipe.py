"""A recipe: a question, and what must be measured to answer it. YAML, checked; no I/O here.

`kind` says what an arm is: load on a served model (`serving`), the answers of a quantized cache
(`kv-quality`), or KV over a wire with nothing at its ends (`kv-wire`). Docstrings stand in the
JSON Schema too: `name: what it is`, a line for each field.
"""

from typing import Annotated, Literal

import msgspec

from hetero.experiment.recipe.figures import Check, Figure, NotEmpty, Plot, Value
from hetero.messages import SealName


def _text(pattern: str, description: str) -> msgspec.Meta:
    """description: in a refusal, it stands for the pattern."""
    return msgspec.Meta(pattern=f"^({pattern})$", description=description)


# The host of router and load generator, which every site has besides the recipe's.
FRONT = "front"

RoleName = Literal["prefill", "decode"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Mtu = Annotated[int, msgspec.Meta(ge=1280, le=9216)]  # a lab's limits
Name = Annotated[
    str, _text("[a-z0-9][a-z0-9-]{0,39}", "1 to 40 lowercase letters, digits and dashes")
]
CandidateName = Name
HostName = Annotated[
    str,
    _text("[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", "1 to 32 lowercase letters, digits and dashes"),
]
CpuList = Annotated[str, _text(r"any|\d+(-\d+)?(,\d+(-\d+)?)*", 'any, or a list as "0-3,8"')]
Size = Annotated[str, _text(r"\d+(\.\d+)?(MB|GB|MiB|GiB)", "a size as 4GB or 512MiB")]
Hash = Annotated[str, _text("[0-9a-f]{64}", "a blake3 digest: 64 digits of 0-9a-f")]
Load = NotEmpty | dict[str, Value | None]  # a mapping's keys are those of hetero.workload
Values = Annotated[list[Value], msgspec.Meta(min_length=1)]


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ModelShape(_Part, frozen=True, kw_only=True):
    """A llama of these sizes with random weights: for timing, never for text.

    layers: transformer blocks
    hidden: width of the residual stream
    heads: query heads
    kv_heads: key and value heads
    head_dim: width of a head
    ffn: width of the feed-forward layers
    vocab: tokens
    """

    layers: Positive
    hidden: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    ffn: Positive
    vocab: Positive


class Model(_Part, frozen=True, kw_only=True):
    """One of `demo`, `file` with its `hash`, and `shape`.

    demo: the model that hetero brings
    file: a GGUF file
    hash: blake3 of that file, as `b3sum` prints it
    shape: random weights, written once: a name as llama-3.2-1b, or sizes
    quant: of a shape's weights
    seed: of a shape's weights
    """

    demo: bool = False
    file: NotEmpty | None = None
    hash: Hash | None = None
    shape: NotEmpty | ModelShape | None = None
    quant: str = "f16"
    seed: Seed = 0


class LabHost(_Part, frozen=True, kw_only=True):
    """A namespace with CPUs and memory of its own.

    cpus: a list as "0-3,8"; any: one whole core of this machine that no other host has; null: all
    quota: CPU seconds per second, refilled every 5 ms
    memory: as 4GB or 512MiB; beyond it, the kernel kills a process of this host
    """

    cpus: CpuList | None = "any"
    quota: Annotated[float, msgspec.Meta(ge=0.2, le=4096)] | None = None  # a lab's limits
    memory: Size | None = None


class Lab(_Part, frozen=True, kw_only=True):
    """Hosts here, each a namespace, joined by one cable each pair; router and load generator run on
    a host of their own with fast cables to all, at low priority.

    hosts: by name; {} is one of defaults; front is the router's and load generator's
    rate: of the cables between hosts, 5mbit to 40gbit, where neither `link_rate` nor `wire_ratio`
        of the settings says otherwise
    mtu: of these cables
    """

    hosts: Annotated[dict[HostName, LabHost], msgspec.Meta(min_length=1)]
    rate: str = "10gbit"
    mtu: Mtu = 1500


class Cluster(_Part, frozen=True, kw_only=True):
    """`lab`, or neither: this machine as it is, with the host names in candidates standing for it.

    lab: hosts emulated on this machine; needs root
    file: will name a cluster.yaml of real hosts; refused until then
    """

    lab: Lab | None = None
    file: str | None = None


class Emulated(_Part, frozen=True, kw_only=True):
    """A prefill node that sleeps as long as a device of a preset would compute, and sends recorded
    rows. What it takes part in is marked emulated.

    preset: as `hetero profile estimate --list` names it
    """

    preset: NotEmpty


class Peer(_Part, frozen=True, kw_only=True):
    """Another server in our place, one process on one host, with the same model, cores and slots.

    server: llama-server
    host: where; null: the only host of the lab, or this machine
    binary: its path; null: the environment variable HETERO_LLAMA_SERVER has it
    options: more of its command line, as [--kv-unified]; they come last, and win
    """

    server: Literal["llama-server"]
    host: HostName | None = None
    binary: NotEmpty | None = None
    options: list[NotEmpty] = []


class Settings(_Part, frozen=True, kw_only=True):
    """Of an arm: the recipe's, then a candidate's own, then what is varied.

    kv: type of K and V: f16, q8_0, q4_0 ...; or one each, as q8_0/q4_0
    context_tokens: of one sequence, prompt and answer
    slots: sequences at once on each decode node
    chunk_tokens: what a node reads at a time
    prefill_share: of a decode node's time, the least that prompts get beside running sequences
    threads: of each engine
    prefill_engine: of each prefill node: auto, torch, llama
    seal: of transfers: none, mac (checked), aead (checked and encrypted)
    connections: of a transfer; null: as a node would
    link_rate: of the cables between the lab's hosts: 5mbit to 40gbit
    wire_ratio: instead of a rate: the KV that prefill yields over what the link carries in the same
        time, which means the same on a faster machine
    route: auto, local (who decodes reads the prompt too), split
    concurrency: closed loop: sessions at once
    rate: open loop: sessions per second; with neither, the load's own rate (a trace's recorded
        times, a workload's `rate`), else one at a time
    requests: in all; null: six for each concurrent one, eight at least, but all of a trace in
        an open loop
    prompt_tokens: instead of the workload's
    output_tokens: instead of the workload's
    beside_rate: sessions per second of the load beside; 0: none
    """

    # Of the deployment.
    kv: str = "f16"
    context_tokens: Positive = 1024
    slots: Positive = 4
    chunk_tokens: Positive = 256
    prefill_share: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.9
    threads: Positive = 1
    prefill_engine: Literal["auto", "torch", "llama"] = "llama"
    seal: SealName = "aead"
    connections: Positive | None = None
    # Of the network.
    link_rate: str | None = None
    wire_ratio: PositiveFloat | None = None
    # Of the load.
    route: Literal["auto", "local", "split"] = "auto"
    concurrency: Positive | None = None
    rate: PositiveFloat | None = None
    requests: Positive | None = None
    prompt_tokens: Positive | None = None
    output_tokens: Positive | None = None
    beside_rate: Annotated[float, msgspec.Meta(ge=0)] | None = None


# What changes while a cluster is up: of the network and of the load.
LIVE_SETTINGS = frozenset(
    {
        "link_rate",
        "wire_ratio",
        "route",
        "concurrency",
        "rate",
        "requests",
        "prompt_tokens",
        "output_tokens",
        "beside_rate",
    }
)


class Candidate(_Part, frozen=True, kw_only=True):
    """Who does what, on hosts of the cluster; or a peer on one of them.

    prefill: hosts that read prompts; without one, decode hosts read their own
    decode: hosts that generate
    emulated: those of the prefill hosts that sleep instead of computing
    peer: another server, instead of hosts
    settings: its own, instead of the recipe's
    ignores: settings that are varied and make no difference to this candidate: it runs once for all
        of their values
    """

    prefill: list[HostName] = []
    decode: list[HostName] = []
    emulated: dict[HostName, Emulated] = {}
    peer: Peer | None = None
    settings: dict[str, Value] = {}
    ignores: list[str] = []


class _Recipe(_Part, frozen=True, kw_only=True, tag_field="kind"):
    """
    name: as its results are called
    question: a sentence
    vary: settings and their values; every combination is an arm
    repetitions: of every arm
    seed: of the load and of the order of arms
    figures: the numbers that answer the question, by name
    checks: what must hold
    plots: what to draw
    caveats: for the report: what the answer does not cover
    minutes: what a run took on the machine it was written on
    """

    name: Name
    question: NotEmpty
    vary: dict[str, Values] = {}
    repetitions: Annotated[int, msgspec.Meta(ge=1, le=100)] = 5
    seed: Seed = 0
    figures: Annotated[dict[NotEmpty, Figure], msgspec.Meta(min_length=1)]
    checks: list[Check] = []
    plots: list[Plot] = []
    caveats: list[NotEmpty] = []
    minutes: PositiveFloat | None = None


class Serving(_Recipe, frozen=True, kw_only=True, tag="serving"):
    """Load on a served model.

    cluster: the machines, the same for all candidates
    model: what is served
    candidates: the ways to serve it, by name
    load: as `-w` of `hetero bench` takes it: a name, a file of a trace, or lengths by hand
    beside: load that runs beside the measured one, likewise, where there is a `beside_rate`
    settings: of all arms, where neither the candidate nor `vary` says otherwise
    slo: what a request or a run must meet, as ttft_p95:2s,tpot_p95:100ms
    """

    cluster: Cluster
    model: Model
    candidates: Annotated[dict[CandidateName, Candidate], msgspec.Meta(min_length=1)]
    load: Load
    beside: Load | None = None
    settings: Settings = Settings()
    slo: str = ""


class QualitySettings(_Part, frozen=True, kw_only=True):
    """Of an arm.

    k: type of the cached keys
    v: type of the cached values
    prompts: how many
    prompt_tokens: of each
    """

    k: str = "f16"
    v: str = "f16"
    prompts: Positive = 20
    prompt_tokens: Positive = 1024


class Quality(_Recipe, frozen=True, kw_only=True, tag="kv-quality"):
    """The answers of a quantized cache.

    model: what answers
    settings: of all arms, where `vary` does not say otherwise
    texts: UTF-8 files to compute KL divergence on, in which codes are hidden to be recalled; the
        demo model alone needs none: its own recall task serves both
    """

    model: Model
    settings: QualitySettings = QualitySettings()
    texts: list[NotEmpty] = []


class WireSettings(_Part, frozen=True, kw_only=True):
    """Of an arm.

    shape: whose rows; no weights are needed
    kv: type of K and V: f16, q8_0, q4_0 ...; or one each, as q8_0/q4_0
    tokens: of a transfer
    link_rate: 5mbit to 40gbit
    mtu: of the cable
    seal: of transfers: none, mac (checked), aead (checked and encrypted)
    connections: of a transfer; null: as a node would
    frame_bytes: the most in a frame; null: as a node would
    seconds: of an arm's transfers together
    """

    shape: NotEmpty = "llama-3.1-8b"
    kv: str = "q8_0"
    tokens: Positive = 2048
    link_rate: str = "10gbit"
    mtu: Mtu = 1500
    seal: SealName = "aead"
    connections: Positive | None = None
    frame_bytes: Positive | None = None
    seconds: Positive = 5


class Wire(_Recipe, frozen=True, kw_only=True, tag="kv-wire"):
    """KV over a wire with nothing at its ends.

    settings: of all arms, where `vary` does not say otherwise
    """

    settings: WireSettings = WireSettings()


Recipe = Serving | Quality | Wire
