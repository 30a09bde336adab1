"""A line of a Mooncake trace: one request. JSON, one a line.

Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces: times in milliseconds from the
beginning of the trace, one id for each 512 tokens of the prompt, the last cut short or not.
"""

import msgspec


class TraceLine(msgspec.Struct, frozen=True, kw_only=True):
    """timestamp: milliseconds from the beginning. hash_ids: an id stands for its block and all
    before it."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def line_bytes(line: TraceLine) -> bytes:
    return msgspec.json.encode(line) + b"\n"
