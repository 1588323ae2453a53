"""A database that another program has locked for long: pins do not wait for it, rows do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import pytest
from fake_trainer import Manager, model_tensors
from faults import Rounds
from folder_source import scan, source_of
from locks import EXCLUSIVE, locked
from watching import FAKE_TRAINER, STUB, Watcher, cli, saves_of, wait_until

from watcher.checkpoints.bundle_format import OD_API
from watcher.checkpoints.pin import pin
from watcher.config import Settings
from watcher.errors import StoreBusy
from watcher.evaluation.messages import Start
from watcher.evaluation.session import Limits
from watcher.evaluation.supervise import Supervisor
from watcher.evaluation.worker import Worker
from watcher.ingest.adopt import pin_folders
from watcher.ingest.intake import Intake
from watcher.promotion.projection import Projector
from watcher.runtime.loop import Daemon
from watcher.store import Store
from watcher.store.database_file import iso

SAVES = 12


def save(watcher: Watcher, count: int, *, keep: int | None = None) -> list[str]:
    manager = Manager(watcher.model_dir, max_to_keep=keep)
    numbers = range(manager.save_counter + 1, manager.save_counter + 1 + count)
    return [manager.save(100 * n, model_tensors(4000, n)).name for n in numbers]


def rotate_while_it_pins(watcher: Watcher, saves: int = SAVES) -> None:
    """Save as a trainer does that keeps each checkpoint for less than a second.

    It waits until each is pinned, for a machine may be held up; most are pinned within that time.
    """
    manager = Manager(watcher.model_dir, max_to_keep=4)
    took = []
    for _ in range(saves):
        number = manager.save_counter + 1
        manager.save(100 * number, model_tensors(10_000, f"rotated {number}"))
        saved = time.monotonic()
        wait_until(lambda n=number: f"ckpt-{n}" in pinned(watcher), "it is pinned")
        took.append(time.monotonic() - saved)
    assert median(took) < 0.6


def rotate(watcher: Watcher, saves: int = SAVES) -> None:
    """A trainer that keeps each checkpoint for less than a second."""
    trainer = [sys.executable, FAKE_TRAINER, watcher.model_dir]
    options = ["--saves", saves, "--interval", 0.15, "--max-to-keep", 4, "--megabytes", 0.01]
    command = [*map(str, [*trainer, *options]), "--no-untrained-first"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def pinned(watcher: Watcher) -> set[str]:
    folders = pin_folders(watcher.database.parent / "pins")
    return {index.stem for folder in folders for index in folder.glob("ckpt-*.index")}


def names(first: int, last: int) -> set[str]:
    return {f"ckpt-{number}" for number in range(first, last + 1)}


def rows(watcher: Watcher) -> list[tuple[str, str]]:
    found = watcher.query("SELECT checkpoint, state FROM history")
    return [(name, row["state"]) for row in found for name in saves_of(row["checkpoint"])]


def scored(watcher: Watcher, expected: set[str]) -> bool:
    states = watcher.states()
    return all(states.get(name) == "scored" for name in expected)


def test_what_comes_while_the_database_is_locked_is_pinned_at_once_and_recorded_later(
    watcher: Watcher,
):
    save(watcher, 1)
    goes_on = watcher.model_dir.with_name("go")
    daemon = watcher.start("--top-k", 2, STUB_WAIT="ckpt-1", STUB_WAIT_FOR=goes_on)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "its answer comes meanwhile")
    began = time.time()
    with locked(watcher.database):
        goes_on.touch()
        before = rows(watcher)
        rotate_while_it_pins(watcher)
        wait_until(lambda: names(2, SAVES + 1) <= pinned(watcher), "each is pinned")
        released = time.time()
        assert rows(watcher) == before
        wait_until(lambda: "database is locked" in watcher.log.read_text(), "it is told")
        time.sleep(0.5)
        assert watcher.log.read_text().count("database is locked") == 1, "once"
        assert len([*watcher.model_dir.glob("ckpt-*.index")]) == 4
    wait_until(lambda: scored(watcher, names(1, SAVES + 1)), "all are scored")
    assert len(rows(watcher)) == SAVES + 1, "none is missed, none is there twice"
    found = watcher.query("SELECT discovered_at FROM history WHERE checkpoint <> 'ckpt-1'")
    stamps = sorted(row["discovered_at"] for row in found)
    assert iso(began) <= stamps[0] and stamps[-1] <= iso(released), "when it was pinned"
    assert [name for name, _ in rows(watcher)] == [f"ckpt-{n}" for n in range(1, SAVES + 2)]
    assert "going on again" in watcher.log.read_text()
    assert daemon.poll() is None and watcher.stop() == 0


def test_a_kill_while_the_database_is_locked_loses_nothing_that_was_pinned(watcher: Watcher):
    save(watcher, 1)
    daemon = watcher.start("--top-k", 2)
    wait_until(lambda: scored(watcher, {"ckpt-1"}), "it works")
    with locked(watcher.database):
        rotate_while_it_pins(watcher)
        wait_until(lambda: names(2, SAVES + 1) <= pinned(watcher), "each is pinned")
        daemon.kill()
        daemon.wait()
    # These come and go while nobody looks, but for the last four.
    rotate(watcher, 8)
    assert watcher.run("--top-k", 2) == 0
    kept = names(1, SAVES + 1) | names(SAVES + 6, SAVES + 9)
    expected = dict.fromkeys(kept, "scored") | dict.fromkeys(names(SAVES + 2, SAVES + 5), "missed")
    assert dict(rows(watcher)) == expected
    assert len(rows(watcher)) == len(expected), "one row each"
    evaluated = watcher.evaluations()
    assert len(evaluated) == len(set(evaluated)), "none was evaluated twice"


def test_a_database_that_is_locked_at_the_start_is_waited_for_and_pins_are_taken(
    watcher: Watcher,
):
    save(watcher, 3)
    assert watcher.run("--top-k", 1) == 0
    (held,) = pinned(watcher)
    with locked(watcher.database, EXCLUSIVE):
        daemon = watcher.start()  # what the last start was given is read when the lock goes
        wait_until(lambda: "waiting for the database" in watcher.log.read_text(), "it is told")
        rotate_while_it_pins(watcher, 8)
        wait_until(lambda: names(4, 11) <= pinned(watcher), "each is pinned")
        assert watcher.log.read_text().count("waiting for the database") == 1
        assert daemon.poll() is None
    wait_until(lambda: scored(watcher, names(1, 11)), "all are scored")
    assert len(rows(watcher)) == 11
    wait_until(lambda: len(pinned(watcher)) == 1, "what was known is released again")
    assert "settings='top_k 1'" in watcher.log.read_text()
    assert watcher.stop() == 0
    assert sorted(watcher.evaluations()) == sorted(names(1, 11))
    assert held == "ckpt-3"


def test_sigterm_ends_it_while_it_waits_for_the_database_at_the_start(watcher: Watcher):
    save(watcher, 1)
    assert watcher.run() == 0
    with locked(watcher.database, EXCLUSIVE):
        daemon = watcher.start()
        wait_until(lambda: "waiting for the database" in watcher.log.read_text(), "it is told")
        daemon.terminate()
        assert daemon.wait(timeout=60) == 0
    assert scored(watcher, {"ckpt-1"})


def test_while_the_database_cannot_even_be_read_pins_are_taken_and_known_ones_go_again(
    tmp_path: Path,
):
    """Where there is no WAL, on a network file system, who writes keeps readers out."""
    rounds = Rounds(tmp_path, top_k=1)
    manager = Manager(tmp_path, max_to_keep=1)
    manager.save(100, model_tensors(4000, 1))
    with rounds.open() as store:
        store.run("PRAGMA journal_mode = DELETE")
        del store._identities[store._wal_path]
        intake, projector = rounds.begin(store)
        assert rounds.go(store, intake, projector) is None
        (row,) = store.queue.pinned()
        store.queue.forget_pin(row["id"])
        shutil.rmtree(row["prefix"].parent)
        store.set_patience(0.05)
        with locked(rounds.state_dir / "watcher.db", EXCLUSIVE):
            # Seen anew, as after a restart: whether it is known cannot be asked.
            os.utime(tmp_path / "ckpt-1.index")
            for number in (1, 2, 3):
                intake.look(time.time(), time.monotonic())
                manager.save(100 * number, model_tensors(4000, number))
            intake.look(time.time(), time.monotonic())
            pins = {index.stem for index in rounds.state_dir.glob("pins/*/*.index")}
            assert pins == names(1, 4)
            with pytest.raises(StoreBusy):
                intake.write_down(time.time())
            assert intake.waiting == 4
        assert intake.write_down(time.time()) == ["ckpt-2", "ckpt-3", "ckpt-4"]
        assert {row["name"] for row in store.queue.pinned()} == names(2, 4)
        assert not row["prefix"].parent.exists(), "what was known is released again"
        assert intake.waiting == 0


@pytest.mark.parametrize("how", ["a crash", "a rebuild"])
def test_pins_without_rows_are_adopted_in_the_order_they_were_saved(watcher: Watcher, how: str):
    save(watcher, 2)
    daemon = watcher.start(STUB_SECONDS=600)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it works")
    with locked(watcher.database):
        save(watcher, 6, keep=None)
        wait_until(lambda: names(3, 8) <= pinned(watcher), "they are pinned")
        daemon.kill()
        daemon.wait()
    for file in watcher.model_dir.glob("ckpt-*"):
        file.unlink()
    if how == "a rebuild":
        for file in watcher.database.parent.glob(f"{watcher.database.name}*"):
            file.unlink()
        assert cli("rebuild", watcher.model_dir).returncode == 0
    assert watcher.run() == 0
    assert rows(watcher) == [(f"ckpt-{n}", "scored") for n in range(1, 9)]


def test_a_lock_that_comes_before_the_first_turn_mixes_nothing_up(watcher: Watcher):
    """What a crash left without rows is adopted first, then what was pinned meanwhile."""
    manager = Manager(watcher.model_dir, max_to_keep=1)
    numbers = iter(range(1, 10))

    def save_one() -> None:
        number = next(numbers)
        manager.save(100 * number, model_tensors(4000, number))

    save_one()
    assert watcher.run() == 0
    pins = watcher.database.parent / "pins"
    for orphan in (3, 5):
        save_one()
        save_one()
        (found,) = scan(watcher.model_dir)
        assert pin(found, pins, OD_API).prefix.name == f"ckpt-{orphan}"
    save_one()
    save_one()
    settings = Settings.of(
        model_dir=str(watcher.model_dir),
        pipeline_config="none",
        exit_when_idle=0,
        evict_seconds=0.1,
    )
    with Store(watcher.database, run="r", model_dir=watcher.model_dir, now=time.time()) as store:
        supervisor = Supervisor(
            spawn=lambda: Worker([str(STUB)], {}, watcher.database.with_name("worker.log")),
            start_request=Start(protocol=2, kind="stub"),
            limits=Limits(),
        )
        intake = Intake(source_of(watcher.model_dir), pins, store.queue, grace_seconds=5)
        daemon = Daemon(
            settings, store, intake, Projector(settings, store, intake.source, "r"), [supervisor]
        )

        def unlock_later() -> None:
            wait_until(lambda: "ckpt-7" in pinned(watcher), "it is pinned")
            release.set()

        release = threading.Event()
        watching = threading.Thread(target=unlock_later)
        holder = threading.Thread(target=hold_until, args=(watcher.database, release))
        holder.start()
        wait_until(lambda: holder.name == "locked", "another program has the lock")
        watching.start()
        daemon.run()
        watching.join()
        holder.join()
    seen = ("ckpt-1", "ckpt-3", "ckpt-5", "ckpt-7")
    expected = [(f"ckpt-{n}", "scored" if f"ckpt-{n}" in seen else "missed") for n in range(1, 8)]
    assert rows(watcher) == expected


def hold_until(database: Path, release: threading.Event) -> None:
    with locked(database):
        threading.current_thread().name = "locked"
        release.wait(60)
