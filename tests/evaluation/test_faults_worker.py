"""Faults of the evaluation worker: it dies, hangs, lies or cannot start, and the queue goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from launching import children
from watching import STUB, Watcher, alive, cli, wait_until

QUICK = ["--retry-seconds", 0.05]
# A trainer of another test, or of anybody, would have it give way and be slower.
STALLING = [*QUICK, "--stall-timeout", 1, "--peace", "off"]
FAULTS = {
    "STUB_CRASH": "SIGSEGV",
    "STUB_KILL": "SIGKILL",
    "STUB_EXIT": "ended with exit code 0",
    "STUB_MEMORY": "MemoryError",
    "STUB_GARBAGE": "garbage",
    "STUB_NOISE": "endless line",
    "STUB_ODD": "garbage",
    "STUB_SHORT": "7 images of 8",
    "STUB_ORPHAN": "ended with exit code 1",
}
STALLS = {"STUB_HANG": "no progress for 1 s", "STUB_CHATTER": "no progress for 1 s"}


def save(watcher: Watcher, count: int) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, count + 1):
        manager.save(100 * number, model_tensors(4000, number))


def started(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().splitlines()] if log.exists() else []


def group_members(group: int) -> list[int]:
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            members.append(int(stat.parent.name))
    return members


def broken_among_whole(watcher: Watcher, faults: dict[str, str]) -> dict[str, str]:
    """Save a whole checkpoint after each that is to break its worker, and return who breaks how."""
    save(watcher, 2 * len(faults))
    return {f"ckpt-{2 * number + 1}": fault for number, fault in enumerate(faults)}


def run_through(
    watcher: Watcher, limits: list[object], faults: dict[str, str], starts: Path
) -> dict[str, int]:
    """Let broken checkpoints be tried, and return the attempts that each whole one took."""
    broken = broken_among_whole(watcher, faults)
    steer = {fault: name for name, fault in broken.items()}
    assert watcher.run(*limits, **steer, STUB_STARTS=starts) == 0
    whole = {}
    for row in watcher.query("SELECT name, state, reason, attempts FROM checkpoints ORDER BY id"):
        fault = broken.get(row["name"])
        assert row["state"] == ("failed" if fault else "scored"), row
        if fault:
            assert row["attempts"] == 3
            assert faults[fault] in row["reason"] and "attempt 3, the last" in row["reason"]
        else:
            whole[row["name"]] = row["attempts"]
    assert watcher.query("SELECT count(*) AS n FROM evaluations") == [{"n": len(faults)}]
    assert not set(watcher.leaderboard()) & set(broken)
    # Nothing that any of these workers started is left.
    assert [group for pid in started(starts) for group in group_members(pid)] == []
    return whole


def test_a_checkpoint_that_breaks_three_workers_fails_and_the_next_one_goes_on(
    watcher: Watcher, tmp_path: Path
):
    starts = tmp_path / "starts"
    whole = run_through(watcher, QUICK, FAULTS, starts)
    # Who speaks of 7 images says first that its images are done: the next may be there by then.
    beside = f"ckpt-{2 * list(FAULTS).index('STUB_SHORT') + 2}"
    assert whole.pop(beside) in (1, 2)
    assert set(whole.values()) == {1}
    assert len(started(starts)) == 3 * len(FAULTS) + 1


def test_a_checkpoint_that_stalls_three_workers_fails_and_the_next_one_goes_on(
    watcher: Watcher, tmp_path: Path
):
    # A machine that is itself held up for a second costs a whole one an attempt, and no score.
    starts = tmp_path / "starts"
    run_through(watcher, STALLING, STALLS, starts)
    assert len(started(starts)) >= 3 * len(STALLS) + 1


def test_a_worker_that_breaks_once_costs_an_attempt_and_a_delay_and_no_score(
    watcher: Watcher, tmp_path: Path
):
    save(watcher, 2)
    once = tmp_path / "once"
    once.mkdir()
    assert watcher.run(*QUICK, STUB_KILL="*", STUB_ONCE=once) == 0
    assert set(watcher.states().values()) == {"scored"}
    assert {row["attempts"] for row in watcher.query("SELECT attempts FROM checkpoints")} == {2}
    delays = watcher.query("SELECT count(*) AS n FROM events WHERE kind = 'retry'")
    assert delays == [{"n": 2}]


def test_a_worker_that_never_gets_ready_ends_the_start_with_what_it_said(watcher: Watcher):
    save(watcher, 1)
    assert watcher.run(*QUICK, STUB_DIE=7) == 1
    assert "exit code 7 (ImportError: libcuda.so.1)" in watcher.log.read_text()
    assert watcher.run("--retry-seconds", 0.05, "--start-timeout", 0.5, STUB_MUTE=1) == 1
    assert "not ready within 0.5 s" in watcher.log.read_text()
    assert watcher.states() == {"ckpt-1": "pending"}


def test_death_at_a_later_start_is_waited_out(watcher: Watcher, tmp_path: Path):
    save(watcher, 1)
    broken, starts = tmp_path / "broken", tmp_path / "starts"
    watcher.start(*QUICK, STUB_DIE_IF=broken, STUB_STARTS=starts)
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "the worker works")
    broken.touch()
    os.kill(started(starts)[0], signal.SIGKILL)
    wait_until(lambda: len(started(starts)) > 5, "it is started again and again")
    Manager(watcher.model_dir).save(500, model_tensors(4000, 5))
    broken.unlink()
    wait_until(lambda: watcher.states().get("ckpt-2") == "scored", "a later start succeeds")


def test_an_interpreter_that_is_removed_and_comes_back_is_waited_for(
    watcher: Watcher, tmp_path: Path
):
    save(watcher, 1)
    interpreter, starts = tmp_path / "python", tmp_path / "starts"
    shutil.copy(STUB, interpreter)
    daemon = watcher.start(*QUICK, "--python", interpreter, STUB_STARTS=starts)
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "the worker works")
    interpreter.unlink()
    os.kill(started(starts)[0], signal.SIGKILL)
    lost = f"cannot start the interpreter {interpreter}"
    wait_until(lambda: lost in watcher.log.read_text(), "the start fails")
    Manager(watcher.model_dir).save(500, model_tensors(4000, 5))
    wait_until(lambda: watcher.states().get("ckpt-2") == "pending", "pinning goes on")
    assert daemon.poll() is None
    shutil.copy(STUB, interpreter)
    wait_until(lambda: watcher.states().get("ckpt-2") == "scored", "the new interpreter is used")


def test_endless_noise_from_libraries_neither_fills_the_disk_nor_stops_the_evaluation(
    watcher: Watcher,
):
    save(watcher, 2)
    loud = watcher.start(STUB_LOUD="ckpt-1", STUB_SECONDS=1)
    wait_until(lambda: watcher.states().get("ckpt-2") == "scored", "both are scored")
    assert watcher.stop() == 0 and loud.returncode == 0
    logs = list((watcher.model_dir / "watcher").glob("worker.log*"))
    assert sum(log.stat().st_size for log in logs) < 40 << 20
    assert b"W tensorflow/core" in logs[0].read_bytes()


def test_an_answer_that_comes_after_the_lease_is_lost_is_refused(watcher: Watcher, tmp_path: Path):
    save(watcher, 1)
    goes_on = tmp_path / "go"
    watcher.start(STUB_WAIT="ckpt-1", STUB_WAIT_FOR=goes_on, STUB_SCORES='{"ckpt-1": 0.5}')
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is evaluated")
    with closing(sqlite3.connect(watcher.database)) as other:
        other.execute("UPDATE all_checkpoints SET lease_token = 'of another worker'")
        other.commit()
        goes_on.touch()
        wait_until(lambda: "answer refused" in watcher.log.read_text(), "the answer came")
        assert watcher.query("SELECT * FROM evaluations") == []
        wait_until(lambda: watcher.status()["answers_refused"] == 1, "it is counted")
        other.execute("UPDATE all_checkpoints SET lease_expires_at_seconds = 1")
        other.commit()
    Manager(watcher.model_dir).save(500, model_tensors(4000, 5))  # wakes the loop
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "it is evaluated again")
    assert watcher.evaluations().count("ckpt-1") == 2


def test_an_expired_lease_ends_its_worker_before_another_one_gets_the_checkpoint(
    watcher: Watcher, tmp_path: Path
):
    save(watcher, 1)
    starts, once = tmp_path / "starts", tmp_path / "once"
    once.mkdir()
    watcher.start("--rescan-seconds", 0.2, STUB_HANG="*", STUB_ONCE=once, STUB_STARTS=starts)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is evaluated")
    with closing(sqlite3.connect(watcher.database)) as other:
        other.execute("UPDATE all_checkpoints SET lease_expires_at_seconds = 1")
        other.commit()
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "by the second worker")
    first, _second = started(starts)
    assert not alive(first)


@pytest.mark.parametrize("state", ["evaluating", "hanging"])
def test_the_worker_dies_with_a_killed_daemon(watcher: Watcher, tmp_path: Path, state: str):
    save(watcher, 1)
    starts = tmp_path / "starts"
    fault = {"STUB_HANG": "ckpt-1"} if state == "hanging" else {"STUB_SECONDS": 600}
    daemon = watcher.start(STUB_STARTS=starts, **fault)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is being evaluated")
    daemon.kill()
    wait_until(lambda: not alive(started(starts)[0]), "the worker is gone")


def test_a_restart_waits_for_a_worker_that_outlived_its_daemon(watcher: Watcher, tmp_path: Path):
    save(watcher, 1)
    starts = tmp_path / "starts"
    daemon = watcher.start(STUB_SECONDS=600, STUB_STARTS=starts)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is being evaluated")
    lock = watcher.model_dir / "watcher" / "worker.lock"
    assert lock in opened(started(starts)[0])
    daemon.kill()
    wait_until(lambda: not alive(started(starts)[0]), "the worker is gone")
    # What the kernel has not ended yet (a GPU being torn down) holds the lock, as this does.
    undead = subprocess.Popen(["flock", lock, "sleep", "600"])
    try:
        wait_until(lambda: children(undead.pid), "it has the lock")
        watcher.start(*QUICK, STUB_STARTS=starts)
        wait_until(
            lambda: "earlier worker" in str(problem(watcher)), "status says what it waits for"
        )
        assert len(started(starts)) == 1
    finally:
        subprocess.run(["pkill", "-P", str(undead.pid)], check=False)
        undead.wait()
    wait_until(lambda: watcher.states()["ckpt-1"] == "scored", "then it goes on")


def opened(pid: int) -> set[Path]:
    """What a process has open; some of it may be closed meanwhile."""
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(file.readlink())
    return found


def problem(watcher: Watcher) -> object:
    return json.loads(watcher.query("SELECT status FROM runs")[0]["status"]).get("problem")


def test_restarts_in_a_row_never_have_two_workers_at_once(watcher: Watcher, tmp_path: Path):
    save(watcher, 1)
    starts = tmp_path / "starts"
    for number in range(1, 6):
        daemon = watcher.start(STUB_SECONDS=600, STUB_STARTS=starts)
        wait_until(lambda n=number: len(started(starts)) == n, "its worker has started")
        assert [pid for pid in started(starts) if alive(pid)] == started(starts)[-1:]
        daemon.kill()
        daemon.wait()  # its lock is free when it is gone
    wait_until(lambda: not any(alive(pid) for pid in started(starts)), "the last is gone, too")


def refused(watcher: Watcher) -> list[str]:
    rows = watcher.query("SELECT reason FROM history WHERE state = 'failed'")
    return [str(row["reason"]) for row in rows]


def test_an_answer_with_two_values_of_one_name_fails_its_checkpoint_alone(watcher: Watcher):
    save(watcher, 2)
    assert watcher.run(*QUICK, STUB_CATEGORIES='["car", "bus", "car"]') == 0
    assert len(refused(watcher)) == 2 and "cannot go on" not in watcher.log.read_text()
    assert refused(watcher)[0].startswith("its answer cannot be recorded: AP of 'car' has two")
    # No other attempt gives another answer, and after an upgrade the files are there.
    assert watcher.evaluations() == ["ckpt-1", "ckpt-2"]
    assert cli("requeue", watcher.model_dir, "--failed").returncode == 0
    assert watcher.run(*QUICK) == 0
    assert set(watcher.states().values()) == {"scored"}


def test_values_that_the_database_refuses_are_no_fault_of_the_disk(watcher: Watcher):
    save(watcher, 1)
    assert watcher.run(*QUICK) == 0
    with closing(sqlite3.connect(watcher.database)) as other:
        other.execute(
            "CREATE TRIGGER picky BEFORE INSERT ON metrics WHEN NEW.value = 0.002"
            " BEGIN SELECT raise(ABORT, 'not this value'); END"
        )
        other.commit()
    Manager(watcher.model_dir).save(200, model_tensors(4000, 2))
    Manager(watcher.model_dir).save(300, model_tensors(4000, 3))
    assert watcher.run(*QUICK) == 0
    assert watcher.states() == {"ckpt-1": "scored", "ckpt-2": "failed", "ckpt-3": "scored"}
    (reason,) = refused(watcher)
    assert reason == "its answer cannot be recorded: the database refuses it: not this value"


def test_eval_data_that_keep_changing_restart_the_worker_later_each_time_and_status_says_so(
    watcher: Watcher, tmp_path: Path
):
    save(watcher, 1)
    starts = tmp_path / "starts"
    began = time.monotonic()
    watcher.start("--retry-seconds", 0.1, STUB_CHANGED="*", STUB_STARTS=starts)
    wait_until(lambda: watcher.status().get("held_back"), "it is held back")
    assert "the eval data changed" in watcher.status()["held_back"]
    wait_until(lambda: len(started(starts)) >= 6, "it is started again")
    # After 0.1, 0.2, 0.4, 0.8 and 1.6 s.
    assert time.monotonic() - began > 3.1
    assert watcher.query("SELECT attempts FROM checkpoints")[0]["attempts"] <= 1
    assert watcher.states()["ckpt-1"] in ("pending", "leased")
