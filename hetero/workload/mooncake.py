"""A line of a Mooncake trace: one request. JSON, one a line.

Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces: times in milliseconds from the
beginning of the trace, one id for each 512 tokens of the prompt; a last block that is cut short
has one too (true of every line published there).
"""

import msgspec

from hetero.workload.schedule import BLOCK_TOKENS, num_blocks


class TraceLine(msgspec.Struct, frozen=True, kw_only=True):
    """timestamp: milliseconds from the beginning. hash_ids: an id stands for its block and all
    before it; None: nothing is known of what prompts share."""

    timestamp: int | float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] | None = None


_DECODER = msgspec.json.Decoder(TraceLine)


def line_bytes(line: TraceLine) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def parsed_line(text: str) -> TraceLine:
    """Raises: ValueError that says what is wrong with it."""
    try:
        line = _DECODER.decode(text)
    except msgspec.MsgspecError as error:
        raise ValueError(f"need a JSON object of a Mooncake trace, have: {error}") from None
    needed = num_blocks(line.input_length, BLOCK_TOKENS)
    if line.hash_ids is not None and line.input_length > 0 and len(line.hash_ids) != needed:
        raise ValueError(
            f"need {needed} hash_ids for {line.input_length} tokens, one for each {BLOCK_TOKENS}, "
            f"have {len(line.hash_ids)}"
        )
    return line
