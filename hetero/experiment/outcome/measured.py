"""What measuring one arm once yields, of whatever kind."""

from typing import Any

import msgspec


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """scalars, samples, per_request: as in `ArmRun`. records: lines of requests.jsonl, one for each
    request, prompt or transfer. settings: all of them, as they were. marks: what a reader must
    know."""

    scalars: dict[str, float]
    samples: dict[str, list[float]]
    per_request: dict[str, list[int]] = {}
    records: list[Any]
    settings: dict[str, Any] = {}
    marks: list[str] = []
    aiperf: dict[str, Any] = {}
