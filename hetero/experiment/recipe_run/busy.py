"""Whether something else computes on this machine: then it is measured, too."""

import time

from hetero.errors import HeteroError
from hetero.profile.node.noise import CPUWatch

_LOOK_S = 2.0

# Of one core. A desktop at rest takes a few percent of one.
_MOST_OTHERS_CORES = 0.15


def check_quiet() -> None:
    """Raises: HeteroError if others compute here."""
    watch = CPUWatch()
    time.sleep(_LOOK_S)
    taken = watch.taken()
    if taken.others_cores > _MOST_OTHERS_CORES:
        raise HeteroError(
            f"machine: need it for this run alone, have other processes that take "
            f"{taken.others_cores:.1f} cores (`top` names them); end them, or measure all the same "
            "with --busy"
        )
