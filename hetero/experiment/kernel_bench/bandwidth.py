"""A figure whose ceiling is the device's copy rate: bytes in and out over the time they took."""

from hetero.experiment.figures import Figure, Target, rounded
from hetero.experiment.kernel_bench.race import Bench, Race


def bandwidth_figure(
    bench: Bench, name: str, says: str, num_bytes: int, result: Race, target: Target | None
) -> Figure:
    rate = num_bytes / result.seconds()
    share = rate / bench.ceilings.copy_bytes_per_s
    return Figure(
        name=name,
        says=f"{says}: its bytes per second over a copy's",
        value=share,
        unit="ratio",
        target=target,
        arms=result.samples(),
        parameters={
            "rate": rounded(rate / 1e9),
            "rate_unit": "GB/s",
            "share": rounded(share),
            "share_of": "copy",
            "bytes": num_bytes,
            **result.comparison(),
        },
    )
