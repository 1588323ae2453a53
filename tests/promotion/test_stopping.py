"""The sentinel says what the rows say, also when they are walked on from where the walk was."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from pathlib import Path

import pytest
from decided import should_stop
from stores import NOW, add

from watcher.config import Settings
from watcher.config.policies import stop_policy
from watcher.promotion.sentinel import read_sentinel, write_sentinel
from watcher.promotion.stopping import Stopping
from watcher.store import Store
from watcher.types import Evaluation

MAP = "DetectionBoxes_Precision/mAP"
SETTINGS = Settings.of(model_dir="none", pipeline_config="none", patience=3, max_not_finite=3)


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "watcher.db", run="run", model_dir=tmp_path, now=NOW) as opened:
        opened.ledger.set_fingerprint("a" * 64, NOW)
        yield opened


def settings(tmp_path: Path) -> Settings:
    return SETTINGS.replaced(model_dir=str(tmp_path))


def stopping_of(given: Settings, store: Store) -> Stopping:
    return Stopping(given.ranking, given.stopping, given.run.sentinel_path, store)


def record(store: Store, counter: int, score: float | None, *, failed: bool = False) -> None:
    add(store, counter)
    lease = store.queue.lease_next(NOW, 60)
    assert lease is not None
    if failed:
        store.queue.record_failure(lease, "not_finite: weights hold NaN", NOW)
    else:
        measured = Evaluation("a" * 64, 8, {MAP: score})
        store.ledger.record_score(lease, measured, score, started=NOW, now=NOW)


@pytest.mark.parametrize("seed", range(4))
def test_walking_on_decides_as_walking_anew_whatever_order_the_scores_come_in(
    store: Store, tmp_path: Path, seed: int
):
    chance = random.Random(seed)
    stopping = stopping_of(settings(tmp_path), store)
    # Mostly in step order, as evaluations come, with some that come late.
    counters = sorted(range(1, 41), key=lambda n: n + (chance.random() < 0.2) * chance.random() * 6)
    decisions = set()
    for counter in counters:
        record(store, counter, chance.choice([0.1, 0.2, 0.3, -1.0]), failed=chance.random() < 0.3)
        stopping.update(NOW, None)
        rows = [*store.ledger.scored(), *store.ledger.not_finite()]
        anew = should_stop(rows, stop_policy(SETTINGS.ranking, SETTINGS.stopping))
        assert stopping.decision == anew
        decisions.add(anew and anew.reason)
        notice = read_sentinel(tmp_path / "EARLY_STOP")
        assert (notice and notice["message"]) == (anew and anew.message)
    assert {None, "patience"} <= decisions


def test_a_checkpoint_measured_again_counts_with_its_new_score(store: Store, tmp_path: Path):
    stopping = stopping_of(settings(tmp_path), store)
    for counter, score in enumerate((0.5, 0.1, 0.1, 0.1), start=1):
        record(store, counter, score)
    stopping.update(NOW, None)
    assert stopping.decision
    checkpoint = store.ledger.find("ckpt-4")
    assert checkpoint
    store.queue.requeue(checkpoint, NOW)
    lease = store.queue.lease_next(NOW, 60)
    assert lease and lease.name == "ckpt-4"
    store.ledger.record_score(lease, Evaluation("a" * 64, 8, {MAP: 0.9}), 0.9, started=NOW, now=NOW)
    stopping.update(NOW, None)
    assert stopping.decision is None
    assert not (tmp_path / "EARLY_STOP").exists()


def test_the_sentinel_names_the_best_on_the_board_and_else_the_best_of_all(
    store: Store, tmp_path: Path
):
    for counter, score in enumerate((0.5, 0.4, 0.3, 0.2), start=1):
        record(store, counter, score)
    rows = store.ledger.scored()
    stopping_of(settings(tmp_path), store).update(NOW, rows[1])
    notice = read_sentinel(tmp_path / "EARLY_STOP")
    assert notice and notice["best"]["checkpoint"] == "ckpt-2"
    stopping_of(settings(tmp_path), store).update(NOW, None)
    notice = read_sentinel(tmp_path / "EARLY_STOP")
    assert notice and notice["best"]["checkpoint"] == "ckpt-1"


def test_an_early_stop_waits_for_an_earlier_checkpoint_that_is_tried_again(
    store: Store, tmp_path: Path
):
    given = settings(tmp_path)
    stopping = stopping_of(given, store)
    record(store, 1, 0.5)
    for counter in range(2, 6):
        add(store, counter)
    again = store.queue.lease_next(NOW, 60)
    assert again is not None
    store.queue.retry_later(again, "out of memory", NOW, 60.0)
    for _ in range(3):
        lease = store.queue.lease_next(NOW, 60)
        assert lease is not None
        store.ledger.record_score(
            lease, Evaluation("a" * 64, 8, {MAP: 0.4}), 0.4, started=NOW, now=NOW
        )
        stopping.update(NOW, None)
    assert stopping.patience_left == {"evaluations": 0}
    assert stopping.decision is None and not given.run.sentinel_path.exists()
    assert stopping.awaits == again.name
    lease = store.queue.lease_next(NOW + 61, 60)
    assert lease is not None and lease.name == again.name
    store.queue.record_failure(lease, "out of memory", NOW + 61)
    stopping.update(NOW + 61, None)
    assert stopping.decision is not None and stopping.decision.reason == "patience"
    assert given.run.sentinel_path.exists() and stopping.awaits is None
    # What stands is not taken back for what somebody wants to be tried once more.
    store.queue.requeue({"id": lease.checkpoint_id, "name": lease.name}, NOW + 62)
    stopping.update(NOW + 62, None)
    assert given.run.sentinel_path.exists()


@pytest.mark.parametrize(
    "content", [b'model_checkpoint_path: "ckpt-3"\n', b"", b'{"run": "cats", "schema": 1}', b"\xff"]
)
def test_a_file_that_is_no_sentinel_is_neither_overwritten_nor_deleted(
    store: Store, tmp_path: Path, content: bytes
):
    file = tmp_path / "EARLY_STOP"
    file.write_bytes(content)
    stopping = stopping_of(settings(tmp_path), store)
    stopping.update(NOW, None)
    assert stopping.decision is None and stopping.problem is None
    for counter, score in enumerate((0.5, 0.1, 0.1, 0.1), start=1):
        record(store, counter, score)
    for _ in range(2):
        stopping.update(NOW, None)
        assert stopping.decision and file.read_bytes() == content
        assert stopping.problem and f"{file} is no early-stop file" in stopping.problem
    told = [one for one in events(tmp_path) if one == "sentinel_in_the_way"]
    assert len(told) == 1
    file.unlink()
    stopping.update(NOW, None)
    written = read_sentinel(file)
    assert stopping.problem is None and written and written["reason"] == "patience"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_stop_is_withdrawn_where_its_file_was_deleted_or_is_to_be_another(
    store: Store, tmp_path: Path, elsewhere: bool
):
    for counter in range(1, 5):
        record(store, counter, 0.5)
    stopping_of(settings(tmp_path), store).update(NOW, None)
    first = tmp_path / "EARLY_STOP"
    assert first.exists() and store.ledger.last_stop()
    later = settings(tmp_path).replaced(patience=50)
    if elsewhere:
        later = later.replaced(sentinel=str(tmp_path / "STOP"))
    else:
        first.unlink()
    stopping_of(later, store).update(NOW, None)
    assert store.ledger.last_stop() is None
    assert not first.exists() and not later.run.sentinel_path.exists()


def test_a_sentinel_of_another_run_stays_where_ours_was_to_be_before(store: Store, tmp_path: Path):
    stopping_of(settings(tmp_path), store).update(NOW, None)
    write_sentinel(tmp_path / "EARLY_STOP", {"schema": 1, "reason": "target", "run": "another"})
    moved = settings(tmp_path).replaced(sentinel=str(tmp_path / "STOP"))
    stopping_of(moved, store).update(NOW, None)
    assert (tmp_path / "EARLY_STOP").exists()


def test_resume_goes_on_after_all_that_was_scored_though_it_is_queued_once_more(
    store: Store, tmp_path: Path
):
    stopping = stopping_of(settings(tmp_path), store)
    for counter in range(1, 5):
        record(store, counter, 0.5)
    for row in store.queue.pinned():
        store.queue.requeue(row, NOW)
    stopping.update(NOW, None)
    assert stopping.decision
    assert store.ledger.resume(NOW) == max(row["global_step"] for row in store.queue.pinned())
    stopping.update(NOW, None)
    assert stopping.decision is None


def test_an_own_stop_replaces_the_sentinel_of_another_run(store: Store, tmp_path: Path):
    file, stopping = tmp_path / "EARLY_STOP", stopping_of(settings(tmp_path), store)
    write_sentinel(file, {"schema": 1, "run": "another", "reason": "patience"})
    stopping.update(NOW, None)
    assert (read_sentinel(file) or {})["run"] == "another"
    for counter, score in enumerate((0.5, 0.1, 0.1, 0.1), start=1):
        record(store, counter, score)
    stopping.update(NOW, None)
    assert (read_sentinel(file) or {})["run"] == store.run_uuid and stopping.problem is None


def events(folder: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(folder / "watcher.db")) as db:
        return [kind for (kind,) in db.execute("SELECT kind FROM events ORDER BY id")]
