"""The KV cache's element types: ggml's ids and block sizes, in one table.

Nothing here imports numpy, torch or llama.cpp: planning runs on a laptop without them.
"""

from dataclasses import dataclass

from hetero.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class KVType:
    name: str
    ggml_id: int  # enum ggml_type
    block_elements: int
    block_bytes: int

    @property
    def is_quantized(self) -> bool:
        return self.block_elements > 1

    def row_bytes(self, num_elements: int) -> int:
        """Bytes of one row; a row holds whole blocks."""
        if num_elements % self.block_elements:
            raise ConfigError(
                f"KV type {self.name}: need rows of a multiple of {self.block_elements} elements, "
                f"have {num_elements}; use f16"
            )
        return num_elements // self.block_elements * self.block_bytes


KV_TYPES: dict[str, KVType] = {
    name: KVType(name=name, ggml_id=ggml_id, block_elements=elements, block_bytes=size)
    for name, ggml_id, elements, size in [
        ("f16", 1, 1, 2),
        ("bf16", 30, 1, 2),
        ("q8_0", 8, 32, 34),
        ("q5_1", 7, 32, 24),
        ("q5_0", 6, 32, 22),
        ("q4_1", 3, 32, 20),
        ("q4_0", 2, 32, 18),
        ("iq4_nl", 20, 32, 18),
    ]
}


def kv_type(name: str) -> KVType:
    try:
        return KV_TYPES[name]
    except KeyError:
        raise ConfigError(f"KV type {name!r}: need one of {', '.join(KV_TYPES)}") from None
