"""Rotary position embedding, with the angles that llama.cpp's CPU kernels compute.

Axes: T tokens, P positions, H heads, D head_dim, R rotated pairs (rope.dim / 2).

The decode node rotates its queries in llama.cpp, so keys must have turned by the same angles. ggml
multiplies float32 angles up from pair to pair; at position 100,000 that is 0.01 radians away from
the exact angle, which is why the tables repeat it instead of doing better.
Source: ggml_rope_cache_init and rope_yarn in ggml-cpu/ops.cpp, llama-context.cpp for the factors.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hetero.model.spec import RopeSpec

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RopeTable:
    """Cosines and sines (float32) by position, and which dims of a head make a pair: neighbours,
    or the two halves. Dims after `dim` belong to no pair."""

    cos_PR: torch.Tensor
    sin_PR: torch.Tensor
    dim: int
    is_adjacent: bool


def rope_table(
    rope: RopeSpec,
    factors_R: Floats | None,
    first_position: int,
    num_positions: int,
    device: torch.device,
) -> RopeTable:
    """`factors_R` divide the frequencies: the llama3 scaling that files carry as a tensor."""
    angles_PR = rope_angles(rope, factors_R, first_position, num_positions)
    magnitude = np.float32(rope.magnitude)
    return RopeTable(
        cos_PR=torch.from_numpy(np.cos(angles_PR) * magnitude).to(device),
        sin_PR=torch.from_numpy(np.sin(angles_PR) * magnitude).to(device),
        dim=rope.dim,
        is_adjacent=rope.kind == "norm",
    )


def apply_rope(x_THD: torch.Tensor, table: RopeTable, positions_T: torch.Tensor) -> None:
    """Rotate each head in place, computing in float32 whatever its type."""
    pairs = table.dim // 2
    if table.is_adjacent:
        a_THR, b_THR = x_THD[..., 0 : table.dim : 2], x_THD[..., 1 : table.dim : 2]
    else:
        a_THR, b_THR = x_THD[..., :pairs], x_THD[..., pairs : table.dim]
    cos_T1R, sin_T1R = table.cos_PR[positions_T, None], table.sin_PR[positions_T, None]
    rotated_a_THR = a_THR * cos_T1R - b_THR * sin_T1R
    b_THR.copy_(a_THR * sin_T1R + b_THR * cos_T1R)
    a_THR.copy_(rotated_a_THR)


def rope_angles(
    rope: RopeSpec, factors_R: Floats | None, first_position: int, num_positions: int
) -> Floats:
    """(positions, pairs) float32, rounded as ggml rounds."""
    # Rounded once from float64, as libm's powf is; numpy's float32 power is an ulp off at times,
    # which 32 multiplications turn into twice the error above.
    step = np.float32(math.pow(np.float32(rope.base), np.float32(-2.0 / rope.dim)))
    steps_TR = np.full((num_positions, rope.dim // 2), step)
    steps_TR[:, 0] = np.arange(first_position, first_position + num_positions)
    extrapolated_TR = np.multiply.accumulate(steps_TR, axis=1)
    if factors_R is not None:
        extrapolated_TR /= factors_R
    if rope.scaling == "none":
        return extrapolated_TR
    interpolated_TR = np.float32(1.0 / rope.factor) * extrapolated_TR
    if rope.ext_factor == 0.0:
        return interpolated_TR
    mix_R = _yarn_ramp(rope) * np.float32(rope.ext_factor)
    mixed: Floats = interpolated_TR * (1 - mix_R) + extrapolated_TR * mix_R
    return mixed


def _yarn_ramp(rope: RopeSpec) -> Floats:
    """(pairs,) 1 where a pair turns fast enough to keep its frequency, 0 where it is stretched."""

    def pair_turning(turns: float) -> float:
        """The pair that turns this many times over the original context."""
        log = math.log(rope.original_context / (turns * 2 * math.pi))
        return rope.dim * log / (2 * math.log(rope.base))

    low = max(0, math.floor(pair_turning(rope.beta_fast)))
    high = min(rope.dim - 1, math.ceil(pair_turning(rope.beta_slow)))
    pairs_R = np.arange(rope.dim // 2, dtype=np.float32)
    ramp: Floats = 1 - np.clip((pairs_R - low) / np.float32(max(0.001, high - low)), 0, 1)
    return ramp
