"""What one machine does with one model: the file that `hetero profile node` writes.

Bytes and seconds; `_gb_s` is 1e9 bytes per second, `_tflops` 1e12 operations, a multiply-add being
two. Where a number is measured, fitted to measurements or estimated from a datasheet, `source` of
its section says so.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from hetero.llama.load_mode import LoadMode
from hetero.profile.facts.report import Facts
from hetero.profile.model_shape import ModelShape as ModelShape
from hetero.profile.quantities import Count, Finite, NotNegative, OneOrMore, Positive
from hetero.profile.step_cost import StepCost
from hetero.profile.work import Work, chunk_work, step_work

Source = Literal["measured", "fitted", "estimated"]
Role = Literal["prefill", "decode"]
PilotName = Literal["memory", "compute"]

# The pilot that resembles a role's work: decoding waits for memory, prefill for arithmetic.
PILOT_OF: dict[Role, PilotName] = {"decode": "memory", "prefill": "compute"}


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class CoreBandwidth(_Section, frozen=True, kw_only=True):
    """Of memory, by the cores of one NUMA node on memory of their own, or of one core alone."""

    cores: OneOrMore
    read_gb_s: Positive
    copy_gb_s: Positive  # bytes read and bytes written both count
    triad_gb_s: Positive  # STREAM's: three words counted, a fourth moves


class GPUCeilings(_Section, frozen=True, kw_only=True):
    name: str
    copy_gb_s: Positive  # read and written
    tflops: dict[str, Positive]  # of a large matrix product, by type
    to_device_gb_s: Positive  # pinned
    from_device_gb_s: Positive


class DiskCeilings(_Section, frozen=True, kw_only=True):
    path: str
    read_gb_s: Positive
    write_gb_s: Positive
    is_direct: bool  # past the page cache


class Ceilings(_Section, frozen=True, kw_only=True):
    """What the hardware gives to code that does nothing else."""

    source: Source
    cores: Count  # those that the engines would use; the next three are theirs, all together
    read_gb_s: Positive | None  # None: the preset of a GPU, whose host is unknown
    copy_gb_s: Positive | None
    triad_gb_s: Positive | None
    numa: dict[int, CoreBandwidth]
    one_core: CoreBandwidth | None
    tflops: dict[str, Positive]  # of all those cores, by type
    gpus: list[GPUCeilings]
    disks: list[DiskCeilings]
    spread: dict[str, tuple[Positive, Positive]]  # lowest and highest sample of some of the above

    def __post_init__(self) -> None:
        for name, (low, high) in self.spread.items():
            if low > high:
                raise ValueError(f"spread of {name}: need lowest first, have {low:g}, {high:g}")


class Sample(_Section, frozen=True, kw_only=True):
    """One step, measured a few times.

    seconds: the fastest, as the clock had it, since what disturbs a step only ever adds. speed: of
    the machine at that time, by its pilot, over its speed in the whole run.
    """

    work: Work
    seconds: Positive
    speed: Positive
    repeats: OneOrMore
    drawn: bool = False  # at random, and predicted before it was measured

    @property
    def undisturbed_s(self) -> float:
        """What is fitted: at the speed of the whole run."""
        return self.seconds * self.speed


class FitError(_Section, frozen=True, kw_only=True):
    """Of predictions for points left out of the fit, relative to what was measured."""

    num_points: Count
    median: NotNegative
    p90: NotNegative
    bias: Finite  # mean of predicted / measured, less 1


class EngineFit(_Section, frozen=True, kw_only=True):
    """How long one engine takes on one cache.

    interval: [low, high] factors of a prediction between which 9 of 10 measurements lie.
    """

    source: Source
    role: Role
    engine: str  # "llama", "torch"
    attention: str
    device: str  # "cpu", "cuda:0"; llama.cpp's "gpu", or "gpu, 20 of 33 layers"
    unified: bool  # cache mode: one pool of cells for all sequences, or a stream each
    kv_k: str
    kv_v: str
    threads: Count
    chunk_tokens: OneOrMore  # the most rows of a prefill step
    cost: StepCost
    request_s: NotNegative  # once for each prompt, or each sequence that joins
    interval: tuple[Positive, Positive]
    error: FitError | None  # None: estimated
    samples: list[Sample]

    def __post_init__(self) -> None:
        low, high = self.interval
        if not low <= 1 <= high:
            raise ValueError(f"interval: need one that holds 1, have {low:g} to {high:g}")

    def chunk_s(self, num_tokens: int, cached_tokens: int = 0, other_cells: int = 0) -> float:
        """One prefill step: `num_tokens` new ones after `cached_tokens` of their own."""
        return self.cost.seconds(chunk_work(num_tokens, cached_tokens, other_cells, self.unified))

    def prefill_s(self, num_tokens: int, cached_tokens: int = 0, other_cells: int = 0) -> float:
        """A prompt's unread tokens, in steps of `chunk_tokens`."""
        seconds = self.request_s
        for first in range(0, num_tokens, self.chunk_tokens):
            piece = min(self.chunk_tokens, num_tokens - first)
            seconds += self.chunk_s(piece, cached_tokens + first, other_cells)
        return seconds

    def step_s(self, contexts: Sequence[int], other_cells: int = 0) -> float:
        """One token for each sequence, of so many cells each. other_cells: held by sequences that
        are not in the batch."""
        return self.cost.seconds(step_work(contexts, other_cells, self.unified))


class CodecRates(_Section, frozen=True, kw_only=True):
    """KV between the engine's values and the wire's rows, at one pair of types.

    Bytes per second of packed rows, on one thread. restore: into cells, of a state that is there.
    """

    source: Source
    kv_k: str
    kv_v: str
    pack_gb_s: Positive
    restore_gb_s: Positive
    restore_s: NotNegative  # of an empty state: what each restore costs in any case


class CoRun(_Section, frozen=True, kw_only=True):
    """Two things at once, against each alone: factors of their seconds, 1 being undisturbed."""

    source: Source
    what: str
    beside: str
    slowdown: Positive  # of `what`
    beside_slowdown: Positive | None
    note: str = ""


class ExpertUnion(_Section, frozen=True, kw_only=True):
    """Of a mixture of experts: how many of a layer's a decode step wakes, by the rows of its batch,
    each a different text. Their weights are what the step reads.

    source: estimated for random weights: their router is random, and wakes more experts than a
    trained one; fits of their steps stay what was measured, with such a router.
    """

    source: Source
    num_experts: OneOrMore  # of a layer
    num_used: OneOrMore  # by one row
    rows: list[OneOrMore]
    experts: list[Positive]  # distinct ones for so many rows, mean over layers and steps

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.experts):
            raise ValueError(
                f"experts: need one for each of {len(self.rows)} rows, have {len(self.experts)}"
            )
        for rows, experts in zip(self.rows, self.experts, strict=True):
            most = min(self.num_experts, rows * self.num_used)
            if not self.num_used <= experts <= most:
                raise ValueError(
                    f"experts of {rows} rows: need {self.num_used} to {most}, have {experts:g}"
                )


class RoleSettings(_Section, frozen=True, kw_only=True):
    """What was found best for a role, and what `hetero up` starts a node with."""

    threads: OneOrMore
    cpus: list[Count]  # those to run on; empty: as the system likes
    numa_node: Count | None
    interleave: list[Count] = []  # NUMA nodes that memory lies on in turn; empty: as it is touched
    load: LoadMode
    unified: bool
    chunk_tokens: OneOrMore
    tried: dict[str, Positive]  # seconds of one and the same step, by setting


class Noise(_Section, frozen=True, kw_only=True):
    """How quiet the machine was.

    pilot_s: of fixed steps, undisturbed (a tenth of all runs is no slower): comparable over runs;
    "memory" and "compute" on the CPU, a GPU's by the `device` of its fit.
    speed: of single steps of the pilots, over undisturbed ones: 5th and 95th percentile.
    """

    is_noisy: bool
    reasons: list[str]
    pilot_s: dict[str, Positive]
    speed: tuple[Positive, Positive]
    others_cpu_share: NotNegative  # of the machine's processor time, taken by other processes
    steal_share: NotNegative | None  # taken by other guests of a virtual machine
    throttled: list[str]


class Soak(_Section, frozen=True, kw_only=True):
    """The engine's steps, on and on: rates are steps per second over windows of equal length."""

    seconds: Positive
    first_rate: NotNegative
    last_rate: NotNegative
    lowest_rate: NotNegative
    mhz: tuple[Positive, Positive] | None  # first and last window
    watts: NotNegative | None
    meter: str | None  # what the watts were read from
    throttled: list[str]


class Provenance(_Section, frozen=True, kw_only=True):
    commit: str | None
    versions: dict[str, str | None]
    settings: dict[str, str | None]  # a change of any makes the profile stale
    seconds: NotNegative  # the whole measurement took
    budget_s: NotNegative


class MachineProfile(_Section, frozen=True, kw_only=True, tag_field="kind", tag="machine"):
    """What one host is and gives, whatever runs on it."""

    host: str
    date: str
    facts: Facts
    ceilings: Ceilings
    provenance: Provenance


class NodeProfile(_Section, frozen=True, kw_only=True, tag_field="kind", tag="node"):
    """Figures of one host and one model."""

    host: str
    date: str
    model: ModelShape
    facts: Facts
    ceilings: Ceilings
    fits: list[EngineFit]
    codecs: list[CodecRates]
    co_runs: list[CoRun]
    settings: dict[Role, RoleSettings]
    noise: Noise | None  # None: estimated
    soak: Soak | None = None
    experts: ExpertUnion | None = None  # None: a dense model, or not measured
    provenance: Provenance
