"""A profile of a machine that nobody has measured, from its preset and a model's sizes.

A step's seconds are a sum, for the parts hardly overlap (a P40's rate over microbatches of 16 to
512 tokens follows it within a fifth):

    layers * layer_s + bytes of weights / bandwidth + rows * flops / rate      rows_s
    cached bytes / bandwidth in decode, flops / rate in prefill, a pair        pair_s

with nominal bandwidth and rates times the shares of the device's class (`profile/efficiency.py`).
Everything is marked estimated; `interval` says how far off measurements were.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from hetero import __version__
from hetero.errors import ConfigError, PlanError
from hetero.kv.layout import kv_layout
from hetero.profile.efficiency import CLASSES, EXPERTS_SHARE, SOCKETS_SHARE, DeviceClass
from hetero.profile.estimate_facts import ceilings_of, facts_of
from hetero.profile.model_shape import ModelShape
from hetero.profile.node_profile import (
    CodecRates,
    EngineFit,
    NodeProfile,
    Provenance,
    Role,
)
from hetero.profile.presets import CPU, GPU, Link, Preset
from hetero.profile.step_cost import StepCost, plain_cost

# Rows of a prefill step: llama.cpp's physical batch, and what a GPU needs to be near its best rate.
_LLAMA_CHUNK, _TORCH_CHUNK = 512, 2048
# Sequences of a decode step.
_LARGEST_BATCH = 64

# Beside the steps: a prompt's way in and its first token's way out.
_REQUEST_S = 0.01

# Of bandwidth, by kernels that only dequantize.
_DEQUANTIZE_SHARE = 0.8

# On one core: measured on an EPYC (results/LOG.md), rows of q8_0 packed and a state restored.
_PACK_GB_S, _RESTORE_GB_S, _RESTORE_S = 1.2, 6.0, 1e-3
# On a GPU: packed rows against bytes of memory traffic, a guess.
_GPU_PACK_SHARE = 0.1


def estimate_profile(
    name: str,
    preset: Preset,
    model: ModelShape,
    kv_k: str = "q8_0",
    kv_v: str = "q8_0",
    *,
    prefill_engine: str | None = None,
) -> NodeProfile:
    """`prefill_engine`: None for the one that serves the device. A server's figures are those of
    one engine over all its sockets.

    Raises: ConfigError for a link, a type of K or V or an engine that can't be, ModelError for
    heads that the types' blocks don't divide, PlanError if the weights don't fit.
    """
    machine = _machine(preset)
    if model.weight_bytes > machine.memory_bytes:
        raise PlanError(
            f"{name}: {model.name} needs {model.weight_bytes / 2**30:.1f} GiB for its weights, "
            f"have {machine.memory_bytes / 2**30:.1f} GiB; take a smaller quant (of weights "
            "streamed from the host there are no estimates yet)"
        )
    cell_bytes = kv_layout(
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim_k=model.head_dim_k,
        head_dim_v=model.head_dim_v,
        k_type=kv_k,
        v_type=kv_v,
    ).token_bytes
    device = _Device(machine, model, cell_bytes)
    engine = prefill_engine or machine.prefill_engine
    return NodeProfile(
        host=name,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        facts=facts_of(preset),
        ceilings=ceilings_of(preset),
        fits=[
            _fit(device, "prefill", engine, device.prefill_cost(engine), kv_k, kv_v),
            _fit(device, "decode", "llama", device.decode_cost(), kv_k, kv_v),
        ],
        codecs=[_codec_rates(preset, kv_k, kv_v)],
        co_runs=[],
        settings={},
        noise=None,
        provenance=Provenance(
            commit=None,
            versions={"hetero": __version__},
            settings={"preset": name},
            seconds=0.0,
            budget_s=0.0,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Machine:
    """What a step runs on, whatever kind of preset it was."""

    kind: DeviceClass
    device: str
    threads: int
    sockets: int
    memory_bytes: int
    bandwidth: float  # bytes per second, nominal
    flops: dict[str, float]  # per second, nominal, by type
    prefill_engine: str


def _machine(preset: Preset) -> _Machine:
    if isinstance(preset, Link):
        raise ConfigError(f"{preset.title}: need a machine to estimate, have a link")
    if isinstance(preset, GPU):
        chip: CPU | GPU = preset
        device, threads, sockets = "cuda:0", 1, 1
    else:
        chip = preset if isinstance(preset, CPU) else preset.processor()
        sockets = 1 if isinstance(preset, CPU) else preset.sockets
        device, threads = "cpu", sockets * chip.cores
    return _Machine(
        kind=CLASSES[chip.device_class],
        device=device,
        threads=threads,
        sockets=sockets,
        memory_bytes=preset.memory_bytes,
        bandwidth=1e9 * preset.bandwidth_gb_s,
        flops={name: 1e12 * sockets * rate for name, rate in chip.tflops.items()},
        prefill_engine=preset.prefill_engine,
    )


class _Device:
    """One machine on one model and cache: seconds of steps and their parts."""

    def __init__(self, machine: _Machine, model: ModelShape, cell_bytes: int) -> None:
        self.machine = machine
        self._model = model
        self._cell_bytes = cell_bytes
        kind = machine.kind
        experts = EXPERTS_SHARE if model.num_experts else 1.0
        sockets = SOCKETS_SHARE if machine.sockets > 1 else 1.0
        self._weight_bytes_per_s = experts * sockets * kind.bandwidth * machine.bandwidth
        self._kv_bytes_per_s = sockets * kind.kv_bandwidth * machine.bandwidth
        if model.is_quantized:
            rate = kind.rate * machine.flops[kind.rate_type]
        else:
            rate = kind.half_rate * machine.flops[kind.half_type]
        self._flops_per_s = experts * rate

    def decode_cost(self) -> StepCost:
        pair_s = self._cell_bytes / self._kv_bytes_per_s
        return self._cost(self._llama_rows_s, _LARGEST_BATCH, pair_s, head=True)

    def prefill_cost(self, engine: str) -> StepCost:
        kind, flops = self.machine.kind, self.machine.flops
        pair_s = self._model.pair_flops / (kind.attention * flops[kind.attention_type])
        if engine == "llama":
            return self._cost(self._llama_rows_s, _LLAMA_CHUNK, pair_s, head=False)
        if engine != "torch" or kind.torch_rate is None:
            raise ConfigError(f"prefill engine: need one that runs on this device, have {engine!r}")
        cost = self._cost(self._torch_rows_s, _TORCH_CHUNK, pair_s, head=False)
        # Triton's kernels skip what is masked, and other prompts' blocks.
        return msgspec.structs.replace(cost, masked_s=0.0)

    def spread(self, role: Role, engine: str) -> float:
        kind = self.machine.kind
        if role == "decode":
            return kind.decode_spread
        return kind.torch_spread if engine == "torch" else kind.prefill_spread

    def _cost(
        self, rows_s: Callable[[int, bool], float], largest: int, pair_s: float, *, head: bool
    ) -> StepCost:
        rows = [2**power for power in range(largest.bit_length())]
        return plain_cost(
            rows,
            [rows_s(count, head) for count in rows],
            pair_s=pair_s,
            masked_s=self.machine.kind.masked * pair_s,
        )

    def _llama_rows_s(self, num_rows: int, with_head: bool) -> float:
        # The first row's arithmetic hides behind its weights.
        compute = (num_rows - 1) * self._model.row_flops(with_head=with_head) / self._flops_per_s
        weights = self._model.read_bytes(num_rows, with_head=with_head) / self._weight_bytes_per_s
        return self._fixed_s + weights + compute

    def _torch_rows_s(self, num_rows: int, with_head: bool) -> float:
        model, machine = self._model, self.machine
        torch_rate = machine.kind.torch_rate or 0.0
        parameters = model.read_parameters(num_rows, with_head=with_head)
        traffic = model.read_bytes(num_rows, with_head=with_head)
        if model.is_quantized:
            traffic += 2 * 2 * parameters  # 16-bit, written and read
        experts = EXPERTS_SHARE if model.num_experts else 1.0
        rate = experts * torch_rate * machine.flops["bf16"]
        compute = num_rows * model.row_flops(with_head=with_head) / rate
        return self._fixed_s + traffic / (_DEQUANTIZE_SHARE * machine.bandwidth) + compute

    @property
    def _fixed_s(self) -> float:
        return self._model.num_layers * self.machine.kind.layer_s


def _fit(
    device: _Device, role: Role, engine: str, cost: StepCost, kv_k: str, kv_v: str
) -> EngineFit:
    spread = device.spread(role, engine)
    return EngineFit(
        source="estimated",
        role=role,
        engine=engine,
        attention="triton" if engine == "torch" else "llama",
        device=device.machine.device,
        unified=False,
        kv_k=kv_k,
        kv_v=kv_v,
        threads=device.machine.threads,
        chunk_tokens=cost.rows[-1] if role == "prefill" else _LLAMA_CHUNK,
        cost=cost,
        request_s=_REQUEST_S,
        interval=(1 / spread, spread),
        error=None,
        samples=[],
    )


def _codec_rates(preset: Preset, kv_k: str, kv_v: str) -> CodecRates:
    pack_gb_s = _GPU_PACK_SHARE * preset.bandwidth_gb_s if isinstance(preset, GPU) else _PACK_GB_S
    return CodecRates(
        source="estimated",
        kv_k=kv_k,
        kv_v=kv_v,
        pack_gb_s=pack_gb_s,
        restore_gb_s=_RESTORE_GB_S,
        restore_s=_RESTORE_S,
    )
