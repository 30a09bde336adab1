"""`hetero profile compare`: two profiles side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetero.cli.output import AsJson, print_json

if TYPE_CHECKING:
    from hetero.profile.agreement import Agreement
    from hetero.profile.comparison import Figure
    from hetero.profile.document import Profile
    from hetero.profile.node_report import Table


def compare(
    first: Annotated[Path, typer.Argument(metavar="A")],
    second: Annotated[Path, typer.Argument(metavar="B")],
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Also profiles of different models.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Two nodes' or two links' profiles side by side.

    Of two runs on one machine and model also how far their fits agree: each prediction over a
    grid inside both runs' samples, in units of the run's pilot, so that a machine that was slower
    all the while is no difference.
    """
    import msgspec

    from hetero.cli.profile_tables import print_table
    from hetero.errors import ConfigError
    from hetero.profile import comparison
    from hetero.profile.agreement import agreement, doubts
    from hetero.profile.document import read_profile
    from hetero.profile.node_profile import NodeProfile

    a, b = read_profile(first), read_profile(second)
    figures = comparison.compare(a, b)
    agreed, no_agreement, said = None, None, list[str]()
    if isinstance(a, NodeProfile) and isinstance(b, NodeProfile):
        if not any_model:
            comparison.require_same_model(a, first, b, second)
        said = doubts(a, b)
        try:
            agreed = agreement(a, b)
            no_agreement = _too_few(agreed)
        except ConfigError as error:
            no_agreement = str(error)
    if as_json:
        rows = [msgspec.structs.asdict(figure) | {"ratio": figure.ratio} for figure in figures]
        fields: dict[str, Any] = {"a": str(first), "b": str(second), "figures": rows}
        fields["agreement"] = msgspec.to_builtins(agreed)
        fields["no_agreement"] = no_agreement
        fields["doubts"] = said
        print_json(fields)
        return
    print(f"A: {first}, {_state(a)}\nB: {second}, {_state(b)}")
    print_table(_figures_table(figures))
    if agreed is not None:
        print_table(_agreement_table(agreed))
        for name in agreed.in_one_only:
            print(f"in one of them only: {name}")
        for name in agreed.apart:
            print(f"no samples in common: {name}")
    if no_agreement is not None:
        print(f"\npredictions over a grid: not compared: {no_agreement}")
    elif agreed is not None:
        print(
            f"\nin units of each run's pilot, predictions agree within "
            f"{agreed.worst_deviation:.1%}, half of them within {agreed.median_deviation:.1%}"
        )
    for line in said:
        print(line)


def _too_few(agreed: "Agreement") -> str | None:
    from hetero.profile.agreement import LEAST_POINTS

    if agreed.num_points >= LEAST_POINTS:
        return None
    return (
        f"too few samples in common: need {LEAST_POINTS} points of the grid, have "
        f"{agreed.num_points}; measure both with a larger --budget"
    )


def _state(profile: "Profile") -> str:
    """Where and when it was measured, and how quietly."""
    from hetero.profile.link.report import LinkProfile
    from hetero.profile.node_profile import NodeProfile

    if isinstance(profile, LinkProfile):
        return f"{profile.source} to {profile.sink}, {profile.date}"
    state = ""
    if isinstance(profile, NodeProfile):
        noise = profile.noise
        state = ", estimated" if noise is None else ", noisy" if noise.is_noisy else ", quiet"
    return f"{profile.host}, {profile.date}{state}"


def _figures_table(figures: "list[Figure]") -> "Table":
    from hetero.profile.node_report import Table

    rows = [
        [
            figure.section,
            figure.name,
            _number(figure.a),
            _number(figure.b),
            figure.unit,
            "" if figure.ratio is None else f"{figure.ratio:.3f}",
            figure.note,
        ]
        for figure in figures
    ]
    return Table("as clocked", ["", "", "A", "B", "", "B / A", ""], rows)


def _agreement_table(agreed: "Agreement") -> "Table":
    from hetero.profile.node_report import Table

    rows = [
        [
            f"{fit.role} {fit.name}",
            str(len(fit.points)),
            f"{fit.median_deviation:.1%}",
            f"{fit.worst_deviation:.1%}",
        ]
        for fit in agreed.fits
    ]
    rows.append(
        [
            "all",
            str(agreed.num_points),
            f"{agreed.median_deviation:.1%}",
            f"{agreed.worst_deviation:.1%}",
        ]
    )
    title = "predictions over a grid inside both runs' samples, in units of each run's pilot"
    return Table(title, ["", "points", "median deviation", "worst"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
