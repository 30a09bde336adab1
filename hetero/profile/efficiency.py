"""How much of a datasheet's figures llama.cpp gets, by class of device.

One set of shares for a class, none for a machine. Where a class has calibration points in
`tests/published_points.yaml`, its bandwidth, rate, half_rate and torch_rate are those at which the
geometric mean of measured / estimated is 1; a test recomputes that, and judges on the other points.
Everything else is a guess from what such kernels usually reach, and says so where it matters.

Spreads: 1.645 standard deviations of the calibration points' logarithms, pooled over GPUs, widened
for a share from few points. Processors have too few: theirs allow for memory, clocks and sockets.
"""

from dataclasses import dataclass
from typing import Literal

Rate = Literal["fp32", "fp16", "int8"]

# An engine over several sockets reads weights across their link: mirroring them gave 1.65 times the
# speed on two (llama.cpp #14969).
SOCKETS_SHARE = 0.6

# Of a dense model's share, for one whose experts are gathered: 50% of bandwidth where dense ones
# reach 70% (llama.cpp and ktransformers threads).
EXPERTS_SHARE = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClass:
    """bandwidth, kv_bandwidth: shares of the nominal one, reading weights and cache in decode.

    rate: of quantized weights' products, a share of `rate_type`; half_rate: of 16-bit ones'.
    attention: of a prompt's attention, a share of `attention_type`.
    masked: what a pair costs that is scanned and not attended to, beside one that is.
    layer_s: a layer's fixed time in a step: kernels' launches, threads' barriers.
    prefill_spread, decode_spread: 9 of 10 measurements lie within these factors, either way.
    torch_rate: of 16-bit matrix products behind dequantization, a share of bf16; None: can't.
    """

    bandwidth: float
    kv_bandwidth: float
    rate_type: Rate
    rate: float
    half_type: Rate
    half_rate: float
    attention_type: Rate
    attention: float
    masked: float
    layer_s: float
    prefill_spread: float
    decode_spread: float
    torch_rate: float | None = None
    torch_spread: float = 1.6


CLASSES: dict[str, DeviceClass] = {
    # Haswell and Broadwell servers. Prefill guessed.
    "xeon-avx2": DeviceClass(
        bandwidth=0.42,
        kv_bandwidth=0.35,
        rate_type="fp32",
        rate=0.5,
        half_type="fp32",
        half_rate=0.4,
        attention_type="fp32",
        attention=0.2,
        masked=0.5,
        layer_s=50e-6,
        prefill_spread=2.0,
        decode_spread=1.6,
    ),
    # Skylake and Cascade Lake servers. All guessed.
    "xeon-avx512": DeviceClass(
        bandwidth=0.6,
        kv_bandwidth=0.35,
        rate_type="fp32",
        rate=0.35,
        half_type="fp32",
        half_rate=0.3,
        attention_type="fp32",
        attention=0.15,
        masked=0.5,
        layer_s=50e-6,
        prefill_spread=2.0,
        decode_spread=1.6,
    ),
    # Naples to Genoa, decode by the latter. Prefill guessed from desktop's.
    "epyc": DeviceClass(
        bandwidth=0.57,
        kv_bandwidth=0.35,
        rate_type="fp32",
        rate=0.65,
        half_type="fp32",
        half_rate=0.45,
        attention_type="fp32",
        attention=0.2,
        masked=0.5,
        layer_s=50e-6,
        prefill_spread=2.0,
        decode_spread=1.5,
    ),
    # Ryzen on two channels.
    "desktop": DeviceClass(
        bandwidth=0.68,
        kv_bandwidth=0.45,
        rate_type="fp32",
        rate=0.69,
        half_type="fp32",
        half_rate=0.51,
        attention_type="fp32",
        attention=0.2,
        masked=0.5,
        layer_s=30e-6,
        prefill_spread=1.85,
        decode_spread=1.4,
    ),
    # P40, GTX 1080 Ti: DP4A, no fast 16-bit arithmetic.
    "pascal": DeviceClass(
        bandwidth=0.66,
        kv_bandwidth=0.6,
        rate_type="int8",
        rate=0.28,
        half_type="fp32",
        half_rate=0.7,
        attention_type="fp32",
        attention=0.3,
        masked=1.0,
        layer_s=40e-6,
        prefill_spread=1.45,
        decode_spread=1.5,
    ),
    # P100: 16-bit arithmetic, no DP4A. All guessed.
    "pascal-fp16": DeviceClass(
        bandwidth=0.5,
        kv_bandwidth=0.5,
        rate_type="fp16",
        rate=0.35,
        half_type="fp16",
        half_rate=0.5,
        attention_type="fp16",
        attention=0.2,
        masked=1.0,
        layer_s=40e-6,
        prefill_spread=2.0,
        decode_spread=1.7,
    ),
    "volta": DeviceClass(
        bandwidth=0.64,
        kv_bandwidth=0.6,
        rate_type="fp16",
        rate=0.34,
        half_type="fp16",
        half_rate=0.4,
        attention_type="fp16",
        attention=0.15,
        masked=1.0,
        layer_s=30e-6,
        prefill_spread=1.6,
        decode_spread=1.5,
    ),
    # T4, RTX 2080 Ti.
    "turing": DeviceClass(
        bandwidth=0.7,
        kv_bandwidth=0.7,
        rate_type="int8",
        rate=0.19,
        half_type="fp16",
        half_rate=0.7,
        attention_type="fp16",
        attention=0.4,
        masked=1.0,
        layer_s=30e-6,
        prefill_spread=1.6,
        decode_spread=1.5,
    ),
    # GeForce from Ampere on. Above 1: cuBLAS adds up in 16 bits where that is twice as fast.
    "geforce": DeviceClass(
        bandwidth=0.73,
        kv_bandwidth=0.8,
        rate_type="int8",
        rate=0.27,
        half_type="fp16",
        half_rate=1.1,
        attention_type="fp16",
        attention=0.5,
        masked=1.0,
        layer_s=20e-6,
        prefill_spread=1.45,
        decode_spread=1.35,
        torch_rate=0.83,
    ),
    # A100, H100, H200: llama.cpp does not use the units that their figures come from. layer_s is
    # between what an A100's 7B and 70B of 2023 ask for and newer builds. torch_rate is guessed.
    "datacenter": DeviceClass(
        bandwidth=0.54,
        kv_bandwidth=0.5,
        rate_type="int8",
        rate=0.073,
        half_type="fp16",
        half_rate=0.2,
        attention_type="fp16",
        attention=0.1,
        masked=1.0,
        layer_s=80e-6,
        prefill_spread=1.6,
        decode_spread=1.4,
        torch_rate=0.6,
    ),
    # MI50. Decode guessed below pascal's share.
    "gcn": DeviceClass(
        bandwidth=0.5,
        kv_bandwidth=0.4,
        rate_type="int8",
        rate=0.26,
        half_type="fp16",
        half_rate=0.5,
        attention_type="fp16",
        attention=0.2,
        masked=1.0,
        layer_s=40e-6,
        prefill_spread=1.5,
        decode_spread=1.7,
    ),
}
