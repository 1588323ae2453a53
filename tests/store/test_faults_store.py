"""Faults of the database: locked, full, read-only, deleted, damaged, and killed in the middle."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from faults import end_strace, fork_daemon, need_strace
from folder_source import scan
from locks import locked
from watching import FAKE_TRAINER, Watcher, cli, wait_until

from watcher.checkpoints.bundle import verify
from watcher.checkpoints.bundle_format import OD_API
from watcher.checkpoints.pin import pin


def save(watcher: Watcher, count: int, first: int = 1) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(first, first + count):
        manager.save(100 * number, model_tensors(4000, number))


def board(watcher: Watcher) -> list[str]:
    return watcher.leaderboard() if watcher.states() else []


def test_a_result_that_comes_while_the_database_is_locked_is_held_and_recorded(
    watcher: Watcher, tmp_path: Path
):
    save(watcher, 1)
    goes_on = tmp_path / "go"
    daemon = watcher.start(STUB_WAIT="ckpt-1", STUB_WAIT_FOR=goes_on)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is being evaluated")
    with locked(watcher.database):
        goes_on.touch()
        wait_until(lambda: "database is locked" in watcher.log.read_text(), "it is told")
        time.sleep(1)
        save(watcher, 1, first=2)
        assert watcher.states() == {"ckpt-1": "leased"}
    wait_until(lambda: list(watcher.states().values()) == ["scored"] * 2, "both are recorded")
    assert watcher.evaluations() == ["ckpt-1", "ckpt-2"], "nothing was evaluated twice"
    assert daemon.poll() is None and watcher.stop() == 0


def test_sigterm_while_the_database_is_locked_ends_it_in_time(watcher: Watcher):
    save(watcher, 1)
    daemon = watcher.start(STUB_SECONDS=600)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is being evaluated")
    with locked(watcher.database):
        daemon.terminate()
        assert daemon.wait(timeout=60) == 0
    assert watcher.run() == 0
    assert watcher.states() == {"ckpt-1": "scored"}


@pytest.mark.parametrize("error", ["EROFS", "ENOSPC", "EIO"])
def test_a_file_system_that_takes_no_writes_for_a_while_loses_nothing(
    watcher: Watcher, tmp_path: Path, error: str
):
    need_strace()
    save(watcher, 1)
    goes_on = tmp_path / "go"
    steer = {"STUB_WAIT": "ckpt-1", "STUB_WAIT_FOR": goes_on}
    daemon = watcher.start("--rescan-seconds", 0.5, **steer)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is being evaluated")
    calls = "pwrite64,fdatasync,fsync,link,linkat,mkdir,rename,ftruncate"
    inject = [f"-etrace={calls}", f"-einject={calls}:error={error}"]
    strace = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(daemon.pid), *inject]
    fault = subprocess.Popen(strace)
    status = Path(f"/proc/{daemon.pid}/status")
    wait_until(lambda: "TracerPid:\t0" not in status.read_text(), "it is traced")
    goes_on.touch()
    wait_until(lambda: "cannot go on, trying again" in watcher.log.read_text(), "it is told")
    save(watcher, 1, first=2)
    time.sleep(1)
    end_strace(fault)
    wait_until(lambda: board(watcher) == ["ckpt-2", "ckpt-1"], "it recovers by itself")
    assert watcher.evaluations() == ["ckpt-1", "ckpt-2"]
    assert "going on again" in watcher.log.read_text()
    assert daemon.poll() is None


def test_a_full_disk_is_told_and_recovered_from(watcher: Watcher, tmp_path: Path):
    """A tmpfs of 3 MB in a mount namespace of its own, filled to the last byte."""
    if not shutil.which("unshare"):
        pytest.skip("needs unshare: apt install util-linux")
    mount = f'mount -t tmpfs -o size=3m tmpfs {watcher.model_dir} && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", *watcher.command("--rescan-seconds", 0.3)]
    if subprocess.run([*command[:5], "sh", "true"], check=False).returncode:
        pytest.skip("mounting in a user namespace is not allowed here")
    outside = watcher.model_dir
    with watcher.log.open("ab") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log)
    watcher.adopt(daemon)
    inside = Path(f"/proc/{daemon.pid}/root{outside}")
    wait_until(lambda: (inside / "watcher" / "watcher.db").exists(), "it runs inside")
    watcher.model_dir = inside
    save(watcher, 2)
    wait_until(lambda: said(watcher, "ckpt-2 of=2"), "it works")
    aside = inside / "aside"
    aside.mkdir()
    shutil.copy(inside / "checkpoint", aside)
    Manager(aside, max_to_keep=None).save(300, model_tensors(4000, 3))
    with (inside / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1024))
    for file in sorted(aside.iterdir()):  # the data first; a rename takes no space
        file.rename(inside / file.name)
    wait_until(lambda: said(watcher, "database or disk is full"), "it is told")
    time.sleep(1)
    assert daemon.poll() is None
    name = (inside / "best" / "checkpoint").read_text().split('"')[1]
    verify(inside / "best" / name)
    (inside / "filler").unlink()
    wait_until(lambda: said(watcher, "going on again"), "it recovers by itself")
    save(watcher, 1, first=4)
    wait_until(lambda: (inside / "best" / "ckpt-4.index").exists(), "the new best is there")
    daemon.terminate()
    assert daemon.wait(timeout=60) == 0


def said(watcher: Watcher, text: str) -> bool:
    return text in watcher.log.read_text()


def test_a_deleted_database_is_rebuilt_from_best_and_the_pins(watcher: Watcher):
    save(watcher, 4)
    daemon = watcher.start("--rescan-seconds", 0.2, "--top-k", 2)
    wait_until(lambda: board(watcher) == ["ckpt-4", "ckpt-3"], "it works")
    wait_until(lambda: len(watcher.best_files()) == 6, "what left best/ is gone")
    identity = watcher.query("SELECT uuid, fingerprint FROM runs")
    watcher.database.unlink()
    assert daemon.wait(timeout=60) == 1
    said = watcher.log.read_text()
    assert "was deleted or replaced while in use" in said
    assert "checkpoint-watcher rebuild" in said and "watcher.db.rescued" in said
    with contextlib.closing(sqlite3.connect(f"{watcher.database}.rescued")) as rescued:
        assert rescued.execute("SELECT count(*) FROM evaluations").fetchone() == (4,)
    # Starting without it would forget the run and take best/ for somebody else's.
    assert watcher.run("--top-k", 2) == 1
    assert "is gone or empty" in watcher.log.read_text()
    before = {path.name: path.stat().st_ino for path in watcher.best_dir.iterdir()}
    done = cli("rebuild", watcher.model_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ckpt-4, ckpt-3" in done.stdout
    assert watcher.query("SELECT uuid, fingerprint FROM runs") == identity
    assert watcher.leaderboard() == ["ckpt-4", "ckpt-3"]
    assert {path.name: path.stat().st_ino for path in watcher.best_dir.iterdir()} == before
    asked = len(watcher.evaluations())
    assert watcher.run("--top-k", 2) == 0
    assert watcher.leaderboard() == ["ckpt-4", "ckpt-3"]
    assert sorted(watcher.evaluations()[asked:]) == ["ckpt-1", "ckpt-2"], "what was forgotten"
    assert set(watcher.best_files()) == set(before)
    assert "not ours" not in watcher.log.read_text()


def test_what_was_leaving_best_when_the_database_was_lost_is_told_and_left_alone(
    watcher: Watcher,
):
    save(watcher, 1)
    flags = ["--top-k", 1, "--rescan-seconds", 0.2]
    daemon = watcher.start(*flags, CHECKPOINT_WATCHER_EVICT_SECONDS=60)
    wait_until(lambda: board(watcher) == ["ckpt-1"], "it works")
    save(watcher, 1, first=2)
    wait_until(lambda: board(watcher) == ["ckpt-2"], "there is a better one")
    daemon.kill()
    daemon.wait()
    (watcher.best_dir / "ckpt-99.index").write_text("a user's")
    for file in watcher.database.parent.glob("watcher.db*"):
        file.unlink()
    for file in watcher.model_dir.glob("ckpt-*"):
        file.unlink()
    rebuilt = cli("rebuild", watcher.model_dir)
    assert "not in best.json, left alone from now on: ckpt-1, ckpt-99\n" in rebuilt.stdout
    assert watcher.run(*flags) == 0
    assert {"ckpt-1.index", "ckpt-2.index", "ckpt-99.index"} < watcher.best_files()
    assert watcher.leaderboard() == ["ckpt-2"]
    assert "holds files that are not ours" in watcher.log.read_text()


def test_pins_that_wait_survive_the_loss_of_the_database(watcher: Watcher):
    save(watcher, 3)
    daemon = watcher.start(STUB_SECONDS=600)
    wait_until(lambda: len(watcher.states()) == 3, "all are pinned")
    daemon.kill()
    daemon.wait()
    for file in watcher.database.parent.glob("watcher.db*"):
        file.unlink()
    for file in watcher.model_dir.glob("ckpt-*"):
        file.unlink()
    assert watcher.run() == 1
    assert len(list((watcher.model_dir / "watcher" / "pins").iterdir())) == 3
    assert "ckpt-1" in cli("rebuild", watcher.model_dir).stdout
    assert watcher.run() == 0
    assert watcher.states() == dict.fromkeys(["ckpt-1", "ckpt-2", "ckpt-3"], "scored")


def test_a_database_damaged_under_it_ends_it_and_is_kept_by_the_rebuild(watcher: Watcher):
    save(watcher, 3)
    daemon = watcher.start("--rescan-seconds", 0.2)
    wait_until(lambda: len(board(watcher)) == 3, "it works")
    with contextlib.closing(sqlite3.connect(watcher.database)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with watcher.database.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(random.Random(17).randbytes(size))
    save(watcher, 1, first=4)
    assert daemon.wait(timeout=60) == 1
    assert "checkpoint-watcher rebuild" in watcher.log.read_text()
    assert watcher.run() == 1
    done = cli("rebuild", watcher.model_dir)
    assert done.returncode == 0, done.stderr
    assert len(list(watcher.database.parent.glob("watcher.db.damaged-*"))) >= 1
    assert watcher.run() == 0
    assert watcher.leaderboard()[0] == "ckpt-4"
    assert watcher.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]


def test_rebuild_refuses_a_whole_database_and_a_running_watcher(watcher: Watcher):
    save(watcher, 1)
    watcher.run()
    refused = cli("rebuild", watcher.model_dir)
    assert refused.returncode == 1 and "there is nothing to rebuild" in refused.stderr
    watcher.start()
    wait_until(lambda: watcher.log.read_text().count("worker ready") == 2, "it runs")
    assert cli("rebuild", watcher.model_dir).returncode == 3


def scores(watcher: Watcher) -> int:
    return list(watcher.states().values()).count("scored")


@pytest.mark.timeout(600)
def test_sixty_kills_at_random_moments_lose_no_row_and_forget_no_checkpoint(
    watcher: Watcher, tmp_path: Path
):
    kills, saves = 60, 40
    chance = random.Random(18)
    trainer = [sys.executable, FAKE_TRAINER, watcher.model_dir]
    options = ["--saves", saves, "--interval", 0.4, "--max-to-keep", 0, "--megabytes", 0.005]
    command = watcher.command("--rescan-seconds", 0.5, "--top-k", 3)[2:]
    steer = {"STUB_LOG": watcher.evaluated, "STUB_SECONDS": 0.02}
    steer |= {"CHECKPOINT_WATCHER_EVICT_SECONDS": 0.1}
    acknowledged: set[tuple[str, float]] = set()
    with subprocess.Popen([*map(str, [*trainer, *options])], stdout=subprocess.DEVNULL) as training:
        began = time.monotonic()
        daemon = fork_daemon(command, watcher.log, steer)
        wait_until(lambda: "scored" in watcher.states().values(), "the first score")
        daemon.kill()
        daemon.wait()
        # On a busy machine a daemon takes longer until there is something to lose.
        longest = min(max(0.6, 1.3 * (time.monotonic() - began)), 3.0)
        for number in range(kills - 1):
            daemon = fork_daemon(command, watcher.log, steer)
            if number % 8 == 7:  # on a slow machine no other may come so far
                more = min(len(acknowledged) + 1, saves - 1)
                wait_until(lambda more=more: scores(watcher) >= more, "another one is scored")
            time.sleep(chance.uniform(0.0, longest))
            if watcher.states():
                rows = watcher.query("SELECT sha256, score FROM history WHERE state = 'scored'")
                acknowledged |= {(row["sha256"], row["score"]) for row in rows}
            daemon.kill()
            daemon.wait()
        training.wait(timeout=60)
    assert watcher.run("--top-k", 3) == 0
    assert watcher.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    rows = watcher.query("SELECT checkpoint, state, sha256, score FROM history")
    assert acknowledged <= {(row["sha256"], row["score"]) for row in rows}
    assert len(acknowledged) > 5
    expected = {f"ckpt-{number}": "scored" for number in range(2, saves + 1)}
    assert {row["checkpoint"]: row["state"] for row in rows} == {"ckpt-1": "untrained", **expected}
    events = watcher.query("SELECT checkpoint FROM events WHERE kind = 'scored'")
    assert len(events) == len(expected), "no checkpoint is scored twice"
    assert watcher.leaderboard() == [f"ckpt-{saves - place}" for place in range(3)]


def test_a_pin_without_a_row_is_adopted_although_the_trainer_has_it_no_more(watcher: Watcher):
    """What a kill between the two leaves; the checkpoint is rotated away before the restart."""
    save(watcher, 2)
    pins = watcher.model_dir / "watcher" / "pins"
    pins.mkdir(parents=True)
    assert watcher.run("--top-k", 1) == 0
    save(watcher, 1, first=3)
    (found,) = [one for one in scan(watcher.model_dir) if one.name == "ckpt-3"]
    pin(found, pins, OD_API)
    for file in watcher.model_dir.glob("ckpt-3.*"):
        file.unlink()
    assert watcher.run("--top-k", 1) == 0
    assert watcher.states() == dict.fromkeys(["ckpt-1", "ckpt-2", "ckpt-3"], "scored")


def test_a_checkpoint_that_is_rotated_away_while_the_database_is_locked_is_scored(
    watcher: Watcher,
):
    save(watcher, 1)
    watcher.start("--rescan-seconds", 0.2)
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "it works")
    with locked(watcher.database):
        save(watcher, 1, first=2)
        pins = watcher.model_dir / "watcher" / "pins"
        wait_until(lambda: len([*pins.glob("*/ckpt-2.index")]) == 1, "it is pinned")
        for file in watcher.model_dir.glob("ckpt-2.*"):
            file.unlink()
        time.sleep(2.5)
    wait_until(lambda: watcher.states().get("ckpt-2") == "scored", "it is recorded and scored")
