"""What a profile says of the model that it is of, and what a step of it reads and computes.

Parameters and bytes are spread as architectures of this family have them: an embedding of which a
token reads one row, next to nothing; layers; a head that is read in full, though multiplied only
with rows whose logits are wanted. A file's bytes are spread evenly over parameters.
"""

import msgspec

from hetero.messages import ModelFingerprint
from hetero.profile.quantities import Count, OneOrMore

_UNQUANTIZED = ("f32", "f16", "bf16")


class ModelShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose figures these are. fingerprint: None for random weights of a named shape."""

    name: str
    fingerprint: ModelFingerprint | None
    architecture: str
    quantization: str
    num_parameters: OneOrMore
    weight_bytes: OneOrMore
    num_layers: OneOrMore
    hidden_size: OneOrMore
    num_heads: OneOrMore
    num_kv_heads: Count
    head_dim_k: Count
    head_dim_v: Count
    vocab_size: OneOrMore
    tied_embeddings: bool
    num_experts: Count
    num_experts_used: Count

    @property
    def is_quantized(self) -> bool:
        return self.quantization.lower() not in _UNQUANTIZED

    @property
    def head_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def layer_parameters(self) -> int:
        """Of all layers, with all experts."""
        matrices = 1 if self.tied_embeddings else 2
        return max(0, self.num_parameters - matrices * self.head_parameters)

    @property
    def expert_parameters(self) -> int:
        """Of all experts of all layers: what is neither attention nor router."""
        if not self.num_experts:
            return 0
        attention = (
            self.num_heads * (self.head_dim_k + self.head_dim_v)
            + self.num_kv_heads * (self.head_dim_k + self.head_dim_v)
        ) * self.hidden_size
        others = self.num_layers * (attention + self.num_experts * self.hidden_size)
        return max(0, self.layer_parameters - others)

    def read_parameters(self, num_rows: int, *, with_head: bool) -> float:
        """Those that a step of so many rows reads: each once, an expert if any row is routed to it.

        Rows are taken to choose experts evenly and on their own; real text is less even.
        """
        used = self.num_experts_used / self.num_experts if self.num_experts else 1.0
        union = 1 - (1 - used) ** num_rows
        head = self.head_parameters if with_head else 0
        return self.layer_parameters + head - (1 - union) * self.expert_parameters

    def read_bytes(self, num_rows: int, *, with_head: bool) -> float:
        """Of weights, by a step of so many rows."""
        share = self.read_parameters(num_rows, with_head=with_head) / self.num_parameters
        return share * self.weight_bytes

    def row_flops(self, *, with_head: bool) -> float:
        """Of one row's matrix products, attention aside."""
        return 2 * self.read_parameters(1, with_head=with_head)

    @property
    def pair_flops(self) -> float:
        """Of one row's attention to one cell, in all layers: a product with K, one with V."""
        return 2 * self.num_layers * self.num_heads * (self.head_dim_k + self.head_dim_v)
