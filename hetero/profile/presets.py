"""Machines that one may have or buy, as datasheets and experience describe them.

A preset is a file under `profiles/hardware/`: a processor, a GPU, a whole server or a link. Every
number in it has a source: a datasheet, a publication, or `estimate:` and how it was arrived at.
What such a machine does with a model is for `profile/estimate.py`.
"""

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

import msgspec
import yaml

from hetero.errors import ConfigError

# The first processors of NVIDIA's whose matrix units Triton compiles for.
_TORCH_CAPABILITY = (8, 0)

_NUM_NEAR = 5

# Fields that say which machine it is, and need no source.
_LABELS = frozenset({"title", "device_class", "vendor", "cpu", "sources"})


class _Preset(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag=str.lower,
):
    """sources: where it is from -> the fields that are ("tflops.fp16" for one of a dict)."""

    title: str
    idle_watts: float
    load_watts: float
    sources: dict[str, list[str]]

    def __post_init__(self) -> None:
        sourced = [field for fields in self.sources.values() for field in fields]
        numbers = list(self.figures())
        for field in numbers:
            if sourced.count(field) != 1:
                raise ValueError(f"sources: need one of {field}, have {sourced.count(field)}")
        for field in sourced:
            if field not in numbers:
                raise ValueError(f"sources: need fields of this preset, have {field}")

    def figures(self) -> Iterator[str]:
        """The fields that need a source, members of a dict by `field.member`."""
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if field in _LABELS or value is None:
                continue
            if isinstance(value, dict):
                yield from (f"{field}.{member}" for member in value)
            else:
                yield field

    def source_of(self, field: str) -> str:
        return next(source for source, fields in self.sources.items() if field in fields)


class CPU(_Preset, frozen=True, kw_only=True):
    """One socket. Watts: of the processor, without its memory and its machine.

    tflops: of all cores at a clock they sustain, by type, a multiply-add being two operations.
    """

    device_class: str  # a name of `efficiency.CLASSES`
    cores: int
    threads: int
    isa: list[str]
    memory_kind: str
    memory_channels: int
    memory_mega_transfers: int  # per second, at most
    memory_bytes: int  # at most
    tflops: dict[str, float]

    @property
    def bandwidth_gb_s(self) -> float:
        """Nominal: 8 bytes per channel and transfer."""
        return 8e-3 * self.memory_channels * self.memory_mega_transfers

    @property
    def prefill_engine(self) -> str:
        return "llama"


class GPU(_Preset, frozen=True, kw_only=True):
    """One card. tflops: dense, accumulated in 32 bits, by type; int8: with whatever units it has
    for it. compute_capability: None: not NVIDIA's."""

    device_class: str
    vendor: str
    memory_bytes: int
    bandwidth_gb_s: float
    tflops: dict[str, float]
    compute_capability: str | None
    pcie_generation: int
    pcie_width: int

    @property
    def prefill_engine(self) -> str:
        """torch where Triton's kernels compile, llama.cpp's CUDA or HIP elsewhere."""
        if self.compute_capability is None:
            return "llama"
        major, _, minor = self.compute_capability.partition(".")
        return "torch" if (int(major), int(minor)) >= _TORCH_CAPABILITY else "llama"


class Server(_Preset, frozen=True, kw_only=True):
    """A whole machine without GPUs. Memory as it is fitted, channels counted per socket; watts at
    the wall."""

    cpu: str  # a preset's name
    sockets: int
    memory_channels: int
    memory_mega_transfers: int
    memory_bytes: int

    @property
    def bandwidth_gb_s(self) -> float:
        """Nominal, of all sockets."""
        return 8e-3 * self.sockets * self.memory_channels * self.memory_mega_transfers

    @property
    def prefill_engine(self) -> str:
        return "llama"

    def processor(self) -> CPU:
        return load_cpu(self.cpu)


class Link(_Preset, frozen=True, kw_only=True):
    """Between two machines. goodput_gbit: of a TCP stream's payload. Watts: one adapter of one
    port, idle and full."""

    rate_gbit: float
    goodput_gbit: float
    rtt_us: float
    rdma: bool


Preset = CPU | GPU | Server | Link


def preset_names() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Raises: ConfigError that lists near names when there is none, or says what is wrong in it."""
    names = preset_names()
    if name not in names:
        near = get_close_matches(name.lower(), names, n=_NUM_NEAR, cutoff=0.0)
        raise ConfigError(
            f"preset {name!r}: no such preset, near: {', '.join(near)}; all: `hetero profile "
            "estimate --list`"
        )
    return read_preset(_folder() / f"{name}.yaml")


def load_cpu(name: str) -> CPU:
    """Raises: ConfigError as `load_preset` does, and for anything but a processor."""
    preset = load_preset(name)
    if not isinstance(preset, CPU):
        raise ConfigError(f"preset {name!r}: need a processor, have a {_kind(preset)}")
    return preset


def read_preset(path: Path) -> Preset:
    """Raises: ConfigError naming the file and the field."""
    try:
        preset: Preset = msgspec.convert(yaml.safe_load(path.read_text()), Preset)
    except OSError as error:
        raise ConfigError(
            f"{path}: can't read it: {(error.strerror or str(error)).lower()}"
        ) from None
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    return preset


def _kind(preset: Preset) -> str:
    return type(preset).__name__.lower()


def _folder() -> Path:
    """A wheel has them beside this file, a checkout at its root."""
    installed = Path(__file__).parent / "hardware"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "profiles" / "hardware"
