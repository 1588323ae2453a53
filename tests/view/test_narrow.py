"""Narrow and plain terminals: numbers stay whole, texts fold, and ASCII is kept to."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from rich.console import Console, RenderableType
from watching import Watcher, cli

from watcher.view.changes import Change, changes, measured
from watcher.view.tables import (
    best_table,
    changes_table,
    history_table,
    leaderboard_table,
    metrics_table,
)

pytestmark = pytest.mark.slow

WIDTHS = (30, 40, 60, 80, 100)
REASON = "unmatched_variables: model/head/kernel_of_a_long_name is not in the checkpoint"


def row(number: int, **others: Any) -> dict[str, Any]:
    names = {"rank": number, "checkpoint": f"ckpt-{10 + number}", "global_step": 1000 * number}
    found = {"score": 1 / (number + 2), "sha256": str(number), "path": f"/runs/best/ckpt-{number}"}
    return {**names, **found, "state": "scored", "reason": None, "eval_seconds": 1234.5, **others}


def drawn(table: RenderableType, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_leaderboards_numbers_are_whole_at_every_width(width: int):
    rows = [row(1), row(2), row(3)]
    text = drawn(leaderboard_table(rows, mode="max", title="Board"), width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert all(f"{one['score']:.6f}" in text for one in rows)
    assert ("0.083333" in text) == (width >= 60)  # how far ckpt-12 is behind
    assert "  2000  " in text


@pytest.mark.parametrize("width", WIDTHS)
def test_the_historys_numbers_are_whole_and_its_notes_fold(width: int):
    rows = [row(1), row(2, state="failed", score=None, reason=REASON)]
    text = drawn(history_table(rows, [], whole=True), width)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    assert " 0.3333" in text and ("1234.5" in text) == (width >= 60)
    lines = text.splitlines()
    head = next(number for number, line in enumerate(lines) if "note" in line)
    pieces = "".join(line[lines[head].index("note") :] for line in lines[head + 2 :])
    assert "".join(pieces.split()) == "".join(REASON.split())


@pytest.mark.parametrize("width", WIDTHS)
def test_differences_and_figures_of_categories_are_whole(width: int):
    names = [f"DetectionBoxes_Precision/mAP{part}" for part in ("", "@.50IOU", "@.75IOU")]
    values = {(name, category): 0.25 for name in names for category in ("", "person")}
    old, new = measured(row(1), values), measured(row(2), dict.fromkeys(values, 0.5))
    text = drawn(changes_table(*changes(old, new), old, new), width)
    assert text.count("+0.2500") == 6 and "…" not in text
    text = drawn(metrics_table(new, categories=True), width)
    below = text[text.index("Categories") :]
    left_out = re.search(r"(\d) more columns", below)
    assert below.count("0.5000") + (int(left_out[1]) if left_out else 0) == 3


def test_where_a_metrics_name_would_be_folded_it_is_the_one_that_metric_takes():
    boxes, masks = (f"Detection{kind}_Precision/mAP@.50IOU" for kind in ("Boxes", "Masks"))
    old, new = (
        measured(row(n), {(boxes, ""): n / 4, (masks, ""): n / 8, ("Loss/other", ""): 1.0})
        for n in (1, 2)
    )
    shown = changes_table(*changes(old, new), old, new)
    assert boxes in drawn(shown, 80) and masks in drawn(shown, 80)
    narrow = drawn(shown, 50)
    assert "\nmAP50 " in narrow and narrow.count("mAP50") == 1, "of the masks it is another"
    only = {(masks, ""): 0.5}
    shown = changes_table(*changes(*[measured(row(1), only)] * 2), old, new)
    assert "\nmAP50 " in drawn(shown, 50)


def test_of_several_runs_a_path_is_whole_where_other_columns_can_be_left_out():
    name = "DetectionBoxes_Precision/mAP"
    rows = [
        row(n, run=f"run {n}", metric=name, path=f"/data/models/{n}/best/ckpt-9") for n in (1, 2)
    ]
    text = drawn(best_table(rows), 70)
    assert all(one["path"] in text for one in rows) and name not in text
    assert name in drawn(best_table(rows), 100)


def test_a_change_too_small_for_four_digits_is_shown_with_its_own():
    name = "DetectionBoxes_Precision/mAP"
    old, new = measured(row(1), {(name, ""): 0.5}), measured(row(2), {(name, ""): 0.5000003})
    assert "+3.0e-07  better" in drawn(changes_table(*changes(old, new), old, new), 80)
    assert "+0.0000  same" in drawn(changes_table(*changes(old, old), old, old), 80)


def test_seconds_that_nobody_measured_are_left_empty():
    text = drawn(history_table([row(1, eval_seconds=0.0)], []), 80)
    assert " 0.0" not in text.replace("0.3333", "")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two checkpoints in a folder whose name is not ASCII."""
    folder = tmp_path_factory.mktemp("café")
    watcher = Watcher(folder)
    manager = Manager(watcher.model_dir)
    for step in (100, 200):
        manager.save(step, model_tensors(1000, str(step)))
    assert watcher.run() == 0
    return watcher.model_dir


@pytest.mark.parametrize("variable", ["LC_ALL", "LC_CTYPE", "LANG"])
@pytest.mark.parametrize("command", ["status", "plot"])
def test_in_the_c_locale_what_is_drawn_is_ascii(two: Path, command: str, variable: str):
    variables = {"LC_ALL": "", "LC_CTYPE": "", "LANG": "", variable: "C"}
    shown = cli(command, two, **variables, COLUMNS="80").stdout
    assert "model_dir" in shown and shown.replace("é", "e").isascii()
    assert not cli(
        command, two, **{**variables, "LANG": "C.UTF-8", variable: "C.UTF-8"}
    ).stdout.isascii()


def test_in_the_c_locale_names_of_files_stay_as_they_are(two: Path):
    for variables in ({"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}):
        path = cli("best", two, "--path", **variables).stdout.strip()
        assert path == str(two / "best" / "ckpt-2")


@pytest.fixture
def noted(two: Path, tmp_path: Path) -> Path:
    """The same run elsewhere; of one of its checkpoints there is a lot to say."""
    database = tmp_path / "model_dir" / "watcher" / "watcher.db"
    database.parent.mkdir(parents=True)
    shutil.copy(two / "watcher" / "watcher.db", database)
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        db.execute("UPDATE all_checkpoints SET reason = ? WHERE name = 'ckpt-1'", [REASON * 5])
    return tmp_path / "model_dir"


@pytest.mark.parametrize("command", ["history", "status"])
def test_into_a_pipe_no_cell_is_cut_or_folded_and_no_line_ends_with_blanks(
    noted: Path, command: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = cli(command, noted).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("ckpt-1 ")]
    assert line.endswith(f"  {REASON * 5}")
    (below,) = [line for line in lines if line.startswith("ckpt-2 ") and "scored" in line]
    assert all(line == line.rstrip() for line in lines) and len(below) < 60
    told = cli(command, noted, COLUMNS="60").stdout.splitlines()
    assert max(map(len, told)) <= 60, "unless COLUMNS says how wide it may be"


@pytest.mark.parametrize("columns", ["0", "abc", ""])
def test_a_width_that_is_none_is_the_usual_one(
    two: Path, columns: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("COLUMNS", raising=False)
    for command in ("leaderboard", "best"):
        usual = cli(command, two).stdout
        assert usual and cli(command, two, COLUMNS=columns).stdout == usual
    assert "ckpt-2" in cli("status", two, COLUMNS=columns).stdout


def test_into_a_pipe_a_curve_is_as_wide_as_a_page(two: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    for command, side in (("status", "│ "), ("plot", "┤")):
        lines = cli(command, two, LC_ALL="C.UTF-8").stdout.splitlines()
        assert 70 <= max(len(line) for line in lines if side in line) <= 80


@pytest.mark.parametrize(
    "words", ["leaderboard", "history", "metrics", "compare 100 200", "explain"]
)
def test_every_table_has_one_light_line_under_its_head(two: Path, words: str):
    command, *others = words.split()
    shown = cli(command, two, *others, LC_ALL="C.UTF-8", COLUMNS="80").stdout
    assert set("┏┡━┃│└") & set(shown) == set() and "\n────" in shown


def test_runs_of_one_name_are_told_apart_by_their_folders(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("COLUMNS", raising=False)  # a long path would be folded
    for name in ("a", "b"):
        (tmp_path / name / "watcher").mkdir(parents=True)
        shutil.copy(two / "watcher" / "watcher.db", tmp_path / name / "watcher")
    shown = cli("status", tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in shown[2:4]] == ["a", "b"]
    heads = [line for line in cli("history", tmp_path).stdout.splitlines() if "of " in line]
    assert heads == [f"Checkpoints of model_dir: {tmp_path / name}" for name in ("a", "b")]


def test_what_rounding_alone_makes_of_a_figure_is_no_change():
    assert Change("mAP", None, 0.1 + 0.2, 0.3).as_data()["better"] is None
    assert Change("mAP", None, 0.3, 0.3 + 1e-9).as_data()["better"] is True
