"""What measuring an arm once gives, before the runner says when and on what machine it was."""

from typing import Any

import msgspec


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """scalars and samples: as in `ArmRun`. records: lines of requests.jsonl, one for each prompt,
    transfer or request."""

    scalars: dict[str, float]
    samples: dict[str, list[float]]
    records: list[dict[str, Any]]
