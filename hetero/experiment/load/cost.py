"""What tokens cost: the machines' price for as long as the load took, divided between reading
prompts and generating by the time requests spent in each.

Machines that stand idle cost as much: the fewer requests, the dearer each token.
"""

from collections.abc import Sequence

import msgspec

from hetero.errors import ConfigError
from hetero.experiment.load.metrics import output_tokens, prompt_tokens, stages_of
from hetero.experiment.load.record import RequestRecord


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """In the currency of the price. divided_by: what the time spent in prefill was taken from."""

    per_hour: float
    whole: float
    per_input_token: float | None
    per_output_token: float | None
    divided_by: str


def price_per_hour(
    *, per_hour: float | None = None, watts: float | None = None, per_kwh: float | None = None
) -> float | None:
    """None if no price was given.

    Raises: ConfigError for half of one, or two.
    """
    if (watts is None) != (per_kwh is None):
        raise ConfigError("cost: need --watts and --kwh-price together, have one of them")
    if watts is None or per_kwh is None:
        return per_hour
    if per_hour is not None:
        raise ConfigError("cost: need --cost-per-hour, or --watts and --kwh-price; have both")
    return watts / 1000 * per_kwh


def cost_of(records: Sequence[RequestRecord], seconds: float, per_hour: float) -> Cost:
    """Of the requests that succeeded: they bear the cost of those that failed."""
    good = [record for record in records if record.is_ok and record.flow == "main"]
    told = [stages_of(record).get("prefill") for record in good]
    by_server = bool(good) and all(value is not None for value in told)
    prefill_s = decode_s = 0.0
    for record, server_s in zip(good, told, strict=True):
        if not record.piece_s:
            continue
        prefill_s += server_s if by_server and server_s is not None else record.ttft_s or 0.0
        decode_s += record.piece_s[-1] - record.piece_s[0]
    whole = per_hour * seconds / 3600
    spent_s = prefill_s + decode_s
    share = prefill_s / spent_s if spent_s else 0.0
    num_in, num_out = sum(map(prompt_tokens, good)), sum(map(output_tokens, good))
    return Cost(
        per_hour=per_hour,
        whole=whole,
        per_input_token=whole * share / num_in if num_in else None,
        per_output_token=whole * (1 - share) / num_out if num_out else None,
        divided_by="the server's prefill time" if by_server else "time to first token",
    )
