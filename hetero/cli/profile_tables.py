"""Profiles as tables on a terminal."""

from typing import TYPE_CHECKING

from hetero.cli.output import seconds_text, size_text

if TYPE_CHECKING:
    from hetero.profile.link.report import LinkProfile
    from hetero.profile.node_profile import MachineProfile, NodeProfile
    from hetero.profile.node_report import Table


def print_node(profile: "NodeProfile", *, all_of_it: bool = False) -> None:
    """all_of_it: with estimates of types that were not measured, and what could not be seen."""
    from hetero.launch.node_settings import settings_block
    from hetero.profile.node_report import BEYOND, facts_lines, headline, noise_lines, tables

    model, about = profile.model, profile.provenance
    is_random = model.fingerprint is None and profile.noise is not None
    weights = ", random weights" if is_random else ""
    took = "" if profile.noise is None else f", took {about.seconds:.0f} s of {about.budget_s:.0f}"
    _print_lines(
        [
            f"{profile.host}, {model.name}{weights}, {size_text(model.weight_bytes)}, "
            f"{profile.date}{took}",
            headline(profile),
            *noise_lines(profile.noise),
            "",
            *facts_lines(profile.facts),
        ]
    )
    found = tables(profile, with_estimates=all_of_it)
    for table in found:
        print_table(table)
    notes = []
    if any(BEYOND in cell for table in found for row in table.rows for cell in row):
        notes.append(f"{BEYOND} beyond the samples")
    _print_lines(["", *notes, *_unseen_lines(profile, all_of_it)])
    _print_lines(settings_block(profile.settings))


def _unseen_lines(profile: "NodeProfile | MachineProfile", all_of_it: bool) -> list[str]:
    unseen = profile.facts.unseen
    if all_of_it or not unseen:
        return [f"not seen: {line}" for line in unseen]
    return [f"facts not seen: {len(unseen)}; hetero profile show --all says which, and why"]


def print_machine(profile: "MachineProfile", *, all_of_it: bool = False) -> None:
    from hetero.profile.node_report import ceilings_table, facts_lines

    _print_lines([f"{profile.host}, {profile.date}", "", *facts_lines(profile.facts)])
    print_table(ceilings_table(profile.ceilings))
    _print_lines(["", *_unseen_lines(profile, all_of_it)])


def print_link(found: "LinkProfile") -> None:
    from hetero.profile.node_report import Table

    plain = found.plain
    whose = f"{found.model}, K {found.kv_k}, V {found.kv_v}"
    rows = [
        [
            "plain TCP",
            f"{8e-9 * plain.bytes_per_s.median:.2f}",
            "",
            f"{plain.source_cores.median:.2f}",
            f"{plain.sink_cores.median:.2f}",
            "",
        ]
    ]
    for row in found.goodput:
        count = "" if row.connections is None else f", {row.connections} connections"
        rows.append(
            [
                f"KV, {row.seal}{count}",
                f"{8e-9 * row.bytes_per_s.median:.2f}",
                f"{row.of_plain.median:.3f} ({row.of_plain.low:.3f}-{row.of_plain.high:.3f})",
                f"{row.source_cores.median:.2f}",
                f"{row.sink_cores.median:.2f}",
                seconds_text(row.restore_s.median),
            ]
        )
    print_table(
        Table(
            f"{found.source} to {found.sink} by {found.transport}: {whose}, "
            f"{size_text(found.transfer_bytes)} a transfer in frames of "
            f"{size_text(found.frame_bytes)}",
            ["", "Gbit/s", "of plain TCP", "cores here", "cores there", "restore"],
            rows,
        )
    )
    rtt = found.rtt_s
    _print_lines(
        [
            "",
            f"round trip {1e6 * rtt.median:.0f} us (least {1e6 * rtt.low:.0f} us); "
            f"packing {8e-9 * found.pack_bytes_per_s.median:.2f} Gbit/s on one thread here",
        ]
    )


def print_table(table: "Table") -> None:
    from rich import table as rich_table
    from rich.console import Console
    from rich.text import Text

    shown = rich_table.Table(box=None, title=Text(table.title), title_justify="left")
    for head in table.heads:
        shown.add_column(Text(head), no_wrap=True)
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    # A pipe and a narrow terminal get whole lines.
    console = Console(soft_wrap=True, width=400)
    console.print()
    console.print(shown)


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        print(line)
