"""A run that is to end once all is done ends, with the reason for what could not be done."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import model_tensors, write_checkpoint
from folder_source import source_of
from locks import EXCLUSIVE, WRITE, locked
from privileges import bound, subject_to_permissions
from watching import Watcher, wait_until

from watcher.config import Settings
from watcher.doctor import folders
from watcher.ingest.intake import Intake
from watcher.store import Store

UNFINISHED = 4
SOON = ["--grace-seconds", 0.5, "--rescan-seconds", 0.5]
ENDINGS = pytest.mark.parametrize("asked", ["by a signal", "when idle"])


def save(watcher: Watcher, *numbers: int) -> None:
    for number in numbers:
        tensors = model_tensors(4000, number)
        write_checkpoint(
            watcher.model_dir, f"ckpt-{number}", 100 * number, tensors, save_counter=number
        )


def bar(watcher: Watcher, name: str, suffix: str = "index") -> Path:
    """Let nobody read a file of a checkpoint."""
    file = watcher.model_dir / f"{name}.{suffix}"
    file.chmod(0)
    return file


def end(watcher: Watcher, asked: str, *flags: object) -> int:
    """Start, ask it to end, and return its exit code."""
    if asked == "when idle":
        return watcher.start("--exit-when-idle", 0.1, *SOON, *flags).wait(timeout=60)
    daemon = watcher.start(*SOON, *flags)
    wait_until(lambda: watcher.status().get("worker") == "ready", "it is ready")
    daemon.send_signal(signal.SIGUSR1)
    return daemon.wait(timeout=60)


@pytest.mark.parametrize(
    ("asked", "suffix"), [("by a signal", "index"), ("when idle", "data-00000-of-00001")]
)
def test_a_checkpoint_that_may_not_be_read_is_missed_with_the_reason_and_the_run_ends(
    watcher: Watcher, asked: str, suffix: str
):
    watcher.prefix = bound()
    save(watcher, 1, 2, 3)
    barred = bar(watcher, "ckpt-2", suffix)
    assert end(watcher, asked) == 0
    assert watcher.states() == {"ckpt-1": "scored", "ckpt-2": "missed", "ckpt-3": "scored"}
    whose = f"(owner uid {os.geteuid()}, mode 0000)"
    reason = f"cannot read {barred.name}: Permission denied {whose}"
    rows = watcher.query("SELECT reason FROM history WHERE state = 'missed'")
    assert rows == [{"reason": reason}]
    assert f"ckpt-2 is not evaluated: {reason}" in watcher.log.read_text()


@pytest.mark.parametrize("restarted", [False, True])
def test_what_can_be_read_after_all_is_evaluated_and_its_row_made_whole(
    watcher: Watcher, restarted: bool
):
    watcher.prefix = bound()
    save(watcher, 1, 2, 3)
    barred = bar(watcher, "ckpt-2")
    daemon = watcher.start(*SOON)
    wait_until(lambda: watcher.states().get("ckpt-2") == "missed", "it is given up")
    if restarted:
        daemon.terminate()
        daemon.wait(timeout=60)
    barred.chmod(0o600)
    if restarted:
        watcher.start(*SOON)
    wait_until(lambda: watcher.states().get("ckpt-2") == "scored", "it is looked at again")
    save(watcher, 4)
    wait_until(lambda: watcher.states().get("ckpt-4") == "scored", "the next one comes")
    assert rows(watcher) == [(f"ckpt-{n}", "scored") for n in (1, 2, 3, 4)]


@ENDINGS
def test_a_run_whose_pins_cannot_be_made_ends_with_a_code_that_says_so(
    watcher: Watcher, asked: str
):
    (watcher.model_dir / "watcher").mkdir()
    (watcher.model_dir / "watcher" / "pins").mkdir(mode=0o500)
    watcher.prefix = bound()
    save(watcher, 1, 2)
    assert end(watcher, asked) == UNFINISHED
    left = "the run ends with work left (ckpt-1, ckpt-2): cannot pin ckpt-1: Permission denied"
    assert left in watcher.log.read_text()
    (watcher.model_dir / "watcher" / "pins").chmod(0o700)
    assert end(watcher, asked) == 0
    assert set(watcher.states().values()) == {"scored"}


@ENDINGS
def test_a_run_whose_best_cannot_be_promoted_ends_with_a_code_that_says_so(
    watcher: Watcher, asked: str
):
    save(watcher, 1)
    watcher.best_dir.touch()
    assert end(watcher, asked) == UNFINISHED
    assert watcher.states() == {"ckpt-1": "scored"}
    assert "the run ends with work left: " in watcher.log.read_text()


def test_a_model_dir_that_went_away_is_not_taken_for_an_empty_one(watcher: Watcher, tmp_path: Path):
    save(watcher, 1)
    watcher.database = tmp_path / "state" / "watcher.db"
    own = ["--state-dir", tmp_path / "state", "--best-dir", tmp_path / "best"]
    own += ["--sentinel", tmp_path / "STOP", "--kept-dir", tmp_path / "kept"]
    daemon = watcher.start(*SOON, *own)
    wait_until(lambda: watcher.states() == {"ckpt-1": "scored"}, "it is scored")
    shutil.move(watcher.model_dir, tmp_path / "gone")
    daemon.send_signal(signal.SIGUSR1)
    assert daemon.wait(timeout=60) == UNFINISHED
    assert "work left: cannot list model_dir" in watcher.log.read_text()


@pytest.mark.parametrize("at_the_start", [False, True])
def test_a_database_that_stays_locked_holds_up_no_end(watcher: Watcher, at_the_start: bool):
    save(watcher, 1)
    daemon = watcher.start(*SOON)
    wait_until(lambda: watcher.states() == {"ckpt-1": "scored"}, "it is scored")
    if at_the_start:
        assert watcher.stop() == 0
    with locked(watcher.database, EXCLUSIVE if at_the_start else WRITE):
        if at_the_start:
            daemon = watcher.start(*SOON)
            wait_until(lambda: "waiting for the database" in watcher.log.read_text(), "it waits")
        save(watcher, 2)
        daemon.send_signal(signal.SIGUSR1)
        assert daemon.wait(timeout=60) == UNFINISHED
    assert "database is locked" in watcher.log.read_text().splitlines()[-2]


def test_doctor_says_that_the_newest_checkpoint_may_not_be_read(watcher: Watcher):
    save(watcher, 1)
    bar(watcher, "ckpt-1")
    settings = Settings.of(model_dir=str(watcher.model_dir), pipeline_config="none")
    with subject_to_permissions():
        _, finding = folders.model_dir(settings.run, settings.source, [])
    assert finding.severity == "error" and finding.message.startswith("cannot read ckpt-1.index")
    assert finding.remedy and "umask" in finding.remedy


# -- one row a save, whatever happens to what may not be read


@pytest.fixture
def store(watcher: Watcher) -> Iterator[Store]:
    watcher.database.parent.mkdir()
    with Store(watcher.database, run="run", model_dir=watcher.model_dir, now=0.0) as store:
        yield store


def looked(
    watcher: Watcher, store: Store, *steadies: float, intake: Intake | None = None
) -> Intake:
    """Look at these steady times, with a second's grace."""
    pins = watcher.database.parent / "pins"
    pins.mkdir(exist_ok=True)
    intake = intake or Intake(source_of(watcher.model_dir), pins, store.queue, grace_seconds=1.0)
    with subject_to_permissions():
        for steady in steadies:
            intake.look(steady, steady)
            intake.write_down(steady)
    return intake


def rows(watcher: Watcher) -> list[tuple[str, str]]:
    found = watcher.query("SELECT checkpoint, state FROM history ORDER BY checkpoint")
    return [(row["checkpoint"], row["state"]) for row in found]


@pytest.mark.parametrize("given_up", [False, True])
def test_one_that_is_rotated_away_unread_is_one_row(watcher: Watcher, store: Store, given_up: bool):
    save(watcher, 1, 2)
    bar(watcher, "ckpt-2")
    intake = looked(watcher, store, 0.0, *([1.5, 2.5] if given_up else [0.5]))
    assert intake.waiting == (not given_up)
    for file in watcher.model_dir.glob("ckpt-[12].*"):
        file.unlink()
    save(watcher, 4)
    looked(watcher, store, 3.0, intake=intake)
    expected = [("ckpt-1", "pending"), ("ckpt-2", "missed"), ("ckpt-3", "missed")]
    assert rows(watcher) == [*expected, ("ckpt-4", "pending")]


def test_at_a_restart_it_makes_no_save_a_missed_one(watcher: Watcher, store: Store):
    save(watcher, 1, 2, 3)
    barred = bar(watcher, "ckpt-2")
    looked(watcher, store, 0.0, 1.5)
    for file in watcher.model_dir.glob("ckpt-1.*"):
        file.unlink()
    again = looked(watcher, store, 10.0, 12.0)
    assert again.waiting == 0, "it has its outcome"
    barred.chmod(0o600)
    looked(watcher, store, 20.0, intake=again)
    assert rows(watcher) == [(f"ckpt-{n}", "pending") for n in (1, 2, 3)]


def test_a_row_that_came_late_makes_no_later_save_a_missed_one(watcher: Watcher, store: Store):
    save(watcher, 1, 2, 3)
    bar(watcher, "ckpt-2")
    looked(watcher, store, 0.0, 1.5)
    for file in watcher.model_dir.glob("ckpt-*"):
        file.unlink()
    save(watcher, 4)
    looked(watcher, store, 10.0)
    states = ["pending", "missed", "pending", "pending"]
    assert rows(watcher) == [(f"ckpt-{n}", state) for n, state in enumerate(states, start=1)]


def test_one_that_returns_to_what_it_was_is_not_waited_for(watcher: Watcher, store: Store):
    save(watcher, 1)
    intake = looked(watcher, store, 0.0)
    index = watcher.model_dir / "ckpt-1.index"
    whole, times = index.read_bytes(), index.stat()
    index.write_bytes(b"")
    assert looked(watcher, store, 0.1, intake=intake).waiting == 1
    index.write_bytes(whole)
    os.utime(index, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert looked(watcher, store, 0.2, intake=intake).waiting == 0
