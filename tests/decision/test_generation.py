"""A trainer that starts over in the same MODEL_DIR: which life is what, and what each decides."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from decided import should_stop
from fake_trainer import Manager, model_tensors, write_checkpoint
from folder_source import source_of
from made_runs import FINGERPRINT, MAP
from watching import Watcher, cli, wait_until

from watcher.config import Settings
from watcher.config.policies import stop_policy
from watcher.decision.generation import Life, Save, generation_of, with_save
from watcher.decision.metric import parse_metric
from watcher.decision.retain import Pinned, RetainPolicy, retain
from watcher.decision.stop import patience_left
from watcher.decision.walk import StopPolicy, walk
from watcher.ingest.adopt import adopt_pins
from watcher.ingest.intake import Intake
from watcher.plot.gather import read_run
from watcher.plot.series import make_picture
from watcher.promotion.sentinel import read_sentinel
from watcher.promotion.stopping import Stopping
from watcher.store import Store
from watcher.store.migrations import migrations
from watcher.store.reading import open_reader
from watcher.store.sqlite import Database
from watcher.types import Evaluation, FoundCheckpoint, Pin, ScoredCheckpoint

NOW = 1_700_000_000.0

# (counter, step, time the files were written) of each save in the order it was recorded, and the
# generation that it is of.
Saves = Sequence[tuple[int, int | None, float | None, int]]
UP_TO_10 = [(n, 1000 * n, 10.0 * n, 1) for n in range(1, 11)]
CASES: dict[str, Saves] = {
    "it goes on": [*UP_TO_10, (11, 11_000, 110, 1)],
    "it goes on at the same step, as at its end": [*UP_TO_10, (11, 10_000, 110, 1)],
    "the untrained first save, and then the others": [(1, 0, 10, 1), (2, 1000, 20, 1)],
    "started over from nothing": [*UP_TO_10, (1, 0, 200, 2), (2, 1000, 210, 2)],
    "started over, and its first saves were not seen": [*UP_TO_10, (3, 3000, 200, 2)],
    "started over three times": [
        *[(1, 0, 10, 1), (2, 1000, 20, 1)],
        *[(1, 0, 30, 2), (2, 1000, 40, 2)],
        *[(1, 0, 50, 3), (2, 1000, 60, 3), (3, 2000, 70, 3)],
    ],
    "went on from an older one, whose later names it writes anew": [
        *UP_TO_10,
        *[(6, 6000, 200, 2), (7, 7000, 210, 2), (11, 11_000, 250, 2)],
    ],
    "an old name has another content": [*UP_TO_10, (10, 10_000, 200, 2), (11, 11_000, 210, 2)],
    "the steps fall while the save counter goes on, as in a fine-tune": [
        *UP_TO_10,
        *[(11, 100, 200, 2), (12, 200, 210, 2)],
    ],
    "the save counter falls while the steps go on": [*UP_TO_10, (1, 11_000, 200, 2)],
    "a save that does not tell its step goes by its counter": [
        *UP_TO_10,
        *[(11, None, 110, 1), (1, None, 200, 2)],
    ],
    "saves between were missed or damaged": [*UP_TO_10[:2], (6, 6000, 60, 1)],
    "recorded late, since it could not be read before": [
        *UP_TO_10[:2],
        *[(4, 4000, 40, 1), (3, 3000, 30, 1), (5, 5000, 50, 1)],
    ],
    "an old one was put back by hand": [
        *[(n, 1000 * n, 10 * n, 1) for n in (5, 6, 7)],
        *[(2, 2000, 20, 1), (8, 8000, 80, 1)],
    ],
    "an old one of the first life was put back into the second": [
        *UP_TO_10[4:],
        *[(1, 0, 200, 2), (2, 1000, 210, 2)],
        *[(4, 4000, 40, 1), (3, 2000, 220, 2)],
    ],
    "a look after a pause finds the new life and what was left of the old one": [
        *UP_TO_10[:5],
        *[(1, 0, 200, 2), (2, 1000, 210, 2)],
        *[(9, 9000, 90, 1), (10, 10_000, 100, 1)],
        (3, 2000, 220, 2),
    ],
    "a first look at a folder that was copied, so that its times say nothing": [
        *[(1, 0, 50, 1), (2, 1000, 10, 1), (3, 2000, 70, 1), (4, 3000, 20, 1)],
        (5, 4000, 100, 1),
    ],
    "a file system without times goes by the counters": [
        *[(1, 0, 0, 1), (2, 1000, 0, 1), (1, 0, 0, 2), (2, 1000, 0, 2)],
    ],
    "rows of before times were recorded": [
        *[(1, 0, None, 1), (2, 1000, None, 1), (1, 500, 10, 2), (2, 1500, 20, 2)],
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_a_save_is_of_the_life_that_wrote_it(case: str):
    lives: list[Life] = []
    decided = []
    for counter, step, saved_at, _ in CASES[case]:
        save = Save(counter, step, saved_at)
        decided.append(generation_of(save, lives))
        lives = with_save(lives, save, decided[-1])
    assert decided == [generation for *_, generation in CASES[case]]


# -- stopping


def row(at: int, score: float | None, generation: int = 1, *, step: int = 0) -> ScoredCheckpoint:
    step, id_ = step or 1000 * at, 100 * generation + at
    return ScoredCheckpoint(
        id_, id_, f"ckpt-{at}", step, f"{id_:064x}", score, "", generation=generation
    )


def life(generation: int, *scores: float) -> list[ScoredCheckpoint]:
    return [row(at, score, generation) for at, score in enumerate(scores, start=1)]


FIRST = life(1, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.49, 0.48)


def test_a_second_life_that_rises_is_not_told_to_stop_by_the_first():
    policy = StopPolicy(patience=3)
    assert should_stop(FIRST, policy)
    assert should_stop([*FIRST, *life(2, 0.2, 0.4, 0.6, 0.7)], policy) is None
    assert should_stop([*life(2, 0.2, 0.4, 0.6, 0.7), *FIRST], policy) is None


def test_a_second_life_that_is_flat_stops_by_its_own_steps():
    rows = [*FIRST, *life(2, 0.2, 0.4, 0.41, 0.40, 0.40, 0.40, 0.40, 0.40)]
    decision = should_stop(rows, StopPolicy(patience=3))
    assert decision
    assert (decision.reason, decision.global_step) == ("patience", 8000)
    assert decision.message.endswith("in 5 evaluations since ckpt-3 (step 3000, score 0.41)")
    assert decision.best == rows[len(FIRST) + 2]


def test_a_life_that_has_no_evaluation_yet_is_not_stopped_by_the_one_before():
    assert should_stop(FIRST, StopPolicy(patience=3, generation=2)) is None
    assert patience_left(walk(FIRST, StopPolicy(patience=3, generation=2)), StopPolicy(patience=3))


def test_limits_of_steps_and_evaluations_count_in_the_newest_life():
    second = life(2, 0.2, 0.1, 0.1)
    rows = [*FIRST, *second]
    assert should_stop(rows, StopPolicy(max_steps=8000)) is None
    assert should_stop(FIRST, StopPolicy(max_steps=8000))
    assert should_stop(rows, StopPolicy(patience=2))
    assert should_stop(rows, StopPolicy(patience=2, min_steps=4000)) is None
    assert should_stop(rows, StopPolicy(patience=2, min_evaluations=4)) is None
    assert should_stop(rows, StopPolicy(target=0.5)) is None
    assert should_stop(rows, StopPolicy(divergence=0.15, generation=2))


def test_what_is_kept_whatever_its_score_is_counted_in_each_life():
    pinned = [
        Pinned(100 * generation + at, 100 * at, "scored", generation=generation)
        for generation, saves in ((1, 9), (2, 3))
        for at in range(1, saves + 1)
    ]
    assert set(retain(pinned, RetainPolicy(last=2))) == {202, 203}
    assert set(retain(pinned, RetainPolicy(last=5))) == {108, 109, 201, 202, 203}
    assert set(retain(pinned, RetainPolicy(every_steps=300))) == {103, 106, 109, 203}


# -- recorded


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(state(tmp_path) / "watcher.db", run="run", model_dir=tmp_path, now=NOW) as opened:
        opened.ledger.set_policy(parse_metric(MAP), "max", NOW)
        opened.ledger.set_fingerprint(FINGERPRINT, NOW)
        yield opened


def state(tmp_path: Path) -> Path:
    folder = tmp_path / "watcher"
    folder.mkdir(exist_ok=True)
    return folder


def found(at: int, counter: int) -> tuple[FoundCheckpoint, Pin]:
    """A checkpoint that was written at second `at`, its content unlike any other's."""
    name, sha256 = f"ckpt-{counter}", f"{at:064x}"
    seen = FoundCheckpoint(name, counter, Path("m") / name, ((at, 10, at * 10**9),))
    return seen, Pin(Path("pins") / sha256 / name, "link", sha256, 1000 * counter, 10, 5)


def add(store: Store, at: int, counter: int, *, untrained: bool = False) -> None:
    seen, pin = found(at, counter)
    if untrained:
        pin = Pin(pin.prefix, "link", pin.sha256, 0, 10, 0)
    store.queue.record_pin(seen, pin, NOW + at)


def record(store: Store, at: int, counter: int, score: float) -> None:
    add(store, at, counter)
    lease = store.queue.lease_next(NOW + at, 60)
    assert lease is not None
    assert lease.name == f"ckpt-{counter}"
    measured = Evaluation(FINGERPRINT, 8, {MAP: score})
    store.ledger.record_score(lease, measured, score, started=NOW + at, now=NOW + at)


def gone(counter: int) -> FoundCheckpoint:
    name = f"ckpt-{counter}"
    return FoundCheckpoint(name, counter, Path(name), signature=())


def history(tmp_path: Path) -> list[tuple[str, str, int]]:
    with open_reader(state(tmp_path)) as reader:
        return [(row["checkpoint"], row["state"], row["generation"]) for row in reader.history()]


def settings(tmp_path: Path, **given: object) -> Settings:
    base = Settings.of(model_dir=str(tmp_path), pipeline_config="none")
    return base.replaced(**given)


def stopping_of(given: Settings, store: Store) -> Stopping:
    return Stopping(given.ranking, given.stopping, given.run.sentinel_path, store)


def test_what_is_damaged_or_missed_on_the_way_is_of_the_new_life(store: Store, tmp_path: Path):
    add(store, 1, 9)
    add(store, 2, 10)
    store.queue.record_missed(gone(11), "gone", NOW)
    store.queue.record_missed(gone(1), "gone", NOW)
    store.queue.record_corrupt(found(3, 2)[0], "torn", NOW)
    add(store, 4, 3)
    assert history(tmp_path) == [
        *[("ckpt-9", "pending", 1), ("ckpt-10", "pending", 1), ("ckpt-11", "missed", 1)],
        *[("ckpt-1", "missed", 2), ("ckpt-2", "corrupt", 2), ("ckpt-3", "pending", 2)],
    ]
    store.queue.record_corrupt(found(1, 8)[0], "torn", NOW)
    add(store, 5, 4)
    assert store.queue.generation() == 2
    assert store.queue.last_save() == Save(8, None, 1.0), "the furthest seen"


def test_a_damaged_checkpoint_alone_begins_no_life(store: Store):
    add(store, 1, 10)
    store.queue.record_corrupt(found(2, 1)[0], "torn", NOW)
    assert store.queue.generation() == 1
    add(store, 3, 11)
    assert store.queue.generation() == 1


def test_a_new_life_is_told_in_the_diary_once(store: Store, tmp_path: Path):
    add(store, 1, 10)
    for _ in range(2):
        add(store, 2, 1, untrained=True)
    add(store, 3, 2)
    with open_reader(state(tmp_path)) as reader:
        told = reader.all("SELECT checkpoint, message FROM events WHERE kind = 'started_over'")
    assert [row["checkpoint"] for row in told] == ["ckpt-1"]
    assert "save 1 (step 0) came after save 10 (step 10000); generation 2" in told[0]["message"]


def test_the_newest_life_is_evaluated_first_and_what_has_a_place_with_it(store: Store):
    for at, counter in enumerate((3, 4, 5), start=1):
        add(store, at, counter)
    checkpoint = store.ledger.find("ckpt-4")
    assert checkpoint
    path = store.path
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(  # as if it were measured anew
            "INSERT INTO promotions (run_id, board, checkpoint_id, rank, metric, path, promoted_at)"
            " VALUES (1, 'best', ?, 1, ?, 'best/ckpt-4', '')",
            [checkpoint["id"], MAP],
        )
    add(store, 11, 2)
    add(store, 12, 8)
    with open_reader(store.path.parent) as reader:
        shown = [row["checkpoint"] for row in reader.queue()]
    given = []
    while lease := store.queue.lease_next(NOW, 60):
        given.append(lease.name)
    assert given == shown == ["ckpt-2", "ckpt-4", "ckpt-8", "ckpt-3", "ckpt-5"]


def test_the_stop_of_the_first_life_is_withdrawn_when_a_second_begins(store: Store, tmp_path: Path):
    stopping = stopping_of(settings(tmp_path, patience=2), store)
    for counter, score in enumerate((0.5, 0.4, 0.4), start=1):
        record(store, counter, counter, score)
    stopping.update(NOW, None)
    assert read_sentinel(tmp_path / "EARLY_STOP")
    add(store, 11, 1, untrained=True)
    stopping.update(NOW, None)
    assert stopping.decision is None
    assert read_sentinel(tmp_path / "EARLY_STOP") is None
    assert stopping.patience_left == {"evaluations": 2}


def test_walking_on_from_life_to_life_decides_as_walking_anew(store: Store, tmp_path: Path):
    given = settings(tmp_path, patience=2)
    stopping, decided = stopping_of(given, store), []
    both = ((1, 0.5), (2, 0.4), (4, 0.4), (1, 0.2), (2, 0.3), (3, 0.3), (4, 0.2))
    for at, (counter, score) in enumerate(both, start=1):
        record(store, 10 * at, counter, score)
        stopping.update(NOW, None)
        decided.append(stopping.decision is not None)
        anew = stop_policy(
            given.ranking, given.stopping, store.ledger.resumed_step(), store.ledger.generation()
        )
        assert stopping.decision == should_stop(store.ledger.scored(), anew)
        if at == 5:  # the first life's checkpoint 3 comes late, when the second is under way
            record(store, 25, 3, 0.9)
    assert decided == [False, False, True, False, False, False, True]


def test_a_resume_counts_for_the_life_in_which_it_was_asked_for(store: Store, tmp_path: Path):
    stopping = stopping_of(settings(tmp_path, patience=3), store)
    for counter, score in enumerate((0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4), start=1):
        record(store, counter, counter, score)
    assert store.ledger.resume(NOW) == 8000
    stopping.update(NOW, None)
    assert stopping.decision is None
    decided = []
    for counter, score in enumerate((0.2, 0.4, 0.41, 0.40, 0.40, 0.40), start=1):
        record(store, 10 + counter, counter, score)
        stopping.update(NOW, None)
        decided.append(stopping.decision is not None)
    assert decided == [False, False, False, False, False, True]
    assert store.ledger.resume(NOW) == 6000
    stopping.update(NOW, None)
    assert stopping.decision is None


def test_hours_count_from_the_beginning_of_the_newest_life(store: Store, tmp_path: Path):
    stopping = stopping_of(settings(tmp_path, max_hours=2.0), store)
    record(store, 1, 1, 0.5)
    stopping.update(NOW + 2 * 3600, None)
    assert stopping.decision
    assert stopping.decision.reason == "max_hours"
    add(store, 7200, 1)
    stopping.update(NOW + 7200 + 3600, None)
    assert stopping.decision is None
    stopping.update(NOW + 7200 + 2 * 3600, None)
    assert stopping.decision


# -- found in a folder


def write(model_dir: Path, counter: int, *, content: int, at: float) -> None:
    write_checkpoint(model_dir, f"ckpt-{counter}", 1000 * counter, model_tensors(1000, content))
    for file in model_dir.glob(f"ckpt-{counter}.*"):
        os.utime(file, (at, at))


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model_dir"
    folder.mkdir()
    return folder


def look(store: Store, model_dir: Path, intake: Intake | None = None) -> Intake:
    if intake is None:
        intake = Intake(
            source_of(model_dir), state(model_dir.parent) / "pins", store.queue, grace_seconds=0
        )
        intake.recover(NOW)
    intake.look(NOW, 0.0)
    intake.write_down(NOW)
    return intake


def test_a_backup_that_is_put_back_is_no_new_life_and_nothing_was_missed(
    store: Store, model_dir: Path, tmp_path: Path
):
    for counter in (8, 9):
        write(model_dir, counter, content=counter, at=100 + counter)
    intake = look(store, model_dir)
    write(model_dir, 3, content=3, at=103)
    look(store, model_dir, intake)
    write(model_dir, 10, content=10, at=110)
    look(store, model_dir, intake)
    assert history(tmp_path) == [(f"ckpt-{counter}", "pending", 1) for counter in (8, 9, 3, 10)]


def test_a_life_that_began_while_nobody_looked_is_told_from_what_is_left_of_the_old(
    store: Store, model_dir: Path, tmp_path: Path
):
    for counter in (5, 6):
        write(model_dir, counter, content=counter, at=100 + counter)
    look(store, model_dir)
    for counter, content, at in ((1, 11, 201), (2, 12, 202), (7, 7, 107)):
        write(model_dir, counter, content=content, at=at)
    look(store, model_dir)
    assert [one for one in history(tmp_path) if one[1] == "pending"] == [
        *[("ckpt-5", "pending", 1), ("ckpt-6", "pending", 1)],
        *[("ckpt-1", "pending", 2), ("ckpt-2", "pending", 2), ("ckpt-7", "pending", 1)],
    ]


def test_pins_that_are_adopted_after_a_crash_are_of_their_lives(
    store: Store, model_dir: Path, tmp_path: Path
):
    pins = state(tmp_path) / "pins"
    for counter, content, at in ((9, 9, 109), (10, 10, 110), (1, 11, 201), (2, 12, 202)):
        write(model_dir, counter, content=content, at=at)
    with Store(tmp_path / "lost.db", run="run", model_dir=model_dir, now=NOW) as lost:
        intake = Intake(source_of(model_dir), pins, lost.queue, grace_seconds=0)
        intake.recover(NOW)
        intake.look(NOW, 0.0)
    assert adopt_pins(store.queue, intake.source, pins, NOW) == [
        "ckpt-9",
        "ckpt-10",
        "ckpt-1",
        "ckpt-2",
    ]
    assert [one[2] for one in history(tmp_path)] == [1, 1, 2, 2]


# -- a run


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watcher]:
    """A run whose trainer was told to stop, and started over from nothing."""
    watcher = Watcher(tmp_path_factory.mktemp("twice"))
    scores = {"ckpt-1": 0.5, "ckpt-2": 0.4, "ckpt-3": 0.3}
    scored = "SELECT * FROM history WHERE state = 'scored'"
    flags = ("--patience", 2, "--top-k", -1)
    watcher.start(*flags, STUB_SCORES=json.dumps(scores))
    try:
        manager = Manager(watcher.model_dir)
        for number in (1, 2, 3):
            manager.save(100 * number, model_tensors(1000, f"first {number}"))
        wait_until(watcher.sentinel.exists, "the early stop of the first life")
        (watcher.model_dir / "checkpoint").unlink()
        manager = Manager(watcher.model_dir)
        manager.save(100, model_tensors(1000, "second 1"))
        wait_until(lambda: not watcher.sentinel.exists(), "that it is withdrawn")
        manager.save(200, model_tensors(1000, "second 2"))
        wait_until(lambda: len(watcher.query(scored)) == 5, "all are evaluated")
        watcher.stop()
        yield watcher
    finally:
        watcher.end()


def said(watcher: Watcher, command: str, *arguments: object) -> str:
    done = cli(command, watcher.model_dir, *arguments, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_trainer_that_starts_over_is_evaluated_anew_and_not_stopped_by_its_first_life(
    twice: Watcher,
):
    rows = json.loads(said(twice, "history", "--json"))
    assert [(row["checkpoint"], row["generation"]) for row in rows] == [
        *[("ckpt-1", 1), ("ckpt-2", 1), ("ckpt-3", 1), ("ckpt-1", 2), ("ckpt-2", 2)]
    ]
    assert "the trainer started over" in twice.log.read_text()
    assert json.loads(said(twice, "status", "--json"))["patience_left"] == {"evaluations": 1}
    told = json.loads(said(twice, "explain", "--json"))
    assert (told["generation"], told["evaluations"], told["stop"]) == (2, 2, None)
    other = json.loads(said(twice, "explain", "--json", "--what-if", "patience=1"))
    assert other["stop"]["global_step"] == other["first_stop"]["global_step"] == 200


@pytest.mark.slow
def test_for_people_the_generation_is_shown_where_there_are_several(twice: Watcher):
    for command in ("history", "leaderboard", "explain", "status"):
        assert "generation" in said(twice, command), command
    assert "generation 2 alone is looked at, 2 of 5 evaluations" in said(twice, "explain")
    assert "of 2 evaluations of generation 2" in said(twice, "status")
    assert "to ckpt-1 (step 100, generation 2)" in said(twice, "compare", "ckpt-3", "ckpt-1")


def test_a_picture_has_a_line_for_each_life(twice: Watcher):
    with open_reader(twice.database.parent) as reader:
        run = read_run(reader)
    (panel,) = make_picture([run]).panels
    assert [(curve.label, [step for step, _ in curve.drawable]) for curve in panel.curves] == [
        ("generation 1", [100, 200, 300]),
        ("generation 2", [100, 200]),
    ]
    assert make_picture([run]).title == run.name


def test_a_rebuild_brings_back_of_which_life_each_was(twice: Watcher, tmp_path: Path):
    lost = tmp_path / "model_dir"
    for folder in ("best", "watcher/pins"):
        shutil.copytree(twice.model_dir / folder, lost / folder)
    assert cli("rebuild", lost).returncode == 0
    rows = json.loads(cli("history", lost, "--json").stdout)
    assert sorted((row["checkpoint"], row["generation"]) for row in rows) == [
        *[("ckpt-1", 1), ("ckpt-1", 2), ("ckpt-2", 1), ("ckpt-2", 2), ("ckpt-3", 1)]
    ]


# -- of an earlier version


def test_rows_of_an_earlier_version_get_their_generation_from_their_order(tmp_path: Path):
    path = state(tmp_path) / "watcher.db"
    with Store(path, run="run", model_dir=tmp_path, now=NOW) as store:
        for at, counter in enumerate((1, 2, 3, 1, 2), start=1):
            add(store, at, counter)
            if at == 3:
                store.ledger.resume(NOW + 3.5)
        store.queue.record_missed(gone(3), "gone", NOW)
    _forget_generations(path)
    with Store(path, run="run", model_dir=tmp_path, now=NOW) as store:
        assert store.ledger.generation() == 2
        assert store.ledger.resumed_step() == -1, "it was asked for in the first life"
        add(store, 6, 4)
    assert [one[2] for one in history(tmp_path)] == [1, 1, 1, 2, 2, 2, 2]


def _forget_generations(path: Path) -> None:
    """Make the database what it was before there were generations."""
    older = Database(memory=True)
    for migration in migrations.pending(older):
        if migration.name == "m004_generation":
            break
        migration.fn(older)
    views = older.execute("SELECT name, sql FROM sqlite_master WHERE type = 'view'").fetchall()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'view'").fetchall():
            db.execute(f"DROP VIEW {name}")
        # What came later is migrated anew.
        db.execute("DROP TABLE average_jobs")
        db.execute("ALTER TABLE all_checkpoints DROP COLUMN kind")
        db.execute("ALTER TABLE all_checkpoints RENAME TO checkpoints")
        db.execute("DROP INDEX checkpoints_by_generation")
        for table, column in (
            ("checkpoints", "generation"),
            ("checkpoints", "saved_at_seconds"),
            ("runs", "resumed_generation"),
        ):
            db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        for _, sql in views:
            db.execute(sql)
        db.execute(
            "DELETE FROM _sqlite_migrations WHERE name IN ('m004_generation', 'm012_averages')"
        )
