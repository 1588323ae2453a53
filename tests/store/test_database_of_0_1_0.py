"""A database of version 0.1.0, whose paths are absolute, becomes one whose paths move with it.

`database_0_1_0.sql` is what that version left of a run in `/runs/model_dir` that was moved to
`/runs/moved` and started again: its main board lies outside, `kept` and another board inside.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from watching import cli

from watcher.config import make_settings
from watcher.store import Store
from watcher.store.reading import Reader

DUMP = Path(__file__).with_name("database_0_1_0.sql")
VIEWS = (
    *("best", "leaderboard", "boards", "history", "run_state"),
    *("metric_values", "overall_values", "category_values"),
)
COUNTS = {"checkpoints": 5, "evaluations": 5, "promotions": 15, "placements": 5, "events": 34}


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """MODEL_DIR of the run, as version 0.1.0 left it."""
    model_dir = tmp_path / "moved"
    (model_dir / "watcher").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(database(model_dir))) as db:
        db.executescript(DUMP.read_text().replace("/runs/", f"{tmp_path}/"))
        db.execute("PRAGMA journal_mode = WAL")
    return model_dir


def database(model_dir: Path) -> Path:
    return model_dir / "watcher" / "watcher.db"


def ask(model_dir: Path, sql: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(database(model_dir))) as db:
        return db.execute(sql).fetchall()


def dump(model_dir: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(database(model_dir))) as db:
        return list(db.iterdump())


def start(model_dir: Path) -> None:
    Store(database(model_dir), run="moved", model_dir=model_dir, now=0.0).close()


def read(model_dir: Path) -> tuple[dict[str, Any], list[str]]:
    """The run's row, and the path of each place on any board: the main one's, then the others'."""
    with contextlib.closing(Reader(database(model_dir))) as reader:
        rows = [*reader.leaderboard(), *reader.other_boards()]
        return reader.run(), [row["path"] for row in rows]


def places(model_dir: Path, outside: Path) -> list[str]:
    """Where what was promoted lies, by board as `read` has them."""
    main = [f"{outside}/ckpt-5", f"{outside}/ckpt-4"]
    return main + [f"{model_dir}/{at}" for at in ("mine/ckpt-5", "mine/ckpt-2", "best-loss/ckpt-5")]


def test_what_lies_inside_is_recorded_relative_and_the_views_give_whole_paths(moved: Path):
    outside, old = moved.parent / "elsewhere", moved.parent / "model_dir"
    views = {view: ask(moved, f"SELECT * FROM {view}") for view in VIEWS}
    given = ask(moved, "SELECT given FROM runs")
    start(moved)
    for view, rows in views.items():
        width = len(rows[0])  # columns are only ever added
        assert [row[:width] for row in ask(moved, f"SELECT * FROM {view}")] == rows, view
    assert {name: ask(moved, f"SELECT count(*) FROM {name}")[0][0] for name in COUNTS} == COUNTS
    recorded = dict(ask(moved, "SELECT id, path FROM promotions"))
    assert {recorded[id_] for id_ in (13, 14, 15)} == {
        *("best-loss/ckpt-5", "mine/ckpt-5", "mine/ckpt-2"),
    }
    assert recorded[12] == f"{outside}/ckpt-5"
    assert recorded[7] == "best-loss/ckpt-3", "what left a board moves along too"
    assert recorded[1] == f"{old}/mine/ckpt-3", "of another folder than the one it lies in now"
    settings = json.loads(ask(moved, "SELECT settings FROM runs")[0][0])
    assert (settings["model_dir"], settings["kept_dir"]) == (".", "mine")
    assert settings["pipeline_config"] == "pipeline.config"
    assert settings["best_dir"] == settings["board"][0]["folder"] == str(outside)
    assert (settings["state_dir"], settings["board"][1]["folder"]) == (None, None)
    assert ask(moved, "SELECT given FROM runs") == given


def test_a_second_start_changes_nothing(moved: Path):
    start(moved)
    once = dump(moved)
    start(moved)
    assert dump(moved) == once


@pytest.mark.parametrize("migrated", [False, True])
def test_commands_give_the_paths_of_today_before_the_next_start_and_sql_those_after(
    moved: Path, migrated: bool
):
    outside = moved.parent / "elsewhere"
    if migrated:
        start(moved)
    assert read(moved)[1] == places(moved, outside)
    now = moved.rename(moved.parent / "now")
    before = dump(now)
    run, paths = read(now)
    assert paths == places(now, outside) and run["model_dir"] == str(now)
    assert run["settings"]["pipeline_config"] == f"{now}/pipeline.config"
    assert run["settings"]["best_dir"] == str(outside)
    settings = make_settings(run["settings"], {})
    assert (settings.run.model_path, settings.run.kept_path) == (now, now / "mine")
    said = cli("leaderboard", now, "--json")
    assert [row["path"] for row in json.loads(said.stdout)] == paths[:2]
    assert dump(now) == before, "who reads writes nothing"
    start(now)
    boards = ask(now, "SELECT path FROM boards")
    assert sorted(path for (path,) in boards) == sorted(places(now, outside))
    assert ask(now, "SELECT path FROM best") == [(f"{outside}/ckpt-5",)]
    assert read(now)[1] == places(now, outside)


def test_a_crash_in_the_middle_leaves_the_database_as_it_was(moved: Path):
    before = dump(moved)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, database(moved)], check=False, capture_output=True
    )
    assert killed.returncode == -9, killed.stderr
    assert dump(moved) == before
    start(moved)
    assert read(moved)[1] == places(moved, moved.parent / "elsewhere")


# The tables of before, and no views: killed where one half of the promotions is changed.
_KILLED = """
import os, sqlite3, sys
from watcher.store.migrations import migrate
db = sqlite3.connect(sys.argv[1])
db.create_function("kill", 0, lambda: os.kill(os.getpid(), 9))
db.execute("CREATE TEMP TRIGGER half AFTER UPDATE ON main.promotions WHEN new.id = 8"
           " BEGIN SELECT kill(); END")
migrate(db)
"""
