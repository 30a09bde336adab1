"""What a role's node should be started with: what was found by trying, and what the fits say."""

from collections.abc import Mapping, Sequence

from hetero.profile.node.place import FoundPlace
from hetero.profile.node.points import Domain
from hetero.profile.node_profile import EngineFit, Role, RoleSettings

# Fits of two caches differ by a few percent where the caches don't.
_CLEARLY_FASTER = 0.95


def role_settings(
    found: FoundPlace,
    threads: Mapping[Role, int],
    tried: Mapping[Role, Mapping[int, float]],
    fits: Sequence[EngineFit],
    domain: Domain,
) -> dict[Role, RoleSettings]:
    """tried: seconds of a step by threads, at the place that was found.

    A prefill node exports chunks, for which its cache must be unified.
    """
    place = found.place
    return {
        role: RoleSettings(
            threads=threads[role],
            # All nodes are as the system likes.
            cpus=list(place.cpus) if place.node is not None else [],
            numa_node=place.node,
            interleave=list(place.interleave),
            load=place.load,
            unified=role == "prefill" or decodes_better_unified(fits, domain),
            chunk_tokens=domain.chunk_tokens,
            tried={
                **found.tried.get(role, {}),
                **{f"{count} threads": seconds for count, seconds in tried[role].items()},
            },
        )
        for role in threads
    }


def decodes_better_unified(fits: Sequence[EngineFit], domain: Domain) -> bool:
    """Whether one pool of cells is clearly faster than streams for a typical batch, at the first
    types that were measured. Else streams: no sequence scans another's cells there."""
    seconds: dict[bool, float] = {}
    for fit in fits:
        if (fit.role, fit.engine, fit.source) == ("decode", "llama", "fitted"):
            seconds.setdefault(fit.unified, fit.step_s(typical_batch(domain)))
    if seconds.keys() != {False, True}:
        return False
    return seconds[True] < _CLEARLY_FASTER * seconds[False]


def typical_batch(domain: Domain) -> list[int]:
    """Half of the slots, contexts of all lengths up to half of the longest."""
    size = max(1, domain.max_sequences // 2)
    return [max(1, domain.context_tokens * (index + 1) // (2 * size)) for index in range(size)]
