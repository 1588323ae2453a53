"""Replicates on their way: from a worker into the database, to rank, ties and notices."""

from __future__ import annotations

import base64
import json
import re
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from drawn import png
from fake_trainer import Manager, model_tensors
from tensorboards import ON
from watching import Watcher, cli, wait_until

# Four checkpoints: 2 and 3 cannot be told from each other, 1 and 4 surely are worse. A noise that
# all share hides that from their own intervals.
SHARED = [0.05 * (n % 9 - 4) for n in range(200)]
SCORES = {"ckpt-1": 0.30, "ckpt-2": 0.499, "ckpt-3": 0.5, "ckpt-4": 0.45}
DRAWN = {
    name: [score + noise + 0.004 * ((7 * n + place) % 5 - 2) for n, noise in enumerate(SHARED)]
    for place, (name, score) in enumerate(SCORES.items())
}
STUB = {"STUB_SCORES": json.dumps(SCORES), "STUB_REPLICATES": json.dumps(DRAWN)}


def save(watcher: Watcher, count: int = 4) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, count + 1):
        manager.save(100 * number, model_tensors(1000, f"{number}"))


def ask(watcher: Watcher, sql: str) -> list[Any]:
    with sqlite3.connect(watcher.database) as db:
        return db.execute(sql).fetchall()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Watcher:
    """A finished run."""
    watcher = Watcher(tmp_path_factory.mktemp("resampling"))
    save(watcher)
    watcher.run(**STUB)
    return watcher


def test_each_score_has_its_interval_and_the_run_does_not_end_before_the_last(done: Watcher):
    rows = ask(done, "SELECT checkpoint, low, high FROM history ORDER BY global_step")
    assert [name for name, *_ in rows] == list(SCORES)
    assert all(low < SCORES[name] < high for name, low, high in rows)


def test_those_that_cannot_be_told_from_the_best_are_tied(done: Watcher):
    rows = ask(done, "SELECT checkpoint, tied, rank_low, rank_high, p_best FROM ties")
    found = {name: tuple(rest) for name, *rest in rows}
    assert {name: row[:3] for name, row in found.items()} == {
        "ckpt-2": (1, 1, 2),
        "ckpt-3": (1, 1, 2),
        "ckpt-4": (0, 3, 3),
        "ckpt-1": (0, 4, 4),
    }
    assert found["ckpt-3"][3] + found["ckpt-2"][3] == pytest.approx(1)


def test_the_views_have_an_interval_of_each_metric_and_category(done: Watcher):
    rows = ask(
        done,
        "SELECT category, low, high, level, n, b, objects FROM intervals"
        " WHERE checkpoint = 'ckpt-4' ORDER BY category",
    )
    drawn = pytest.approx((min(DRAWN["ckpt-4"]), max(DRAWN["ckpt-4"])))
    assert [row[0] for row in rows] == [None, "rectangle"]
    assert all((row[1:3], row[3:]) == (drawn, (0.95, 8, 200, 9)) for row in rows)


def test_commands_say_what_can_be_told(done: Watcher):
    told = json.loads(cli("best", done.model_dir, "--json").stdout)
    assert told["checkpoint"] == "ckpt-3" and told["tied"] is True
    assert told["low"] < 0.5 < told["high"] and (told["rank_low"], told["rank_high"]) == (1, 2)
    shown = cli("best", done.model_dir, COLUMNS="120").stdout
    assert "this eval set cannot tell it from ckpt-2" in shown
    board = cli("leaderboard", done.model_dir, COLUMNS="120").stdout
    assert "1-2, tie" in board and "95 % interval" in board
    few = "! a category has fewer than 20 objects: rectangle (9); scores come out too high there"
    for said in (shown, board, cli("status", done.model_dir, COLUMNS="200").stdout):
        assert few in said
    changes = json.loads(cli("compare", done.model_dir, "ckpt-2", "ckpt-3", "--json").stdout)
    same, sure = changes["metrics"][0], None
    assert same["told"] is False and same["low"] < 0 < same["high"]
    changes = json.loads(cli("compare", done.model_dir, "ckpt-1", "ckpt-3", "--json").stdout)
    sure = next(one for one in changes["metrics"] if one["metric"].endswith("mAP"))
    assert sure["told"] is True and 0 < sure["low"] < sure["change"] < sure["high"]
    shown = cli("compare", done.model_dir, "ckpt-2", "ckpt-3", COLUMNS="120").stdout
    assert "cannot be told" in shown


def test_compare_lists_the_images_that_gained_and_lost_the_most(done: Watcher):
    compared = ("compare", done.model_dir, "ckpt-2", "ckpt-3", "--images")
    images = json.loads(cli(*compared, "--json").stdout)["images"]
    assert {one["name"] for one in images} == {f"image {n}" for n in range(8)}
    # The stub's influences are the same for each checkpoint: all share the change.
    assert [one["gain"] for one in images] == pytest.approx([0.001 / 8] * 8)
    assert "of 8" in cli(*compared, COLUMNS="100").stdout


def test_the_report_shows_the_images_that_changed_most_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the images of which TensorBoard has pictures: here of two of eight."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    drawn = tmp_path / "pictures"
    drawn.mkdir()
    pngs = [png(8, 4, shade) for shade in (10, 200)]
    for place, picture in enumerate(pngs):
        (drawn / f"eval_side_by_side_0_{place}.png").write_bytes(picture)
    watcher = Watcher(tmp_path)
    save(watcher)
    watcher.run(**ON, **STUB, STUB_PICTURES=drawn)
    file = tmp_path / "report.html"
    assert cli("web", watcher.model_dir, "--export", file).returncode == 0
    text = file.read_text()
    assert "from ckpt-3 to ckpt-4: what each of 8 images adds to the change of Det" in text
    shown = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert [base64.b64decode(one) for one in shown] == [pngs[0]] * 2 + [pngs[1]] * 2
    assert re.findall(r"<figcaption>(image \d): ", text) == ["image 0", "image 1"]
    # Without the event files there is the table alone.
    shutil.rmtree(watcher.model_dir / "eval")
    assert cli("web", watcher.model_dir, "--export", file).returncode == 0
    assert "what each of 8 images" in file.read_text() and "<img" not in file.read_text()


def test_without_replicates_all_is_as_ever(tmp_path: Path):
    watcher = Watcher(tmp_path)
    save(watcher)
    watcher.run("--replicates", "0", STUB_SCORES=STUB["STUB_SCORES"])
    assert ask(watcher, "SELECT count(*) FROM replicates") == [(0,)]
    told = json.loads(cli("best", watcher.model_dir, "--json").stdout)
    assert told["checkpoint"] == "ckpt-3" and told["low"] is told["tied"] is None
    assert "interval" not in cli("leaderboard", watcher.model_dir, COLUMNS="120").stdout
    refused = cli("compare", watcher.model_dir, "ckpt-2", "ckpt-3", "--images")
    assert refused.returncode == 1
    assert "nothing is kept of the images of ckpt-2" in refused.stderr


def test_ties_by_noise_give_the_first_place_to_the_older_one_and_say_so(tmp_path: Path):
    watcher = Watcher(tmp_path)
    save(watcher)
    watcher.run("--ties-by", "noise", **STUB)
    assert [name for (name,) in ask(watcher, "SELECT checkpoint FROM leaderboard")] == [
        *("ckpt-2", "ckpt-3", "ckpt-4")
    ]
    explained = json.loads(cli("explain", watcher.model_dir, "--json").stdout)
    assert [one["checkpoint"] for one in explained["leaders"]] == ["ckpt-2", "ckpt-3", "ckpt-4"]
    (note,) = ask(watcher, "SELECT note FROM history WHERE checkpoint = 'ckpt-2'")
    assert note == (
        "first in best/ though ckpt-3 scored 0.001 better: this eval set cannot tell them apart,"
        " so the oldest step decides",
    )


@pytest.mark.slow
def test_another_metric_has_its_own_intervals_and_ties(tmp_path: Path):
    watcher = Watcher(tmp_path)
    save(watcher)
    watcher.run(**STUB)
    watcher.run("--metric", "1 - mAP", "--mode", "min")
    rows = ask(watcher, "SELECT checkpoint, score, low, high FROM history ORDER BY global_step")
    assert all(low < score < high for _, score, low, high in rows)
    assert rows[2][1] == 0.5 and rows[2][2] == pytest.approx(0.5 - 0.2 - 0.008, abs=0.01)
    tied = ask(watcher, "SELECT checkpoint FROM ties WHERE tied ORDER BY checkpoint")
    assert tied == [("ckpt-2",), ("ckpt-3",)]
    watcher.run("--metric", "loss")
    assert ask(watcher, "SELECT count(*) FROM history WHERE low NOT NULL") == [(0,)]
    assert ask(watcher, "SELECT count(*) FROM ties") == [(0,)]


@pytest.mark.slow
def test_the_score_does_not_wait_for_its_replicates(tmp_path: Path):
    watcher = Watcher(tmp_path)
    save(watcher, 1)
    watcher.start(STUB_REPLICATES_SECONDS=600, **STUB)
    wait_until(lambda: (watcher.best_dir / "best.json").exists(), "the score is promoted")
    assert ask(watcher, "SELECT score, low FROM history") == [(0.3, None)]
    watcher.stop()


def test_a_worker_that_dies_over_the_replicates_costs_no_score(tmp_path: Path):
    watcher = Watcher(tmp_path)
    save(watcher, 1)
    odd = json.dumps({"ckpt-1": "no numbers"})
    process = watcher.start(STUB_SCORES=STUB["STUB_SCORES"], STUB_REPLICATES=odd)
    wait_until(lambda: (watcher.best_dir / "best.json").exists(), "the score is promoted")
    time.sleep(0.5)
    assert process.poll() is None or process.returncode == 0
    assert ask(watcher, "SELECT state, attempts FROM checkpoints") == [("scored", 1)]
    watcher.stop()


@pytest.mark.slow
def test_a_notice_of_a_new_best_waits_until_it_is_confirmed(tmp_path: Path):
    watcher = Watcher(tmp_path)
    told = tmp_path / "told"
    hook = ("--notify-command", "sh", "--notify-command", "-c", "--notify-command")
    save(watcher, 2)
    flags = (*hook, f"cat >> {told}", "--notify-confirmed")
    watcher.run(*flags, **STUB)
    save(watcher)
    watcher.run(*flags, **STUB)
    names = [json.loads(line)["checkpoint"] for line in told.read_text().splitlines()]
    # ckpt-3 is the best, but cannot be told from ckpt-2.
    assert names[-1] == "ckpt-2" and "ckpt-3" not in names
