"""Plots: written, with units, and no text over another."""

import itertools
import math
from functools import cache

import fake_runs
import pytest
from fake_runs import result_of, run, runs_of, serving
from PIL import Image

from hetero.experiment.outcome import plots
from hetero.experiment.outcome.finish import finish
from hetero.experiment.outcome.measurements import Measurements
from hetero.experiment.outcome.plot_panel import ink_on
from hetero.experiment.outcome.plots import draw_plot, draw_plots
from hetero.profile.plot.style import STYLE

EXAMPLES = {
    "fair-baseline": fake_runs.fair_baseline,
    "interconnect": fake_runs.interconnect,
    "kv-quality": fake_runs.kv_quality,
    "kv-wire": fake_runs.kv_wire,
}


@cache
def example(name):
    return EXAMPLES[name]()


@cache
def picture_of(name, number=0):
    """Of an example; drawn once, and only looked at."""
    return drawn(*example(name), number)


def drawn(recipe, runs, number=0):
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = draw_plot(Measurements(recipe, runs), recipe.plots[number])
        figure.canvas.draw()
    return figure


def texts(figure):
    """Everything written, with its place in pixels."""
    import matplotlib.text

    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low * 0.9999 <= tick.get_loc() <= high * 1.0001 or not axes.axison:
                    hidden |= {tick.label1, tick.label2}
        if not axes.axison:
            hidden |= {axes.xaxis.label, axes.yaxis.label}
    return [
        (text.get_text(), text.get_window_extent())
        for text in figure.findobj(matplotlib.text.Text)
        if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def overlapping(figure):
    shrunk = [(text, box.padded(-1)) for text, box in texts(figure)]
    return [
        (a, b)
        for (a, box_a), (b, box_b) in itertools.combinations(shrunk, 2)
        if box_a.overlaps(box_b)
    ]


def outside(figure):
    width, height = figure.canvas.get_width_height()
    return [
        text
        for text, box in texts(figure)
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]


@pytest.mark.parametrize("name", ["fair-baseline", "kv-quality"])
def test_plots_are_written_as_png_and_svg(tmp_path, name):
    recipe, runs = example(name)
    made, why_not = draw_plots(tmp_path, Measurements(recipe, runs))
    assert why_not == ""
    assert [each.title for each in made] == [plot.title for plot in recipe.plots]
    for each in made:
        with Image.open(tmp_path / f"{each.stem}.png") as picture:
            assert min(picture.size) > 400
        assert (tmp_path / f"{each.stem}.svg").read_text().endswith("</svg>\n")
    assert len(list(tmp_path.iterdir())) == 2 * len(made)


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_text_lies_over_another_or_is_cut(name):
    for number in range(len(example(name)[0].plots)):
        figure = picture_of(name, number)
        assert overlapping(figure) == []
        assert outside(figure) == []


def test_equal_plots_are_equal_files(tmp_path):
    bars = {"kind": "bars", "title": "T", "x": "candidate", "y": ["throughput"]}
    recipe, runs = serving(plots=[bars]), runs_of({"candidate": "split"}, "throughput", [1, 2, 3])
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        draw_plots(tmp_path / folder, Measurements(recipe, runs))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_axes_say_what_they_are_with_units():
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in picture_of("fair-baseline").axes]
    assert labels == [
        ("sessions at once", "time to first token p95 (s)"),
        ("sessions at once", "gap between two pieces p95 (ms)"),
        ("sessions at once", "output throughput (tokens/s)"),
        ("sessions at once", "goodput (requests/s)"),
    ]


def test_ticks_lie_at_measured_values_only_and_are_plain():
    axes = picture_of("fair-baseline").axes[0]
    assert list(axes.get_xticks()) == [1, 2, 4, 8, 16, 32]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "1",
        "2",
        "4",
        "8",
        "16",
        "32",
    ]
    marks = [label.get_text() for label in axes.get_yticklabels() if label.get_text()]
    assert "0.5" in marks
    assert not any("e" in mark or "^" in mark for mark in marks)


def test_lines_differ_in_more_than_colour():
    lines = picture_of("fair-baseline").axes[0].get_lines()
    assert len(lines) == 3
    for look in ("get_color", "get_marker", "get_linestyle"):
        assert len({str(getattr(line, look)()) for line in lines}) == 3


def test_bars_differ_in_more_than_colour():
    bars = picture_of("kv-wire").axes[0].patches
    assert len({bar.get_hatch() for bar in bars}) == 3
    assert len({bar.get_facecolor() for bar in bars}) == 3


def test_the_legend_covers_no_data():
    figure = picture_of("fair-baseline")
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)
    assert [text.get_text() for text in legend.get_texts()][-1] == "95% interval"


def test_what_was_emulated_says_so_in_the_picture():
    assert "emulated: rtx-3090" in picture_of("interconnect").get_suptitle()
    assert "emulated" not in picture_of("kv-wire").get_suptitle()


def test_a_candidate_that_ignores_the_axis_is_a_line_without_markers():
    single, split = picture_of("interconnect", 1).axes[0].get_lines()
    assert single.get_marker() == ""
    assert len(set(single.get_ydata())) == 1
    assert split.get_marker() != ""


def test_a_cell_of_nothing_leaves_the_others_their_colours():
    """0 has no logarithm; the rest spans four orders of magnitude."""
    axes = picture_of("kv-quality").axes[0]
    (image,) = axes.images
    shades = image.cmap(image.norm(image.get_array()))
    assert len({tuple(shade) for row in shades for shade in row}) > 25
    assert axes.texts[0].get_text() == "0"


def test_negative_values_are_drawn_below_0():
    bars = {"kind": "bars", "title": "T", "x": "candidate", "y": ["throughput"]}
    recipe = serving(plots=[bars])
    runs = runs_of({"candidate": "split"}, "throughput", [-3, -2.9, -3.1])
    low, high = drawn(recipe, runs).axes[0].get_ylim()
    assert low < -3.1
    assert high >= 0


def test_values_stand_in_the_cells_in_an_ink_that_shows():
    axes = picture_of("kv-quality").axes[0]
    assert len(axes.texts) == 36
    assert len({text.get_color() for text in axes.texts}) == 2
    assert ink_on((0.0, 0.0, 0.0)) == "#ffffff"
    assert ink_on((1.0, 1.0, 0.2)) != "#ffffff"


def test_a_metric_that_nothing_has_is_said_in_its_panel():
    lines = {"kind": "lines", "title": "T", "x": "concurrency", "y": ["exposed_p50", "throughput"]}
    recipe = serving(vary={"concurrency": [1, 2]}, plots=[lines])
    runs = runs_of({"candidate": "single", "concurrency": 1}, "throughput", [5, 6, 7])
    panel, _ = drawn(recipe, runs).axes
    assert panel.texts[0].get_text().replace("\n", " ") == "exposed transfer p50 (s): not measured"


def test_missing_bars_and_cells_are_marked():
    plot = {"kind": "bars", "title": "T", "x": "kv", "y": ["throughput"], "lines": "candidate"}
    grid = {"kind": "grid", "title": "T", "x": "kv", "y": "candidate", "value": "throughput"}
    recipe = serving(vary={"kv": ["f16", "q8_0"]}, plots=[plot, grid])
    runs = runs_of({"candidate": "single", "kv": "f16"}, "throughput", [5, 6, 7])
    for number in (0, 1):
        shown = [text.get_text() for text in drawn(recipe, runs, number).axes[0].texts]
        assert "-" in shown


def test_nothing_measured_at_all_is_a_picture_too():
    for name in ("interconnect", "kv-quality"):
        recipe, _ = example(name)
        assert drawn(recipe, []) is not None


def test_long_names_and_many_values_do_not_overlap():
    values = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    names = ["a-candidate-with-a-long-name", "another-one-with-a-long-name", "short"]
    candidates = {name: {"decode": ["a"]} for name in names}
    lines = {
        "kind": "lines",
        "title": "A title of so many words that it has to be broken over two lines to be seen " * 2,
        "x": "prompt_tokens",
        "y": ["beside.itl_p99", "server_ttft_p99", "itl_p95"],
    }
    bars = {"kind": "bars", "title": "T", "x": "candidate", "y": ["itl_p95"], "at": {}}
    recipe = serving(
        candidates=candidates,
        beside="chat",
        settings={"beside_rate": 1.0},
        vary={"prompt_tokens": values},
        plots=[lines, bars | {"at": {"prompt_tokens": 8}}],
    )
    runs = [
        run(
            {"candidate": name, "prompt_tokens": value},
            number,
            samples={
                "itl": [value * 0.01],
                "beside.itl": [0.02 + number / 100],
                "server_ttft": [1],
            },
        )
        for name in names
        for value in values
        for number in range(3)
    ]
    for number in (0, 1):
        figure = drawn(recipe, runs, number)
        assert overlapping(figure) == []
        assert outside(figure) == []


def test_a_legend_of_many_names_fits_and_rates_do_not_overlap():
    kinds = ["f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
    rates = ["50mbit", "100mbit", "500mbit", "1gbit", "4gbit"]
    lines = {"title": "T", "x": "link_rate", "y": ["throughput"], "lines": "kv"}
    lines["at"] = {"candidate": "single"}
    plots = [{"kind": "lines", "log_x": True, **lines}, {"kind": "bars", **lines}]
    recipe = serving(vary={"kv": kinds, "link_rate": rates}, plots=plots)
    runs = [
        each
        for kind in kinds
        for number, rate in enumerate(rates)
        for each in runs_of(
            {"candidate": "single", "kv": kind, "link_rate": rate},
            "throughput",
            [10 + number, 11 + number],
        )
    ]
    for number in (0, 1):
        figure = drawn(recipe, runs, number)
        assert overlapping(figure) == []
        assert outside(figure) == []
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert names == [*kinds, "95% interval"]


def test_a_line_has_a_gap_where_nothing_was_measured():
    lines = {"kind": "lines", "title": "T", "x": "concurrency", "y": ["throughput"]}
    recipe = serving(vary={"concurrency": [1, 2, 4]}, plots=[lines])
    runs = [
        each
        for place in (1, 4)
        for each in runs_of({"candidate": "single", "concurrency": place}, "throughput", [5, 6])
    ]
    runs += runs_of({"candidate": "split", "concurrency": 2}, "throughput", [5, 6])
    single, split = drawn(recipe, runs).axes[0].get_lines()
    assert [math.isnan(each) for each in single.get_ydata()] == [False, True, False]
    assert [math.isnan(each) for each in split.get_ydata()] == [True, False, True]


def test_results_come_without_plots_where_matplotlib_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    recipe, runs = fake_runs.kv_wire()
    said = []
    finish(tmp_path, result_of(recipe, runs), said.append)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.md", "result.json"]
    assert said == [
        "no plots: need the matplotlib package, have none: pip install 'hetero[plot]', then hetero "
        f"results redraw {tmp_path}"
    ]
    assert "None: need the matplotlib package" in (tmp_path / "report.md").read_text()
