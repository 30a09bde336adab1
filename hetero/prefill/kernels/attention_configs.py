"""Stored tile shapes of the attention kernel: by GPU generation, head_dim and element size.

Chosen for what a chip has, and checked offline: nothing is spilled, shared memory fits. None is
measured.

- Up to 9.0 and from 12.0 on: a row of a tile costs its warp head_dim accumulators, so at 128 dims a
  warp's 32 rows fill its 255 registers together with 32 keys' scores. 16 rows a warp fit more
  easily, but then the matrix units of 8.0 wait for shared memory: every warp reads all of K and V
  from it. FlashAttention-2 takes 128 rows by 64 keys with 4 warps there.
- Two blocks a multiprocessor let the matrix units of one work during the softmax of the other, and
  during its loads where two stages, one buffer, are all that fits: 8.6 to 12.0 have 99 KiB for it.
- The compiler puts a product's warps side by side in N if a tile is wider than high, and then each
  softmax crosses warps. Parts of at most block_m dims keep them apart in M. Parts of 64 also take
  fewer registers for addresses than one of 128.
- On 9.0 only wide tiles reach the rate of wgmma: 128 rows by 128 keys, 8 warps, three stages in 224
  of 227 KiB. That leaves one block a multiprocessor, hence `overlap`. Small heads are bound by
  exponentials; two blocks of 4 warps keep these busy.
"""

from dataclasses import dataclass, replace

from hetero.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """`part_dim`: dims of a head that go through one product; what is left over is a part too.

    `overlap`: a key tile's values are added during the next tile's softmax, which takes its weights
    through the loop: the registers of one more tile of them.
    """

    block_m: int
    block_n: int
    part_dim: int
    num_warps: int
    num_stages: int
    overlap: bool = False


_AMPERE = {
    64: AttentionConfig(128, 64, 64, 4, 3),
    80: AttentionConfig(128, 32, 64, 4, 3),
    96: AttentionConfig(128, 32, 64, 4, 3),
    128: AttentionConfig(128, 32, 64, 4, 3),
    256: AttentionConfig(64, 16, 64, 4, 3),
}
# As 8.0, but two blocks share 99 KiB.
_SMALL_SHARED = _AMPERE | {
    128: AttentionConfig(128, 32, 64, 4, 2),
    256: AttentionConfig(64, 16, 64, 4, 2),
}
_CONFIGS = {
    80: _AMPERE,
    86: _SMALL_SHARED,
    89: _SMALL_SHARED,
    90: {
        64: AttentionConfig(128, 64, 64, 4, 3),
        80: AttentionConfig(128, 64, 64, 4, 3),
        96: AttentionConfig(128, 128, 64, 8, 3, overlap=True),
        128: AttentionConfig(128, 128, 128, 8, 3, overlap=True),
        256: AttentionConfig(128, 64, 128, 8, 2, overlap=True),
    },
    # Its compiler spills 32 rows a warp at 128 dims. Its matrix units are a quarter as fast per
    # multiprocessor as those of 8.0, so 16 rows do not starve them.
    120: _SMALL_SHARED
    | {
        64: AttentionConfig(128, 32, 64, 4, 4),  # 64 keys spill here, with a window
        128: AttentionConfig(128, 64, 64, 8, 3),
    },
}


def attention_config(capability: int, head_dim: int, element_size: int) -> AttentionConfig:
    """Of the nearest known generation that is not newer. All element sizes share a `block_m`.

    Raises: ConfigError if there is none, or no such head_dim.
    """
    known = [generation for generation in _CONFIGS if generation <= capability]
    if not known:
        raise ConfigError(
            f"Triton attention: need compute capability 8.0, have {capability // 10}."
            f"{capability % 10}: use torch's"
        )
    by_head_dim = _CONFIGS[max(known)]
    if head_dim not in by_head_dim:
        raise ConfigError(
            f"Triton attention: need a head_dim of {', '.join(map(str, by_head_dim))}, have "
            f"{head_dim}: use torch's"
        )
    config = by_head_dim[head_dim]
    if element_size == 4:
        # No matrix units: what counts is that operands, which go through registers, fit there.
        return replace(config, block_n=16, part_dim=16, num_warps=16, num_stages=1, overlap=False)
    return config
