"""Plots: what is drawn is held to the database, and pictures are looked at as readers do."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sqlite3
import stat
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_runs import LOSS, MAP, NOW, Made, learning, make_run, scores
from noisy_runs import make_noisy
from rich.console import Console
from watching import CLI, cli

from watcher.cli.plot import _read
from watcher.errors import WatcherError
from watcher.plot import figure
from watcher.plot.close_up import with_close_ups
from watcher.plot.gather import read_run
from watcher.plot.placing import box_around, place_labels
from watcher.plot.recorded import Point, Run
from watcher.plot.series import (
    MOST_BANDS,
    MOST_CATEGORIES,
    MOST_RUNS,
    Curve,
    Picture,
    make_picture,
    short_label,
)
from watcher.plot.style import COLOURS, look_of
from watcher.plot.terminal import Drawing
from watcher.plot.ticks import round_ticks, tick_labels
from watcher.store import Store
from watcher.store.database_file import iso
from watcher.store.reading import open_reader

SVG = "{http://www.w3.org/2000/svg}"
STOP = "no improvement greater than 0.005 in 10 evaluations since ckpt-20 (step 20000, score 0.4)"
GAPS = (0.1, None, 0.2, -1.0, 0.3, 0.32, None, 0.35, 0.31)


def query(model_dir: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(model_dir / "watcher" / "watcher.db")) as db:
        return db.execute(sql).fetchall()


def read(model_dir: Path, metrics: Sequence[str] = (), **options: bool) -> Run:
    with open_reader(model_dir / "watcher") as reader:
        return read_run(reader, metrics, **options)


def picture_of(*folders: Path, metrics: Sequence[str] = (), **options: bool) -> Picture:
    options = {"categories": False, "losses": False, **options}
    runs = _read(folders, None, metrics, **options)
    return make_picture(runs, metrics, **options)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred evaluations of twelve categories, stopped early."""
    folder = tmp_path_factory.mktemp("long") / "model_dir"
    return make_run(folder, learning(200, categories=12), name="long", top_k=5, stop=STOP)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of long names, of which two stopped early, at different steps."""
    above = tmp_path_factory.mktemp("three")
    for seed in range(3):
        name = f"ssd_mobilenet_v2_fpnlite_640x640_coco17_seed_{seed}"
        made = learning(50 - 10 * seed, seed=seed)
        make_run(above / f"exp{seed}" / "model_dir", made, name=name, stop=STOP if seed else None)
    return above


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine evaluations, of which two are not finite and one measured nothing."""
    return make_run(tmp_path_factory.mktemp("gaps") / "model_dir", scores(*GAPS), name="gaps")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of none, one and two evaluations."""
    above = tmp_path_factory.mktemp("few")
    for count in range(3):
        make_run(above / str(count) / "model_dir", scores(*(0.1, 0.3)[:count]), name=f"of {count}")
    return above


# -- what is to be drawn, held to the database


@pytest.mark.slow
def test_every_point_is_a_row_of_the_database(long: Path):
    (panel,) = picture_of(long).panels
    (curve,) = panel.curves
    rows = query(long, "SELECT global_step, score FROM history ORDER BY global_step")
    assert len(rows) == 200 and list(curve.drawable) == rows


def test_what_cannot_rank_is_a_gap_that_no_line_crosses(gaps: Path):
    (panel,) = picture_of(gaps).panels
    (curve,) = panel.curves
    assert [point.value for point in curve.points] == [
        None if value == -1 else value for value in GAPS
    ]
    steps = [[step for step, _ in piece] for piece in curve.pieces]
    assert steps == [[100], [300], [500, 600], [800, 900]]


def test_the_board_is_marked_and_so_is_what_left_it(long: Path):
    (curve,) = picture_of(long).panels[0].curves
    shown = [(mark.rank, mark.point.checkpoint, mark.point.value) for mark in curve.marks]
    board = query(long, "SELECT rank, checkpoint, score FROM leaderboard ORDER BY rank DESC")
    assert shown[-5:] == board
    left = query(
        long,
        "SELECT DISTINCT c.name FROM promotions p JOIN checkpoints c ON c.id = p.checkpoint_id"
        " WHERE c.id NOT IN (SELECT checkpoint_id FROM promotions WHERE evicted_at IS NULL)",
    )
    assert {mark.point.checkpoint for mark in curve.marks if mark.place == "former"} == {
        name for (name,) in left
    }
    assert curve.marks[-1].place == "best"


def test_the_early_stop_is_where_it_was_decided_and_not_where_training_ended(tmp_path: Path):
    folder = make_run(tmp_path / "model_dir", scores(0.1, 0.3, 0.2, 0.2, 0.2))
    with Store(folder / "watcher" / "watcher.db", run="run", model_dir=folder, now=NOW) as store:
        assert read(folder).stop is None
        store.ledger.add_event(NOW + 3.5, "stop", "two without a gain")
        store.ledger.add_event(NOW + 4.5, "stop", "three without a gain")
        stop = read(folder).stop
        assert stop is not None and (stop.step, stop.message) == (300, "two without a gain")
        store.ledger.add_event(NOW + 6, "stop_withdrawn", "go on")
        assert read(folder).stop is None
        store.ledger.add_event(NOW + 7, "stop", "again")
        stop = read(folder).stop
        assert stop is not None and stop.step == 500


def test_any_metric_is_drawn_as_run_would_rank_by_it(long: Path):
    metrics = ("loss", "AP[category 03]", "mAP - 0.1 * loss")
    drawn = picture_of(long, metrics=metrics)
    assert [panel.title for panel in drawn.panels] == list(metrics)
    rows = query(
        long,
        "SELECT max(CASE WHEN metric = 'Loss/total_loss' THEN value END),"
        f" max(CASE WHEN metric = '{MAP}' AND category = 'category 03' THEN value END),"
        f" max(CASE WHEN metric = '{MAP}' AND category IS NULL THEN value END)"
        " FROM metric_values GROUP BY global_step ORDER BY global_step",
    )
    for place, panel in enumerate(drawn.panels):
        values = [value for _, value in panel.curves[0].drawable]
        wanted = [(loss, ap, score - 0.1 * loss)[place] for loss, ap, score in rows]
        assert values == wanted


def test_of_many_categories_the_largest_are_drawn_and_the_others_are_told(long: Path):
    panel = picture_of(long, categories=True).panels[1]
    last = query(
        long,
        f"SELECT category FROM metric_values WHERE metric = '{MAP}' AND category IS NOT NULL"
        " AND global_step = 200000 ORDER BY value DESC",
    )
    assert [curve.label for curve in panel.curves] == [of for (of,) in last[:MOST_CATEGORIES]]
    assert panel.note == "10 of 12 categories: those whose last value is largest"


def test_a_category_that_was_never_measured_is_told(tmp_path: Path):
    made = [Made(100, {MAP: 0.5}, {(MAP, "cat"): 0.5, (MAP, "dog"): -1.0})]
    panel = picture_of(make_run(tmp_path / "m", made), categories=True).panels[1]
    assert [curve.label for curve in panel.curves] == ["cat"]
    assert panel.note == "1 more has no value"


@pytest.mark.slow
def test_losses_and_score_stand_one_above_the_other(long: Path, three: Path):
    score, losses = picture_of(long, losses=True).panels
    assert score.axis == "mAP" and losses.axis == "loss"
    assert [curve.label for curve in losses.curves] == [
        *("total loss", "classification loss", "localization loss", "regularization loss")
    ]
    rows = query(
        long, f"SELECT global_step, value FROM metric_values WHERE metric = '{LOSS}' ORDER BY 1"
    )
    assert list(losses.curves[0].drawable) == rows
    of_three = picture_of(three, losses=True).panels[1]
    assert of_three.title == LOSS and len(of_three.curves) == 3


def test_several_runs_are_overlaid_and_those_of_one_name_are_told_apart(
    three: Path, tmp_path: Path, few: Path, capsys: pytest.CaptureFixture[str]
):
    (panel,) = picture_of(three).panels
    assert [curve.label[-6:] for curve in panel.curves] == ["seed_0", "seed_1", "seed_2"]
    assert {curve.stop.step for curve in panel.curves if curve.stop} == {40000, 30000}
    for place in ("a", "b"):
        make_run(tmp_path / place / "model_dir", scores(0.5), name="model_dir")
    labels = [curve.label for curve in picture_of(tmp_path).panels[0].curves]
    assert labels == ["a/model_dir", "b/model_dir"]
    assert [curve.label for curve in picture_of(few).panels[0].curves] == ["of 1", "of 2"]
    assert capsys.readouterr().err == "warning: no checkpoint of of 0 is evaluated yet\n"


def test_runs_ranked_by_different_metrics_have_a_panel_for_each(tmp_path: Path):
    make_run(tmp_path / "a" / "m", learning(5), name="a")
    make_run(tmp_path / "b" / "m", learning(6), name="b", metric="loss", mode="min")
    first, second = picture_of(tmp_path).panels
    assert (first.title, second.title) == (MAP, "loss, less is better")
    assert [len(panel.curves) for panel in (first, second)] == [2, 2]


# -- pictures


def svg_of(drawn: Picture, **options: Any) -> ElementTree.Element:
    return ElementTree.fromstring(figure.to_svg(drawn, **options))


def texts(element: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()).strip() for text in element.iter(f"{SVG}text")]


def part(element: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = (one for one in element.iter() if re.search(rf"-{name}$", one.get("id", "")))
    return found


def vertices(element: ElementTree.Element) -> list[tuple[float, float]]:
    (path,) = (one for one in element.findall(f"{SVG}path") if "clip-path" in one.attrib)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))]


@pytest.mark.slow
def test_the_svg_shows_the_curve_the_marks_the_stop_and_says_what_they_are(long: Path):
    drawn = picture_of(long, losses=True, categories=True)
    svg = svg_of(drawn)
    said = texts(svg)
    assert {"long", MAP, "mAP", "loss", "global step", "50,000", "200,000"} <= set(said)
    assert {"5", "category 11", "total loss", "107 promoted for a while"} <= set(said)
    assert f"early stop: {STOP}" in said and "early stop at step 200,000" in said
    ((name, step, value),) = query(long, "SELECT checkpoint, global_step, score FROM best")
    assert f"best: {value:.4f} at step {step:,} ({name})" in said
    assert len(part(svg, "panel-0-former").findall(f".//{SVG}use")) == 107
    assert len(part(svg, "panel-0-place").findall(f".//{SVG}use")) == 4
    assert len(vertices(part(svg, "panel-0-stop"))) == 2
    ranks = {one.get("id", "").rsplit("-")[-1] for one in svg.iter() if "rank" in one.get("id", "")}
    assert {"1", "2", "5"} <= ranks


def test_the_points_of_the_svg_lie_where_the_scores_are(gaps: Path):
    drawn = picture_of(gaps)
    svg = svg_of(drawn)
    wanted = drawn.panels[0].curves[0].drawable
    signs = [
        (float(use.get("x", "")), float(use.get("y", "")))
        for use in part(svg, "panel-0-curve-0").findall(f".//{SVG}use")
    ]
    assert len(signs) == len(wanted)
    (x0, y0), (x1, y1) = signs[0], signs[-2]
    for (x, y), (step, value) in zip(signs, wanted, strict=True):
        assert x == pytest.approx(x0 + (step - 100) / 700 * (x1 - x0), abs=0.01)
        assert y == pytest.approx(y0 + (value - 0.1) / 0.25 * (y1 - y0), abs=0.01)
    d = next(
        path.get("d", "")
        for path in part(svg, "panel-0-curve-0").findall(f"{SVG}path")
        if "clip-path" in path.attrib
    )
    assert d.count("M") == 4


RISEN = (0.02, 0.15, 0.25, 0.3663, 0.3709, 0.3657, 0.3706)


def test_last_points_that_lie_on_one_line_are_drawn_again_on_an_axis_that_shows_them(
    tmp_path: Path,
):
    picture = with_close_ups(picture_of(make_run(tmp_path, scores(*RISEN), stop="enough")))
    whole, close = picture.panels
    assert whole.steps == (100, 700) and not whole.closer
    assert close.title == "Close-up: mAP from step 400 on" and close.steps == (400, 700)
    assert [value for _, value in close.curves[0].drawable] == list(RISEN[3:])
    assert [mark.rank for mark in close.curves[0].marks if mark.rank] == [3, 2, 1]
    with figure.prepared(picture):
        above, below = figure.draw(picture).axes
        assert above.get_xlim() != below.get_xlim()
        for axes, values in ((above, RISEN), (below, RISEN[3:])):
            low, high = axes.get_ylim()
            assert low < min(values) and max(values) < high
            assert high - low < 1.3 * (max(values) - min(values))
    root = svg_of(picture)
    heights = [y for _, y in vertices(part(root, "panel-1-curve-0"))]
    assert max(heights) - min(heights) > 100, "in points, of 230 that the panel is high"
    assert texts(root).count("global step") == 2
    drawn = shown(picture, 80)
    assert "Close-up" in drawn and drawn.count("★") == 3, "twice as a point, once in the legend"


@pytest.mark.parametrize(
    "values",
    [
        (0.02, 0.15, 0.3, 0.4),
        (0.02, 0.3, 0.3, 0.3, 0.3),
        (0.5, 0.02, 0.4, 0.41, 0.4, 0.41),
        (0.3, None),
    ],
    ids=["still_rising", "all_the_same", "the_best_is_before", "one"],
)
def test_there_is_no_close_up_where_it_would_show_nothing_more(
    tmp_path: Path, values: tuple[float | None, ...]
):
    picture = picture_of(make_run(tmp_path, scores(*values)))
    assert with_close_ups(picture) == picture


def test_a_close_up_of_several_runs_shows_the_end_of_each(tmp_path: Path):
    folders = [
        make_run(tmp_path / name, scores(*(value + more for value in RISEN)), name=name)
        for name, more in (("a", 0.0), ("b", 0.01))
    ]
    picture = with_close_ups(picture_of(*folders, losses=True))
    assert [panel.closer for panel in picture.panels] == [False, False, True]
    assert [curve.label for curve in picture.panels[-1].curves] == ["a", "b"]
    assert picture.panels[-1].steps == (400, 700)


@pytest.mark.slow
# -- intervals


def test_the_band_has_the_ends_of_each_interval_and_ends_where_there_is_none(tmp_path: Path):
    folder = make_noisy(tmp_path, scores(0.1, 0.2, None, 0.3, 0.32, 0.35), without={4})
    drawn = picture_of(folder)
    (curve,) = drawn.panels[0].curves
    ends = query(folder, "SELECT global_step, low, high FROM history WHERE low NOT NULL ORDER BY 1")
    assert [step for step, *_ in ends] == [100, 200, 500, 600]
    assert [point for piece in curve.bands for point in piece] == ends
    assert [len(piece) for piece in curve.bands] == [2, 2]
    svg = svg_of(drawn)
    assert "95 % interval" in texts(svg)
    band = part(svg, "panel-0-band-0")
    (shape,), (use,) = (band.findall(f".//{SVG}{name}") for name in ("path", "use"))
    down = float(use.get("y", ""))
    signs = part(svg, "panel-0-curve-0").findall(f".//{SVG}use")
    (x0, y0), (x1, y1) = [(float(use.get("x", "")), float(use.get("y", ""))) for use in signs[:2]]
    d = re.findall(r"[ML] (\S+) (\S+)", shape.get("d", ""))
    corners = [(float(x), float(y) + down) for x, y in d]
    for step, low, high in ends[:2]:
        for value in (low, high):
            at = (x0 + (step - 100) / 100 * (x1 - x0), y0 + (value - 0.1) / 0.1 * (y1 - y0))
            assert any(corner == pytest.approx(at, abs=0.01) for corner in corners)


def test_a_point_between_two_without_an_interval_has_a_band_of_its_own(tmp_path: Path):
    drawn = picture_of(make_noisy(tmp_path, scores(0.1, 0.2, 0.3), without={1, 3}))
    svg = svg_of(drawn)
    assert part(svg, "panel-0-band-0").findall(f".//{SVG}path")


def test_a_metric_that_does_not_rank_has_the_band_of_its_own_intervals(tmp_path: Path):
    folder = make_noisy(tmp_path, scores(0.1, 0.2, 0.3), other=f"{MAP}@.50IOU")
    (panel,) = picture_of(folder, metrics=["mAP50"]).panels
    found = [point for piece in panel.curves[0].bands for point in piece]
    sql = "SELECT global_step, low, high FROM intervals WHERE metric LIKE '%50IOU' ORDER BY 1"
    assert panel.banded and found == query(folder, sql)
    (panel,) = picture_of(folder, metrics=["mAP + mAP50"]).panels
    assert not panel.banded, "of an expression that does not rank none is recorded"


def test_there_is_no_band_where_it_would_hide_or_tell_nothing(tmp_path: Path, gaps: Path):
    assert not picture_of(gaps).panels[0].banded
    assert "95 % interval" not in texts(svg_of(picture_of(gaps)))
    folders = [
        make_noisy(tmp_path / f"{at}" / "run", scores(0.1, 0.2), name=f"run {at}")
        for at in range(MOST_BANDS + 1)
    ]
    assert picture_of(*folders[:-1]).panels[0].banded
    assert not picture_of(*folders).panels[0].banded
    risen = with_close_ups(picture_of(make_noisy(tmp_path / "risen", scores(*RISEN))))
    assert [panel.banded for panel in risen.panels] == [True, False]
    assert "interval" not in shown(risen, 80), "in the terminal it would hide the curve"


def test_a_database_from_before_intervals_is_drawn_without_them(tmp_path: Path):
    folder = make_run(tmp_path, scores(0.1, 0.2))
    with closing(sqlite3.connect(folder / "watcher" / "watcher.db")) as db:
        views = db.execute("SELECT name FROM sqlite_master WHERE type = 'view'").fetchall()
        for (name,) in views:
            if name != "checkpoints":  # which all questions ask
                db.execute(f"DROP VIEW {name}")
        db.execute("DROP TABLE replicates")
        db.execute("ALTER TABLE evaluations DROP COLUMN low")
        db.commit()
    assert not picture_of(folder).panels[0].banded


def test_several_svgs_stand_in_one_page_and_reach_for_nothing_outside(long: Path, gaps: Path):
    first, second = (figure.to_svg(picture_of(folder)) for folder in (long, gaps))
    third = figure.to_svg(picture_of(gaps), prefix="again-")
    ids = [id_ for text in (first, second, third) for id_ in re.findall(r'(?<!\w)id="(.*?)"', text)]
    assert len(ids) == len(set(ids)) > 100
    for text in (first, second, third):
        assert text.startswith("<svg ") and text.endswith("</svg>")
        assert not re.search(r"<style|<script|<image|<\?|<!", text)
        used = re.findall(r'(?:href="|url\()(.*?)[")]', text)
        assert used and {one[1:] for one in used} <= set(ids)
        assert set(re.findall(r"https?://[^\"]+", text)) <= {
            "http://www.w3.org/1999/xlink",
            "http://www.w3.org/2000/svg",
        }
    assert first == figure.to_svg(picture_of(long)), "the same rows give the same bytes"


def test_a_name_with_markup_in_it_stays_text(tmp_path: Path):
    name = '<script>alert("1")</script> & $\\frac{1}{2}$ _x^2'
    folder = make_run(tmp_path / "m", scores(0.5, 0.6), name=name)
    svg = figure.to_svg(picture_of(folder))
    assert "<script" not in svg and name in texts(ElementTree.fromstring(svg))


@pytest.mark.slow
def test_signs_that_no_font_has_are_told_in_a_line_and_whole_in_an_svg(tmp_path: Path):
    name = "实验 \U000f1234"  # the last is for private use: no font has it
    folder = make_run(tmp_path / "m", scores(0.5, 0.6), name=name)
    ended = cli("plot", folder, "-o", tmp_path / "x.png")
    assert ended.returncode == 0 and (tmp_path / "x.png").stat().st_size > 5000
    assert re.fullmatch(r"warning: no font here has .*\U000f1234: .*\nwrote .*\n", ended.stderr)
    ended = cli("plot", folder, "-o", tmp_path / "x.svg")
    assert (ended.returncode, ended.stderr.count("\n")) == (0, 1)
    assert name in texts(ElementTree.parse(tmp_path / "x.svg").getroot())


def rendered_texts(drawn: Picture, width: float) -> tuple[Any, list[tuple[str, Any]]]:
    from matplotlib.text import Text

    with figure.prepared(drawn):
        made = figure.draw(drawn, width_inches=width)
        made.draw_without_rendering()
        # Labels of ticks that are not on the axis, or on an axis that is shared, are not drawn.
        ticks, drawn_ticks = set(), set()
        for axes in made.axes:
            for axis in (axes.xaxis, axes.yaxis):
                ticks |= {
                    id(label) for one in axis.majorTicks for label in (one.label1, one.label2)
                }
                drawn_ticks |= {
                    id(one.label1) for one in axis._update_ticks() if one.label1.get_visible()
                }
        found = [
            (text.get_text(), text.get_window_extent())
            for text in made.findobj(Text)
            if text.get_visible() and text.get_text().strip()
            if id(text) not in ticks or id(text) in drawn_ticks
        ]
        return made, found


@pytest.mark.slow
@pytest.mark.parametrize("width", [10.0, 4.5])
@pytest.mark.parametrize("which", ["long", "three", "gaps", "two"])
def test_no_text_lies_on_another_or_is_cut_off(
    which: str, width: float, long: Path, three: Path, gaps: Path, few: Path
):
    folder = {"long": long, "three": three, "gaps": gaps, "two": few / "2" / "model_dir"}[which]
    drawn = with_close_ups(picture_of(folder, categories=True, losses=True))
    made, found = rendered_texts(drawn, width)
    assert len(found) > 10
    for text, box in found:
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= made.bbox.x1 and box.y1 <= made.bbox.y1, text
    for (one, here), (other, there) in itertools.combinations(found, 2):
        apart = (
            here.x1 <= there.x0 + 0.5
            or there.x1 <= here.x0 + 0.5
            or here.y1 <= there.y0 + 0.5
            or there.y1 <= here.y0 + 0.5
        )
        assert apart, f"{one!r} lies on {other!r}"


@pytest.mark.slow
def test_the_png_has_its_size_and_shows_every_colour_that_it_should(long: Path, tmp_path: Path):
    from PIL import Image

    file = tmp_path / "long.png"
    ended = cli("plot", long, "--losses", "-o", file)
    content = file.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    wide, high = struct.unpack(">II", content[16:24])
    told = f"wrote {file} ({wide}x{high})\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", told)
    assert wide == 1440 and 700 < high < 1600
    with Image.open(file) as image:
        pixels = image.convert("RGB").getcolors(1 << 20)
    seen = {f"#{red:02X}{green:02X}{blue:02X}": count for count, (red, green, blue) in pixels}
    assert all(seen.get(colour.upper(), 0) > 100 for colour in COLOURS[:4])
    assert seen["#FFFFFF"] > 0.5 * wide * high


def test_a_pdf_can_be_had_too(few: Path):
    content = figure.to_bytes(picture_of(few), ".pdf")
    assert content.startswith(b"%PDF-") and len(content) > 5000
    assert re.fullmatch(r"720x\d+ pt", figure.size_of(content))


@pytest.mark.slow
def test_on_standard_output_there_is_the_picture_and_nothing_else(few: Path, tmp_path: Path):
    ended = cli("plot", few / "2" / "model_dir", "-o", "-", cwd=tmp_path)
    assert (ended.returncode, ended.stderr, list(tmp_path.iterdir())) == (0, "", [])
    written = cli("plot", few / "2" / "model_dir", "-o", "run.svg", cwd=tmp_path)
    assert re.fullmatch(r"wrote run.svg \(720x\d+ pt\)\n", written.stderr)
    assert (written.stdout, ended.stdout) == ("", (tmp_path / "run.svg").read_text())


# -- colours


def seen_with(colour: str, matrix: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """CIE L*a*b* of a colour as it is seen through `matrix` (linear RGB to linear RGB)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    red, green, blue = (
        min(max(sum(a * b for a, b in zip(row, linear, strict=True)), 0.0), 1.0) for row in matrix
    )
    xyz = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089,
    )
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in xyz)
    return (116 * y - 16, 500 * (x - y), 200 * (y - z))


# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of Color
# Vision Deficiency", the full deficiencies; the last is normal sight.
SIGHTS = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
}


@pytest.mark.parametrize("sight", SIGHTS)
def test_the_colours_are_told_apart_whatever_the_sight(sight: str):
    seen = {colour: seen_with(colour, SIGHTS[sight]) for colour in (*COLOURS, "#FFFFFF")}
    for one, other in itertools.combinations(seen, 2):
        difference = sum((a - b) ** 2 for a, b in zip(seen[one], seen[other], strict=True)) ** 0.5
        assert difference > 10, f"{one} and {other} with {sight}: {difference:.0f}"


def test_no_two_curves_look_the_same_and_neighbours_differ_in_all_that_is_not_colour():
    looks = [look_of(number) for number in range(40)]
    assert len(set(looks)) == 40
    for one, other in itertools.pairwise(looks):
        assert one.marker != other.marker and one.line != other.line


# -- in the terminal


def shown(drawn: Picture, width: int, *, height: int = 40, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=width, height=height, markup=False, emoji=False)
    console.print(Drawing(drawn))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [40, 80, 131])
@pytest.mark.parametrize("which", ["long", "three", "gaps", "few"])
def test_the_terminal_is_never_too_narrow(
    which: str, width: int, long: Path, three: Path, gaps: Path, few: Path
):
    folder = {"long": long, "three": three, "gaps": gaps, "few": few}[which]
    drawn = picture_of(folder, categories=True, losses=True)
    for encoding in ("utf-8", "ascii"):
        text = shown(drawn, width, encoding=encoding)
        assert max(map(len, text.splitlines())) <= width
        assert "global" not in text or width > 40
        assert "\x1b" not in text and "�" not in text and "?" not in text


def test_one_picture_in_the_terminal_is_no_higher_than_that(long: Path, few: Path):
    for height in (20, 30, 60):
        for folder in (long, few / "2" / "model_dir"):
            text = shown(picture_of(folder, losses=height > 45), 80, height=height)
            assert len(text.splitlines()) <= height


def test_the_terminal_shows_the_points_in_their_places(gaps: Path):
    text = shown(picture_of(gaps), 80)
    lines = text.splitlines()
    ((name, step, value),) = query(gaps, "SELECT checkpoint, global_step, score FROM best")
    assert f"★ best: {value:.4f} at step {step:,} ({name})" in text
    canvas = [line for line in lines if "│" in line or "┤" in line]
    star = next(place for place, line in enumerate(canvas) if "★" in line)
    assert star < next(place for place, line in enumerate(canvas) if "2" in line.split("┤")[-1])
    left = min(line.index("△") for line in canvas if "△" in line)
    where = next(line.index("★") for line in canvas if "★" in line)
    assert (where - left) / (79 - left) == pytest.approx(7 / 8, abs=0.02)
    assert len([line for line in canvas if "△" in line]) == 3


@pytest.mark.slow
def test_the_terminal_has_colours_of_its_own_unless_they_are_not_wanted(three: Path):
    stream = io.StringIO()
    colour = Console(file=stream, width=80, height=40, force_terminal=True, color_system="256")
    colour.print(Drawing(picture_of(three)))
    assert set(re.findall(r"38;5;(\d+)m", stream.getvalue())) >= {"32", "166", "36"}
    ended = cli("plot", three, PYTHONIOENCODING="ascii", COLUMNS="72")
    assert ended.returncode == 0 and ended.stdout.isascii() and "\x1b" not in ended.stdout
    assert re.search(r"^a ssd_mobilenet_\w*~\w*coco17_seed_0", ended.stdout, re.MULTILINE)


# -- the command


def error_of(*arguments: object, **environment: str) -> list[str]:
    ended = cli("plot", *arguments, **environment)
    assert ended.returncode == 1 and ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")
    return lines


def test_a_run_without_evaluations_is_one_clear_error(few: Path, tmp_path: Path):
    error, hint = error_of(few / "0" / "model_dir", "-o", tmp_path / "x.png")
    assert error == "error: no checkpoint of of 0 is evaluated yet" and "status" in hint
    assert not list(tmp_path.iterdir())


def test_an_unknown_suffix_is_told_before_anything_is_read(tmp_path: Path):
    error, hint = error_of(tmp_path / "nothing here", "-o", "x.jpg")
    assert ".jpg" in error and hint == "hint: there are: .png, .svg, .pdf"
    (tmp_path / "folder.svg").mkdir()
    assert "is not a file" in error_of(tmp_path, "-o", tmp_path / "folder.svg")[0]


def test_an_unknown_metric_is_told_with_those_there_are(long: Path):
    with pytest.raises(WatcherError) as raised:
        picture_of(long, metrics=["mAPP"])
    assert raised.value.message == "metric (mAPP) is not reported by this evaluation"
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("did you mean mAP? there are: ") and MAP in str(
        raised.value.hint
    )
    with pytest.raises(WatcherError, match="category unicorn is not reported"):
        picture_of(long, metrics=["AP[unicorn]"])


def test_a_metric_without_a_value_to_draw_is_told(tmp_path: Path):
    folder = make_run(tmp_path / "m", scores(-1.0, None))
    with pytest.raises(WatcherError, match="no evaluation has a value of it") as raised:
        picture_of(folder)
    assert "-1" in str(raised.value.hint)


@pytest.mark.slow
def test_more_runs_than_can_be_told_apart_are_refused(tmp_path: Path):
    for place in range(MOST_RUNS + 1):
        make_run(tmp_path / f"{place:02}" / "m", scores(0.5))
    with pytest.raises(WatcherError, match="no more than 12 can be told apart"):
        picture_of(tmp_path)


@pytest.mark.slow
def test_only_the_named_file_is_written_and_its_permissions_stay(few: Path, tmp_path: Path):
    beside = tmp_path / "beside.txt"
    beside.write_text("stays")
    file = tmp_path / "run.SVG"
    file.write_text("old")
    file.chmod(0o640)
    database = few / "2" / "model_dir" / "watcher" / "watcher.db"
    before = database.read_bytes()
    assert cli("plot", few / "2" / "model_dir", "--output", file).returncode == 0
    assert file.read_text().startswith('<?xml version="1.0"') and beside.read_text() == "stays"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert {path.name for path in tmp_path.iterdir()} == {"beside.txt", "run.SVG"}
    assert database.read_bytes() == before
    error, _ = error_of(few / "2" / "model_dir", "-o", tmp_path / "missing" / "x.svg")
    assert "No such file or directory" in error


@pytest.mark.parametrize(
    ("library", "arguments"), [("matplotlib", ["-o", "x.png"]), ("plotext", [])]
)
def test_a_missing_library_is_told_with_the_way_to_it(
    library: str, arguments: list[str], few: Path, tmp_path: Path
):
    said = f"raise ModuleNotFoundError('No module named {library}', name='{library}')\n"
    (tmp_path / f"{library}.py").write_text(said)
    error, hint = error_of(few / "2" / "model_dir", *arguments, PYTHONPATH=str(tmp_path))
    assert f"plot needs {library}, which is not installed" in error
    assert hint == "hint: pip install 'checkpoint-watcher[plot]'"
    assert not Path("x.png").exists()


def test_no_other_command_imports_what_draws(few: Path):
    program = (
        "import json, sys\n"
        "from watcher.cli import cli\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    cli(words, standalone_mode=False)\n"
        "found = {'matplotlib', 'numpy', 'plotext', 'PIL'} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    folder = str(few / "2" / "model_dir")
    commands = [
        ["plot", "--help"],
        *([name, folder] for name in ("status", "leaderboard", "history")),
    ]
    ended = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_a_home_that_is_not_there_is_not_made_and_fonts_are_listed_once(few: Path, tmp_path: Path):
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    temporary.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment = {**kept, "HOME": str(home), "TMPDIR": str(temporary)}
    command = [*CLI, "plot", str(few / "1" / "model_dir"), "-o", str(tmp_path / "x.png")]
    lists = []
    for _ in range(2):
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0 and ended.stderr.startswith("wrote ")
        assert ended.stderr.count("\n") == 1
        (found,) = temporary.rglob("fontlist-*.json")
        lists.append(found.stat().st_mtime_ns)
    assert lists[0] == lists[1] and not home.exists()
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700


# -- what is computed by itself


def test_ticks_are_round_few_and_within_the_axis():
    for low, high in ((0, 1), (100, 900), (0.32, 0.3301), (1, 200_000), (-3, 7.5), (0.05, 2e9)):
        for most in (2, 5, 9):
            ticks = round_ticks(low, high, most)
            assert 1 <= len(ticks) <= most
            slack = (high - low) * 1e-6
            assert all(low - slack <= tick <= high + slack for tick in ticks)
            labels = tick_labels(ticks)
            assert len(set(labels)) == len(labels)
            for tick, label in zip(ticks, labels, strict=True):
                assert float(label.replace(",", "")) == pytest.approx(tick, abs=1e-9)
    assert round_ticks(3, 5, 9, whole=True) == [3, 4, 5]
    assert tick_labels(round_ticks(7, 7, 5)) == ["7"]
    assert tick_labels([0, 50_000, 100_000]) == ["0", "50,000", "100,000"]


def test_labels_never_meet_and_those_without_room_are_left_out():
    frame = box_around(50, 50, 100, 100)
    points = [(10.0 + place % 5, 50.0 + place // 5) for place in range(40)]
    taken = [box_around(*point, 5, 5) for point in points]
    places = place_labels(points, [(6, 8)] * 40, taken, frame, [3] * 40)
    placed = [box for box in places if box]
    assert 2 <= len(placed) < 40 and places[0]
    for box in placed:
        assert box.x0 >= 0 and box.x1 <= 100 and box.y0 >= 0 and box.y1 <= 100
        assert not box.count_overlaps(taken)
    assert not any(one.fully_overlaps(other) for one, other in itertools.combinations(placed, 2))


def test_long_names_keep_both_ends():
    name = "ssd_mobilenet_v2_fpnlite_640x640_coco17_lr0.01_seed_0"
    short = short_label(name)
    assert len(short) == 32 and short.startswith("ssd_mobilenet") and short.endswith("seed_0")
    assert short_label("short") == "short"


def test_a_curve_of_nothing_has_no_pieces():
    curve = Curve("x", 0, (Point(1, None), Point(2, None)))
    assert list(curve.pieces) == [] and curve.drawable == ()
    assert iso(NOW).startswith("2023-11-14T")
