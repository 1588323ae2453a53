"""The database: leases, fencing, idempotent recording, and the public views."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import Made, make_run, scores
from stores import MAP, NOW, add

from watcher.decision.metric import parse_metric
from watcher.errors import StoreError
from watcher.store import LeaseLost, Store
from watcher.store.reading import Reader
from watcher.types import Evaluation, Leader


def evaluation(score: float | None, fingerprint: str = "a" * 64) -> Evaluation:
    categories = (("AP", "rectangle", 0.5),)
    return Evaluation(fingerprint, 8, {MAP: score, "Loss/total_loss": 2.0}, categories)


def score(store: Store, value: float | None, now: float = NOW) -> None:
    lease = store.queue.lease_next(now, 60)
    assert lease is not None
    store.ledger.record_score(lease, evaluation(value), value, started=now - 2, now=now)


def rows(path: Path, sql: str) -> list[tuple]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_the_smallest_global_step_is_leased_first(store: Store):
    add(store, 8, step=300)
    add(store, 7, step=100)
    lease = store.queue.lease_next(NOW, 60)
    assert lease is not None
    assert (lease.name, lease.global_step, lease.attempt) == ("ckpt-7", 100, 1)
    assert lease.prefix.parts[-3:] == ("pins", f"{7:064x}", "ckpt-7")


def test_a_leased_checkpoint_is_not_leased_again(store: Store):
    add(store, 1)
    assert store.queue.lease_next(NOW, 60) is not None
    assert store.queue.lease_next(NOW, 60) is None


def test_an_expired_lease_returns_to_the_queue_and_its_late_answer_is_refused(store: Store):
    add(store, 1)
    late = store.queue.lease_next(NOW, 60)
    assert late is not None
    assert store.queue.return_expired(NOW + 59) == {}
    assert store.queue.return_expired(NOW + 60) == {1: "ckpt-1"}
    current = store.queue.lease_next(NOW + 61, 60)
    assert current is not None and current.attempt == 2
    with pytest.raises(LeaseLost):
        store.ledger.record_score(late, evaluation(0.9), 0.9, started=NOW, now=NOW + 62)
    with pytest.raises(LeaseLost):
        store.queue.record_failure(late, "late", NOW + 62)
    store.ledger.record_score(current, evaluation(0.4), 0.4, started=NOW, now=NOW + 63)
    assert [scored.score for scored in store.ledger.scored()] == [0.4]


def test_a_renewed_lease_lives_longer(store: Store):
    add(store, 1)
    lease = store.queue.lease_next(NOW, 60)
    assert lease is not None
    store.queue.renew(lease, NOW + 50, 60)
    assert store.queue.return_expired(NOW + 100) == {}


def test_a_lease_given_back_counts_no_attempt_and_a_retry_waits(store: Store):
    add(store, 1)
    lease = store.queue.lease_next(NOW, 60)
    assert lease is not None
    store.queue.give_back(lease, NOW)
    lease = store.queue.lease_next(NOW, 60)
    assert lease is not None and lease.attempt == 1
    store.queue.retry_later(lease, "the worker died", NOW, 5)
    assert store.queue.lease_next(NOW + 4, 60) is None
    assert store.queue.next_due() == NOW + 5
    assert store.queue.next_due(untried=True) is None, "beside another it is never given out"
    again = store.queue.lease_next(NOW + 5, 60)
    assert again is not None and again.attempt == 2


def test_the_same_content_is_recorded_once(store: Store):
    assert add(store, 1) == "pending"
    score(store, 0.5)
    add(store, 1)
    assert store.queue.known(f"{1:064x}")
    assert store.queue.open_count() == 0
    assert len(store.queue.pinned()) == 1


def test_a_checkpoint_without_model_variables_is_untrained_and_never_leased(store: Store):
    assert add(store, 1, model_variables=0, step=0) == "untrained"
    assert store.queue.lease_next(NOW, 60) is None


def test_recording_the_same_evaluation_again_replaces_it(store: Store, path: Path):
    add(store, 1)
    score(store, 0.5)
    store.queue._to_pending(1, None, 0.0)
    score(store, 0.5)
    assert rows(path, "SELECT count(*) FROM evaluations") == [(1,)]
    assert rows(path, "SELECT count(*) FROM metrics") == [(3,)]


def test_a_failed_write_leaves_nothing_behind(store: Store, path: Path):
    add(store, 1)
    lease = store.queue.lease_next(NOW, 60)
    assert lease is not None
    twice = Evaluation("a" * 64, 8, {MAP: 1.0}, (("AP", "x", 1.0), ("AP", "x", 2.0)))
    with pytest.raises(StoreError):
        store.ledger.record_score(lease, twice, 1.0, started=NOW, now=NOW)
    assert rows(path, "SELECT count(*) FROM evaluations") == [(0,)]
    assert rows(path, "SELECT state FROM checkpoints") == [("leased",)]


def test_scores_of_another_fingerprint_are_not_seen(store: Store):
    add(store, 1)
    score(store, 0.5)
    store.ledger.set_fingerprint("b" * 64, NOW)
    assert store.ledger.scored() == []


def test_another_metric_changes_the_scores_of_all_rows(store: Store):
    add(store, 1)
    score(store, 0.5)
    store.ledger.set_policy(parse_metric("Loss/total_loss"), "min", NOW)
    assert [row.score for row in store.ledger.scored()] == [2.0]
    store.ledger.set_policy(parse_metric("no_such_metric"), "min", NOW)
    assert [row.score for row in store.ledger.scored()] == [None]


def promote(store: Store, count: int) -> None:
    ranked = sorted(store.ledger.scored(), key=lambda row: -(row.score or 0))[:count]
    leaders = [Leader(rank, row, row.name) for rank, row in enumerate(ranked, start=1)]
    paths = {row.checkpoint_id: f"/best/{row.name}" for row in ranked}
    store.promotions.record("best", leaders, paths, MAP, NOW)


def test_the_views_have_the_columns_of_the_public_interface(store: Store, path: Path):
    add(store, 1)
    add(store, 2)
    score(store, 0.25)
    score(store, 0.5, now=NOW + 5)
    promote(store, 2)
    assert rows(
        path,
        "SELECT run, checkpoint, global_step, score, metric, path, sha256, evaluated_at FROM best",
    ) == [("run", "ckpt-2", 200, 0.5, MAP, "/best/ckpt-2", f"{2:064x}", "2023-11-14T22:13:25.000Z")]
    assert rows(
        path,
        "SELECT rank, run, checkpoint, global_step, score, metric, path, sha256, evaluated_at"
        " FROM leaderboard",
    )[1][:5] == (2, "run", "ckpt-1", 100, 0.25)
    assert rows(
        path,
        "SELECT run, checkpoint, global_step, state, reason, score, sha256, discovered_at,"
        " evaluated_at, eval_seconds FROM history",
    )[0] == (
        *("run", "ckpt-1", 100, "scored", None, 0.25, f"{1:064x}"),
        *("2023-11-14T22:13:20.000Z", "2023-11-14T22:13:20.000Z", 2.0),
    )
    assert rows(
        path,
        "SELECT run, checkpoint, global_step, metric, category, value FROM metric_values"
        " WHERE checkpoint = 'ckpt-1' ORDER BY metric",
    ) == [
        ("run", "ckpt-1", 100, "AP", "rectangle", 0.5),
        ("run", "ckpt-1", 100, MAP, None, 0.25),
        ("run", "ckpt-1", 100, "Loss/total_loss", None, 2.0),
    ]


def test_a_category_has_the_name_that_metric_takes_and_no_overall_value_mixes_in(
    tmp_path: Path,
):
    named = ["rectangle", "traffic light", "a]b", "a[b]c", "'quoted'", "it's", " led by a space"]
    values = {(name, of): 0.9 for of in named for name in (MAP, "DetectionBoxes_Recall/AR@100")}
    values["Other/figure", "rectangle"] = 0.7
    make_run(tmp_path, [Made(100, {MAP: 0.25}, values), Made(200, {MAP: 0.5}, {})])
    path = tmp_path / "watcher" / "watcher.db"
    found = rows(path, "SELECT metric, category, value, global_step FROM category_values")
    assert len(found) == len(values)
    for metric, category, value, step in found:
        assert (value, step) == (values.get((MAP, category), 0) if value == 0.9 else 0.7, 100)
        if value == 0.9:
            assert parse_metric(metric).keys[0][1] == category, metric
            assert parse_metric(metric).value(values) == 0.9
    names = {metric for metric, *_ in found}
    assert {"AP[rectangle]", "AR100[traffic light]", "AP['a]b']", "Other/figure[rectangle]"} < names
    largest = (
        "SELECT metric, max(value), checkpoint, generation FROM overall_values GROUP BY metric"
    )
    assert rows(path, largest) == [(MAP, 0.5, "ckpt-2", 1)]


def test_the_history_tells_the_rank_on_the_main_board_at_its_end(tmp_path: Path):
    make_run(tmp_path, scores(0.1, 0.5, None, 0.4, 0.3), top_k=2)
    path = tmp_path / "watcher" / "watcher.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "INSERT INTO promotions (run_id, board, checkpoint_id, rank, metric, path, promoted_at)"
            " VALUES (1, 'kept', 5, 1, 'x', 'x', 'x')"
        )
    found = rows(path, "SELECT checkpoint, rank FROM history")
    assert found == [(f"ckpt-{n}", {2: 1, 4: 2}.get(n)) for n in range(1, 6)]
    last = [name for _, name, *_ in rows(path, "PRAGMA table_info(history)")][-5:]
    assert last == ["generation", "rank", "low", "high", "machine"]


def test_the_state_of_a_run_is_a_row_while_it_goes_on_and_after_its_end(tmp_path: Path):
    make_run(tmp_path, scores(0.3, 0.5, 0.4))
    path = tmp_path / "watcher" / "watcher.db"
    asked = (
        "SELECT state, stop_reason, message, mode, patience, patience_left, min_delta, best,"
        " best_step, best_score, scored, waiting FROM run_state"
    )

    def state(**set_to: object) -> tuple[object, ...]:
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            for name, value in set_to.items():
                db.execute(f"UPDATE runs SET {name} = ?", [json.dumps(value)])
        return rows(path, asked)[0]

    rest = ("ckpt-2", 200, 0.5, 3, 0)
    settings = {"patience": 2, "min_delta": "0.01"}
    left = {"patience_left": {"evaluations": 1}}
    assert state() == ("ended", None, None, "max", None, None, None, *rest)
    assert state(settings=settings, status={"pid": 1, "problem": "no room", **left})[:6] == (
        *("running", None, "no room", "max", 2, 1),
    )
    assert state(status={}, stopping={"reason": None, **left})[:6] == (
        *("ended", None, None, "max", 2, 1),
    )
    assert state(status={"ended": "a disk was full"})[:3] == ("failed", None, "a disk was full")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        event = "INSERT INTO events (run_id, at, kind, message) VALUES (1, '2030', ?, ?)"
        db.execute(event, ["stop", "no improvement"])
    assert state(
        status={}, stopping={"reason": "patience", "patience_left": {"evaluations": 0}}
    ) == (*("stopped", "patience", "no improvement", "max", 2, 0, "0.01", *rest),)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(event, ["stop_withdrawn", "go on"])
    assert state()[:3] == ("ended", None, None)
    assert rows(path, "SELECT updated_at FROM run_state") == [("2030",)]


def test_the_best_view_is_empty_while_nothing_is_promoted(store: Store, path: Path):
    add(store, 1)
    score(store, 0.5)
    assert rows(path, "SELECT * FROM best") == []


def test_promotions_keep_their_history_and_repeating_changes_nothing(store: Store, path: Path):
    add(store, 1)
    score(store, 0.25)
    promote(store, 1)
    add(store, 2)
    score(store, 0.5)
    promote(store, 1)
    promote(store, 1)
    assert rows(path, "SELECT checkpoint_id, evicted_at IS NULL FROM promotions") == [
        (1, 0),
        (2, 1),
    ]
    kinds = [kind for (kind,) in rows(path, "SELECT kind FROM events ORDER BY id")]
    assert kinds.count("promoted") == 2 and kinds.count("evicted") == 1


def test_the_database_is_for_its_owner_alone(store: Store, path: Path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_reader_sees_the_live_database_and_cannot_write(store: Store, path: Path):
    reader = Reader(path)
    try:
        assert reader.best() is None
        add(store, 1)
        score(store, 0.5)
        promote(store, 1)
        best = reader.best()
        assert best is not None and best["checkpoint"] == "ckpt-1"
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader._sqlite.execute("DELETE FROM runs")
    finally:
        reader.close()


def test_who_reads_imports_no_library_for_the_database():
    libraries = "{'sqlite_utils', 'numpy', 'tensorflow'}"
    told = f"import sys, watcher.store.reading; print({libraries} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", told], text=True) == "set()\n"


def test_a_file_that_is_no_database_is_refused_with_a_hint(tmp_path: Path):
    path = tmp_path / "watcher.db"
    path.write_text("this is not a database, " * 100)
    with pytest.raises(StoreError, match="not a database") as caught:
        Store(path, run="run", model_dir=tmp_path, now=NOW)
    assert caught.value.hint
    assert path.read_text().startswith("this is not a database")


def test_the_run_keeps_its_identity_when_its_folder_is_renamed(path: Path, tmp_path: Path):
    with Store(path, run="old", model_dir=tmp_path, now=NOW) as first:
        identity = first.run_uuid
    with Store(path, run="new", model_dir=tmp_path / "new", now=NOW) as second:
        assert second.run_uuid == identity
        assert rows(path, "SELECT name FROM runs") == [("old",)], "until these settings decide"
        second.ledger.set_settings({}, {}, "new")
    assert rows(path, "SELECT name FROM runs") == [("new",)]


def test_a_view_that_a_user_made_of_ours_stands_in_the_way_of_no_migration(tmp_path: Path):
    path = tmp_path / "watcher.db"
    old = Path(__file__).with_name("database_0_1_0.sql").read_text()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(old)
        db.execute('CREATE VIEW "my scores" AS SELECT checkpoint, score FROM history')
        before = db.execute('SELECT * FROM "my scores"').fetchall()
    with Store(path, run="run", model_dir=tmp_path, now=NOW):
        pass
    assert rows(path, 'SELECT * FROM "my scores"') == before != []
