"""The commands that show runs, on real databases: live, several at once, and after the run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from rich.console import Console
from watching import CLI, Watcher, cli, wait_until

from watcher.view.changes import Change, Measured
from watcher.view.tables import changes_table, difference, leaderboard_table

STATUS_FIELDS = {
    *("name", "uuid", "model_dir", "metric", "mode", "status", "running", "states"),
    *(
        "evaluation",
        "evaluations",
        "waiting",
        "averages_waiting",
        "queue",
        "queue_seconds_left",
        "best",
        "leaderboard",
        "boards",
        "hosts",
        "last",
    ),
    *("patience_left", "stop", "stop_awaits", "warnings", "generation"),
}


def save(watcher: Watcher, *steps: int) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for step in steps:
        manager.save(step, model_tensors(1000, str(step)))


@pytest.fixture
def done(watcher: Watcher) -> Watcher:
    """A run of three that was stopped early."""
    save(watcher, 100, 200, 300)
    scores = '{"ckpt-1": 0.25, "ckpt-2": 0.5, "ckpt-3": 0.125}'
    watcher.run("--patience", 1, "--top-k", 2, STUB_SCORES=scores)
    return watcher


def told(*arguments: object):
    ended = cli(*arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


class Screen:
    """A process on a terminal of its own, 100 by 50; `text` is all it has drawn so far."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        size = {"COLUMNS": "100", "LINES": "50", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, **size, **environment},
        )
        os.close(theirs)
        self.text = ""

    def shows(self, *words: str) -> bool:
        with contextlib.suppress(OSError):
            while select.select([self._ours], [], [], 0)[0]:
                self.text += os.read(self._ours, 65536).decode(errors="replace")
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)
        return all(word in plain for word in words)

    def ended(self) -> int:
        # It can only end while somebody takes what it draws.
        wait_until(lambda: self.shows() and self.process.poll() is not None, "it ends")
        return self.process.wait()

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.ended()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


@pytest.fixture
def screen():
    screens: list[Screen] = []

    def start(command: list[str], **environment: str) -> Screen:
        screens.append(Screen(command, **environment))
        return screens[-1]

    yield start
    for one in screens:
        one.close()


def test_status_shows_the_running_evaluation_the_queue_and_what_is_left(watcher: Watcher, screen):
    save(watcher, 100, 200, 300, 400)
    watcher.start("--patience", 7, STUB_SECONDS=0.1)
    wait_until(lambda: "scored" in watcher.states().values(), "the first is scored")
    watcher.stop()
    watcher.start("--patience", 7, STUB_SECONDS=12)
    shown = wait_until(
        lambda: (
            (now := told("status", watcher.model_dir))["evaluation"]
            and now["evaluation"].get("images_per_second")
            and now
        ),
        "a second image is done",
    )
    assert shown.keys() == STATUS_FIELDS
    evaluation = shown["evaluation"]
    assert evaluation["total"] == 8 and 0 < evaluation["images_per_second"] < 1
    assert evaluation["seconds_left"] == pytest.approx(
        (8 - evaluation["done"]) / evaluation["images_per_second"], rel=0.1
    )
    assert shown["running"] and shown["patience_left"] == {"evaluations": 7}
    assert [row["checkpoint"] for row in shown["queue"]] == sorted(
        name for name, state in watcher.states().items() if state == "pending"
    )
    other = screen([*CLI, "status", str(watcher.model_dir), "--watch"])
    words = (
        "evaluating ckpt-",
        "/8 images",
        "images/s",
        " left",
        "waiting: ",
        "7 evaluations left",
    )
    wait_until(lambda: other.shows(*words, "Leaderboard", "rank"), "the live view in another shell")
    assert other.interrupt() == 0


def test_run_on_a_terminal_is_a_live_view(watcher: Watcher, screen):
    save(watcher, 100, 200, 300)
    environment = {"STUB_SECONDS": "1.5", "CHECKPOINT_WATCHER_EVICT_SECONDS": "0.2"}
    live = screen(watcher.command("--patience", 7, "--exit-when-idle", 0.2), **environment)
    watcher.adopt(live.process)
    words = ("images/s", "evaluations left", "Leaderboard", "best: 0.0030 at step 300")
    wait_until(lambda: live.shows(*words), "the live view")
    assert live.ended() == 0
    assert (watcher.database.parent / "watcher.log").read_text().count("scored") >= 3


def test_after_the_run_everything_is_still_told(done: Watcher):
    shown = told("status", done.model_dir)
    assert shown.keys() == STATUS_FIELDS
    assert not shown["running"] and shown["evaluation"] is None and shown["queue"] == []
    assert shown["patience_left"] == {"evaluations": 0}
    assert "no improvement" in shown["stop"] and "ckpt-2" in shown["stop"]
    assert shown["last"] == {"global_step": 300, "score": 0.125}
    assert [row["checkpoint"] for row in shown["leaderboard"]] == ["ckpt-2", "ckpt-1"]
    text = cli("status", done.model_dir, COLUMNS="80").stdout
    assert "no watcher is running" in text and "early stop" in text
    assert "best: 0.5000 at step 200" in text


def test_what_the_curve_is_drawn_from_are_the_rows_that_can_rank(watcher: Watcher):
    from watcher.store.reading import open_reader

    save(watcher, 100, 200, 300, 400)
    watcher.run(STUB_SCORES='{"ckpt-1": 0.25, "ckpt-2": -1, "ckpt-3": null, "ckpt-4": 0.5}')
    with open_reader(watcher.database.parent) as reader:
        assert reader.curve() == [(100, 0.25), (400, 0.5)]


def test_a_killed_watcher_is_not_shown_as_running(watcher: Watcher):
    save(watcher, 100)
    daemon = watcher.start(STUB_SECONDS=600)
    wait_until(lambda: watcher.status().get("worker") == "evaluating", "it evaluates")
    daemon.kill()
    daemon.wait()
    shown = told("status", watcher.model_dir)
    assert shown["running"] is False
    assert any("not there any more" in warning for warning in shown["warnings"])


def test_failed_checkpoints_are_told_with_the_reason(watcher: Watcher):
    save(watcher, 100, 200)
    watcher.run(STUB_REJECT="ckpt-2")
    warning, hint = told("status", watcher.model_dir)["warnings"]
    assert warning.startswith("ckpt-2 failed: unmatched_variables: model/head/kernel")
    assert "`requeue --failed`" in hint
    narrow = cli("status", watcher.model_dir, COLUMNS="80").stdout
    table = narrow[narrow.index("checkpoint  step  state") :].splitlines()
    assert all(len(line) <= 80 for line in table) and "  200  failed" in "\n".join(table)
    assert "…" not in narrow


def test_several_runs_are_shown_together_and_below_a_parent_folder(done: Watcher, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    second = Watcher(other)
    save(second, 100)
    second.run("--run-name", "second")
    third = tmp_path / "third"
    (third / "watcher").mkdir(parents=True)
    (third / "watcher" / "watcher.db").write_text("no database " * 100)
    below = told("status", tmp_path)
    assert [run.get("name") for run in below] == ["model_dir", "second", None]
    assert "not a database" in below[2]["error"]
    named = told("status", done.model_dir, second.model_dir)
    assert named == below[:2] and set(named[0]) == STATUS_FIELDS
    table = cli("status", tmp_path, COLUMNS="80").stdout
    assert "early stop" in table and "second" in table and "cannot be read" in table
    boards = told("leaderboard", done.model_dir, second.model_dir)
    assert [row["model_dir"] for row in boards] == [str(done.model_dir)] * 2 + [
        str(second.model_dir)
    ]
    paths = cli("best", tmp_path, "--path")
    assert paths.stdout.splitlines() == [
        str(done.best_dir / "ckpt-2"),
        str(second.best_dir / "ckpt-1"),
    ]
    assert "warning: " in paths.stderr
    assert len(told("history", tmp_path)) == 4


def test_a_difference_is_that_of_the_figures_that_are_shown():
    assert difference(0.12356, 0.12344, 4, "+") == "+0.0002", "0.1236 and 0.1234 are shown"
    assert difference(0.12344, 0.12356, 4) == "0.0002"
    assert difference(0.50000001, 0.5, 4, "+") == "+1.0e-08", "they are shown alike, and differ"
    assert difference(0.5, 0.5, 6, "+") == "+0.000000"


def test_leaderboard_and_compare_subtract_what_they_show():
    rows = [
        {"rank": n, "checkpoint": f"ckpt-{n}", "global_step": n, "score": score, "path": "b/c"}
        for n, score in ((1, 0.4123456), (2, 0.4123443))
    ]
    change = Change("DetectionBoxes_Precision/mAP", None, 0.12344, 0.12356)
    drawn = io.StringIO()
    console = Console(width=100, file=drawn)
    console.print(leaderboard_table(rows, mode="max"))
    before, after = (Measured(row, {}, {}) for row in rows)
    console.print(changes_table([change], [], before, after))
    assert re.search(r"0\.412344 +0\.000002", drawn.getvalue())
    assert re.search(r"0\.1234 +0\.1236 +\+0\.0002", drawn.getvalue())


def test_leaderboard_is_the_view_and_says_how_far_each_is_behind(done: Watcher):
    view = done.query("SELECT * FROM leaderboard")
    assert told("leaderboard", done.model_dir) == [{**row, "files": True} for row in view]
    assert "0.250000" in cli("leaderboard", done.model_dir).stdout.splitlines()[-1]


def test_metrics_are_those_of_the_best_or_of_the_one_that_is_named(done: Watcher):
    best = told("metrics", done.model_dir)
    assert best["checkpoint"] == "ckpt-2"
    assert best["metrics"] == {"DetectionBoxes_Precision/mAP": 0.5, "Loss/total_loss": 0.5}
    assert best["categories"] == {"AP": {"rectangle": 0.5}}
    for name in ("ckpt-3", "last", "300", told("metrics", done.model_dir, "ckpt-3")["sha256"][:8]):
        assert told("metrics", done.model_dir, name)["checkpoint"] == "ckpt-3"
    assert "rectangle" not in cli("metrics", done.model_dir).stdout
    assert "rectangle" in cli("metrics", done.model_dir, "--categories").stdout


def test_compare_names_gains_and_losses_with_the_largest_first(done: Watcher):
    with contextlib.closing(sqlite3.connect(done.database)) as db:
        for category, old, new in [("cat", 0.5, 0.6), ("dog", 0.5, 0.1), ("none", -1, -1)]:
            db.execute("INSERT INTO metrics VALUES (1, 'AP', ?, ?)", [category, old])
            db.execute("INSERT INTO metrics VALUES (2, 'AP', ?, ?)", [category, new])
        db.commit()
    compared = told("compare", done.model_dir, "ckpt-1", "best")
    assert (compared["from"]["checkpoint"], compared["to"]["checkpoint"]) == ("ckpt-1", "ckpt-2")
    assert [(row["category"], row["better"]) for row in compared["categories"]] == [
        *(("dog", False), ("rectangle", True), ("cat", True), ("none", None))
    ]
    # A loss that went down from 0.75 to 0.5 is a gain.
    assert [row["better"] for row in compared["metrics"]] == [True, True]
    text = cli("compare", done.model_dir, "ckpt-1", "ckpt-2").stdout
    assert re.search(r"AP\[dog\]\s+0\.5000\s+0\.1000\s+-0\.4000\s+worse", text)
    assert re.search(r"Loss/total_loss\s+0\.7500\s+0\.5000\s+-0\.2500\s+better", text)


def test_a_checkpoint_that_was_not_evaluated_is_told_with_its_outcome(watcher: Watcher):
    save(watcher, 100, 200)
    watcher.run(STUB_REJECT="ckpt-2")
    failed = cli("compare", watcher.model_dir, "best", "ckpt-2")
    assert failed.returncode == 1
    assert "error: ckpt-2 has no evaluation that counts, it is failed: unmatched" in failed.stderr
    unknown = cli("metrics", watcher.model_dir, "ckpt-9")
    assert "error: no checkpoint ckpt-9 was ever seen" in unknown.stderr
    assert "hint: " in unknown.stderr


def test_the_note_on_a_checkpoint_is_shown_by_status_and_history(done: Watcher):
    with contextlib.closing(sqlite3.connect(done.database)) as db, db:
        db.execute("UPDATE all_checkpoints SET note = 'vetoed' WHERE name = 'ckpt-1'")
    for command in ("status", "history"):
        shown = cli(command, done.model_dir).stdout
        (row,) = [line for line in shown.splitlines() if "vetoed" in line]
        assert "ckpt-1" in row, command


def test_watching_into_a_pipe_needs_json_and_is_an_object_a_line(done: Watcher):
    refused = cli("status", done.model_dir, "--watch")
    assert refused.returncode == 2 and "--json" in refused.stderr
    command = [*CLI, "status", str(done.model_dir), "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert set(json.loads(process.stdout.readline())) == STATUS_FIELDS
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_reading_while_it_is_written_changes_nothing(watcher: Watcher):
    save(watcher, 100, 200)
    watcher.start(STUB_SECONDS=600)
    wait_until(lambda: watcher.status().get("worker") == "evaluating", "it evaluates")
    before = sorted(path.name for path in watcher.database.parent.iterdir())
    for command in ("status", "history", "leaderboard"):
        assert cli(command, watcher.model_dir).returncode == 0
    assert sorted(path.name for path in watcher.database.parent.iterdir()) == before
    assert watcher.status()["worker"] == "evaluating"
