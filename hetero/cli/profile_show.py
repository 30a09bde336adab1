"""`hetero profile show`: what a profile says, and how near to its ceilings that is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hetero.cli.output import AsJson, print_json, print_progress

if TYPE_CHECKING:
    from hetero.profile.node_profile import NodeProfile


def show(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A node's, machine's or link's profile.")
    ],
    plot: Annotated[
        bool,
        typer.Option("--plot", help="Draw a roofline, and the fits with their samples."),
    ] = False,
    plot_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Draw it here.  [default: beside the profile]"),
    ] = None,
    all_of_it: Annotated[
        bool,
        typer.Option("--all", help="Estimates of other types, too, and what was not seen."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What a profile says, each figure with its share of what the hardware gives."""
    from hetero.cli.profile_tables import print_link, print_machine, print_node
    from hetero.errors import ConfigError
    from hetero.profile.document import document, kind_of, read_profile
    from hetero.profile.link.report import LinkProfile
    from hetero.profile.node_profile import NodeProfile

    picture = plot_file or (path.with_suffix(".png") if plot else None)
    profile = read_profile(path)
    if not isinstance(profile, NodeProfile):
        if picture is not None:
            raise ConfigError(
                f"{path}: kind: need a node's profile to plot, have a {kind_of(profile)}'s; "
                "measure with `hetero profile node -m MODEL`"
            )
        if as_json:
            print_json(document(profile))
        elif isinstance(profile, LinkProfile):
            print_link(profile)
        else:
            print_machine(profile, all_of_it=all_of_it)
        return
    if picture is not None:
        from hetero.profile.plot.node_figure import plot_node

        plot_node(profile, picture)
        print_progress(f"drawn: {picture}")
    if as_json:
        print_json(document(profile) | {"rates": _rates(profile)})
    else:
        print_node(profile, all_of_it=all_of_it)


def _rates(profile: "NodeProfile") -> list[list[dict[str, Any]]]:
    """Of each fit, in the order of `fits`."""
    import msgspec

    from hetero.profile.rates import rates

    return [msgspec.to_builtins(rates(profile, fit)) for fit in profile.fits]
