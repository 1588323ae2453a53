"""What is promoted and not there any more is told by every look, and brought back by `run`."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from folder_source import source_of
from stores import MAP, NOW, add
from watching import Watcher, cli, wait_until

from watcher.checkpoints.bundle import verify
from watcher.checkpoints.naming import missing
from watcher.control.channel import Request
from watcher.control.commands import Commands
from watcher.files.slices import Work
from watcher.store import Store
from watcher.types import Evaluation

SCORES = json.dumps({"ckpt-1": 0.5, "ckpt-2": 0.6, "ckpt-3": 0.4})


@pytest.fixture
def ended(watcher: Watcher) -> Watcher:
    manager = Manager(watcher.model_dir, max_to_keep=1)
    for number in range(1, 4):
        manager.save(100 * number, model_tensors(1000, str(number)))
        assert watcher.run("--top-k", 2, STUB_SCORES=SCORES) == 0
    return watcher


def test_without_its_files_the_best_has_no_path_and_the_remedy_is_said(ended: Watcher):
    whole = cli("best", ended.model_dir, "--path")
    assert (whole.stdout, whole.returncode) == (f"{ended.best_dir}/ckpt-2\n", 0)
    shutil.rmtree(ended.best_dir)
    path = cli("best", ended.model_dir, "--path")
    assert (path.stdout, path.returncode) == ("", 1)
    assert path.stderr.startswith("error: the files of best/ckpt-2 are missing\nhint: start `")
    shown = cli("best", ended.model_dir, COLUMNS="200")
    assert shown.returncode == 1 and f"{ended.best_dir}/ckpt-2 is missing" in shown.stdout
    row = cli("best", ended.model_dir, "--json")
    assert row.returncode == 1 and json.loads(row.stdout)["files"] is False
    board = cli("leaderboard", ended.model_dir)
    assert board.stdout.count("missing") == 2
    assert "warning: the files of best/ckpt-2, best/ckpt-1 are missing; start `" in board.stderr
    status = json.loads(cli("status", ended.model_dir, "--json").stdout)
    assert [row["files"] for row in status["leaderboard"]] == [False, False]
    (warning,) = status["warnings"]
    assert "are missing; start `checkpoint-watcher run` again" in warning


def test_what_a_start_brings_back_is_logged_and_recorded(ended: Watcher):
    shutil.rmtree(ended.best_dir)
    assert ended.run() == 0
    told = "ckpt-1, ckpt-2, best.json, checkpoint"
    assert f"best/ was not whole, brought back files='{told}'" in " ".join(
        ended.log.read_text().split()
    )
    (event,) = ended.query("SELECT message FROM events WHERE kind = 'repaired'")
    assert event["message"] == f"best/ was not whole, brought back: {told}"
    assert cli("best", ended.model_dir, "--path").returncode == 0
    assert ended.run() == 0
    assert len(ended.query("SELECT 1 FROM events WHERE kind = 'repaired'")) == 1, "once"


def test_one_shard_that_is_missing_is_seen_and_the_watcher_that_runs_brings_it_back(
    ended: Watcher,
):
    (shard,) = ended.best_dir.glob("ckpt-2.data-*")
    shard.unlink()
    assert cli("best", ended.model_dir, "--path").returncode == 1
    (ended.best_dir / "ckpt-1.index").write_bytes(b"of another")
    ended.start("--rescan-seconds", 0.2)
    wait_until(lambda: ended.query("SELECT 1 FROM events WHERE kind = 'repaired'"), "it is mended")
    assert cli("best", ended.model_dir, "--path").returncode == 0
    (event,) = ended.query("SELECT message FROM events WHERE kind = 'repaired'")
    assert event["message"].endswith("brought back: ckpt-1, ckpt-2"), "the damaged one too"
    assert ended.stop() == 0


def test_best_shows_the_one_and_leaderboard_all(ended: Watcher):
    best = cli("best", ended.model_dir, COLUMNS="200").stdout
    assert f"\n{ended.best_dir}/ckpt-2\n" in best and "ckpt-1" not in best
    assert "and 1 more in best/, see `leaderboard`" in best
    assert "ckpt-1" in cli("leaderboard", ended.model_dir).stdout


def test_a_checkpoint_is_missing_without_its_index_or_a_shard(tmp_path: Path):
    whole, half, bare = (tmp_path / name for name in ("ckpt-1", "ckpt-2", "ckpt-3"))
    for name in ("ckpt-1.index", "ckpt-2.index", "ckpt-3.data-00000-of-00001"):
        (tmp_path / name).touch()
    for shard in ("ckpt-1.data-00000-of-00002", "ckpt-1.data-00001-of-00002"):
        (tmp_path / shard).touch()
    (tmp_path / "ckpt-2.data-00000-of-00002").touch()
    nowhere = tmp_path / "gone" / "ckpt-1"
    assert missing([whole, half, bare, nowhere]) == {half, bare, nowhere}


def test_a_lost_pin_is_made_again_from_best_and_kept_which_stay_whole(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=1)
    scores = json.dumps({"ckpt-1": 0.9, "ckpt-2": 0.3, "ckpt-3": 0.2})
    for number in range(1, 4):
        manager.save(100 * number, model_tensors(1000, str(number)))
        assert watcher.run("--top-k", 1, STUB_SCORES=scores) == 0
        if number == 2:
            assert cli("keep", watcher.model_dir, "ckpt-2").returncode == 0
    kept = watcher.model_dir / "kept"
    shutil.rmtree(watcher.database.parent / "pins")
    assert watcher.run(STUB_SCORES=scores) == 0
    assert cli("best", watcher.model_dir, "--path").stdout == f"{watcher.best_dir}/ckpt-1\n"
    verify(watcher.best_dir / "ckpt-1")
    verify(kept / "ckpt-2")
    pinned = watcher.query("SELECT name FROM all_checkpoints WHERE pin_path IS NOT NULL")
    assert pinned == [{"name": "ckpt-1"}, {"name": "ckpt-2"}]


def test_what_waits_and_lost_pin_and_copy_is_pinned_again_and_scored(
    watcher: Watcher, tmp_path: Path
):
    go = tmp_path / "go"
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, 4):
        manager.save(100 * number, model_tensors(1000, str(number)))
    watcher.start("--keep-last", 2, STUB_WAIT="ckpt-1", STUB_WAIT_FOR=go)
    kept = watcher.model_dir / "kept"
    wait_until(lambda: (kept / "ckpt-3.index").exists(), "it is kept")
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "another one is evaluated")
    for folder in (watcher.database.parent / "pins").iterdir():
        if (folder / "ckpt-3.index").exists():
            shutil.rmtree(folder)
    (kept / "ckpt-3.index").unlink()
    wait_until(lambda: "promoted checkpoint lost" in watcher.log.read_text(), "it is noticed")
    go.touch()
    wait_until(lambda: set(watcher.states().values()) == {"scored"}, "all are scored")
    verify(kept / "ckpt-3")
    assert watcher.stop() == 0


def test_a_row_that_waits_without_a_pin_fails_and_ends_nothing(ended: Watcher):
    with contextlib.closing(sqlite3.connect(ended.database)) as other, other:
        other.execute(
            "UPDATE all_checkpoints SET state = 'pending', pin_path = NULL WHERE name = 'ckpt-1'"
        )
        other.execute("DELETE FROM evaluations WHERE checkpoint_id = 1")
        other.execute("DELETE FROM promotions WHERE checkpoint_id = 1")
    assert ended.run("--exit-when-idle", 0) == 0
    (row,) = ended.query("SELECT state, reason FROM checkpoints WHERE name = 'ckpt-1'")
    assert row["state"] == "failed" and "its pin was deleted" in row["reason"]


def test_a_pin_that_is_released_while_an_order_goes_on_is_looked_for_anew(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for counter in (1, 2):
        add(store, counter)
        lease = store.queue.lease_next(NOW, 60)
        assert lease is not None
        measured = Evaluation("a" * 64, 8, {MAP: 0.5})
        store.ledger.record_score(lease, measured, 0.5, started=NOW, now=NOW)
    orders = Commands(store, source_of(tmp_path), tmp_path / "pins")
    looks = orders._has_files

    def reading(checkpoint: dict[str, Any]) -> Work[bool]:
        found = yield from looks(checkpoint)
        # A turn of the loop, in which the first place goes to another one.
        store.queue.forget_pin(2)
        return found

    monkeypatch.setattr(orders, "_has_files", reading)
    answer = orders.carry_out(Request(verb="requeue", checkpoints=("ckpt-1", "ckpt-2")), NOW)
    assert answer.done == ("ckpt-1 (step 100) waits to be evaluated anew",)
    assert answer.refused == ("ckpt-2 (step 200): its files are gone",)
    assert store.queue.waiting_ids() == {1}
