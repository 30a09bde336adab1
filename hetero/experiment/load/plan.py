"""A load as one JSON object: for this process and for a child elsewhere."""

import msgspec

from hetero.experiment.load.endpoint import Mode
from hetero.routing.route import Wish
from hetero.workload.schedule import Schedule


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to send where. Keys come from the environment (HETERO_API_KEY, OPENAI_API_KEY).

    seed: of the prompts' tokens: another one where an earlier load must not be found in caches.
    beside: runs under the whole of the main schedule, repeated; what is under way then ends.
    duration_s: repeat the schedule, and begin nothing later than this.
    """

    url: str
    schedule: Schedule
    concurrency: int = 1  # of a closed loop
    duration_s: float | None = None
    beside: Schedule | None = None
    beside_concurrency: int = 1
    warmup: int = 0  # requests before, not recorded
    seed: int = 0
    model: str | None = None
    endpoint: Mode = "auto"
    route: Wish | None = None
    temperature: float = 0.0
    timeout_s: float = 600.0
    slo: str = ""
