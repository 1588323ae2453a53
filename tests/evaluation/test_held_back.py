"""A device or a set-up that breaks for a while: no checkpoint is to blame, and none is lost."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from health_client import listen
from stores import NOW, add
from watching import Watcher, cli, wait_until

from watcher.store import Store

QUICK = ["--retry-seconds", 0.02]


def save(watcher: Watcher, count: int, keep: int | None = 3) -> None:
    manager = Manager(watcher.model_dir, keep)
    for number in range(1, count + 1):
        manager.save(100 * number, model_tensors(1000, number))


def rows(watcher: Watcher, columns: str) -> list[tuple[object, ...]]:
    found = watcher.query(f"SELECT {columns} FROM checkpoints ORDER BY id")
    return [tuple(row.values()) for row in found]


def pins(watcher: Watcher) -> int:
    return len(list((watcher.model_dir / "watcher" / "pins").iterdir()))


def kinds(watcher: Watcher) -> list[str]:
    asked = "SELECT kind FROM events WHERE kind IN ('held_back', 'recovered') ORDER BY id"
    return [row["kind"] for row in watcher.query(asked)]


# -- the device breaks for a while


def test_while_the_device_is_broken_nothing_fails_and_all_is_scored_after_the_repair(
    watcher: Watcher, tmp_path: Path
):
    broken, told = tmp_path / "broken", tmp_path / "told"
    broken.touch()
    notify = [f"--notify-command={part}" for part in ("sh", "-c", f"cat >> {told}")]
    client = listen(watcher, *QUICK, *notify, "--max-attempts", 1, STUB_BREAKS_IF=broken)
    save(watcher, 8, keep=None)
    wait_until(lambda: len(watcher.states()) == 8, "all are pinned")
    for file in watcher.model_dir.glob("ckpt-*"):
        file.unlink()  # the trainer's rotation
    wait_until(lambda: watcher.status().get("worker") == "held back", "it is held back")
    wait_until(lambda: len(watcher.evaluations()) >= 6, "it is probed")
    wait_until(lambda: watcher.status().get("worker") == "held back", "the probe failed")
    why = "different checkpoints in a row broke off: the worker is gone: ended with exit code 134"
    assert why in client.told("/readyz")["reason"] and client.code("/readyz") == 503
    assert why in client.told("/readyz")["degraded"]["device"]
    assert client.code("/healthz") == 200
    shown = cli("status", watcher.model_dir, COLUMNS="600").stdout
    assert why in shown and "see worker.log" in shown
    assert set(watcher.states().values()) <= {"pending", "leased"}
    assert {attempts for (attempts,) in rows(watcher, "attempts")} <= {0, 1}
    assert pins(watcher) == 8
    wait_until(lambda: told.exists() and "degraded" in told.read_text(), "it is told")
    broken.unlink()
    wait_until(lambda: set(watcher.states().values()) == {"scored"}, "all are scored")
    wait_until(lambda: client.code("/readyz") == 200, "it is ready again")
    assert kinds(watcher) == ["held_back", "recovered"]
    wait_until(lambda: "recovered" in told.read_text(), "both are told")
    assert watcher.stop() == 0
    events = [json.loads(line)["event"] for line in told.read_text().splitlines()]
    assert (events.count("degraded"), events.count("recovered")) == (1, 1)
    log = watcher.log.read_text()
    assert log.count("device held back") == log.count("the device works again") == 1


@pytest.mark.parametrize("fault", ["STUB_EXHAUSTED", "STUB_CHANGED"])
def test_a_run_that_ends_when_idle_ends_with_the_reason_and_loses_nothing(
    watcher: Watcher, fault: str
):
    save(watcher, 5, keep=None)
    assert watcher.run("--retry-seconds", 0.01, **{fault: "*"}) == 4
    ended = watcher.query("SELECT message FROM events WHERE kind = 'ended'")[0]["message"]
    assert "5 checkpoints cannot be evaluated" in ended and "is held back" in ended
    assert "start again" in watcher.log.read_text()
    assert rows(watcher, "state, attempts") == 5 * [("pending", 0)]
    assert watcher.run() == 0
    assert set(watcher.states().values()) == {"scored"}


def test_after_sigusr1_it_ends_too_and_with_the_reason(watcher: Watcher):
    save(watcher, 4, keep=None)
    daemon = watcher.start("--retry-seconds", 0.01, STUB_CRASH="*")
    wait_until(lambda: watcher.status().get("held_back"), "it is held back")
    daemon.send_signal(signal.SIGUSR1)
    assert daemon.wait(timeout=60) == 4
    assert rows(watcher, "state, attempts") == 4 * [("pending", 0)]


def test_a_worker_that_can_never_be_started_again_does_not_hold_up_the_end(
    watcher: Watcher, tmp_path: Path
):
    broken, starts = tmp_path / "broken", tmp_path / "starts"
    flags = ["--retry-seconds", 0.01]
    daemon = watcher.start(*flags, STUB_DIE_IF=broken, STUB_STARTS=starts)
    wait_until(lambda: watcher.status().get("worker") == "ready", "it works")
    broken.touch()
    os.kill(int(starts.read_text()), signal.SIGKILL)
    save(watcher, 1)
    wait_until(lambda: watcher.states() == {"ckpt-1": "pending"}, "one waits")
    daemon.send_signal(signal.SIGUSR1)
    assert daemon.wait(timeout=60) == 4
    assert "workers in a row could not be started on cpu" in watcher.log.read_text()


def test_a_worker_of_before_that_never_ends_does_not_hold_up_the_end(watcher: Watcher):
    save(watcher, 1)
    state_dir = watcher.model_dir / "watcher"
    state_dir.mkdir()
    with (state_dir / "worker.lock").open("w") as undead:
        fcntl.flock(undead, fcntl.LOCK_EX)
        assert watcher.run("--start-timeout", 1) == 4
    assert "an earlier worker has not ended yet" in watcher.log.read_text()
    assert watcher.states() == {"ckpt-1": "pending"}


# -- checkpoints that are to blame themselves


def test_bad_neighbours_fail_in_the_end_though_nothing_else_waits(watcher: Watcher):
    save(watcher, 5, keep=None)
    bad = ["ckpt-3", "ckpt-4", "ckpt-5"]
    assert watcher.run(*QUICK, "--max-attempts", 2, STUB_CRASH=",".join(bad)) == 0
    good = {"ckpt-1": "scored", "ckpt-2": "scored"}
    assert watcher.states() == {**good, **dict.fromkeys(bad, "failed")}
    # The device was tried with one that is known to be good; its score is that of before.
    assert watcher.evaluations().count("ckpt-2") > 1
    assert watcher.query("SELECT count(*) AS n FROM evaluations") == [{"n": 2}]
    assert kinds(watcher)[:2] == ["held_back", "recovered"]


def test_the_only_one_that_waits_fails_after_its_attempts_and_keeps_its_files(watcher: Watcher):
    save(watcher, 1)
    assert watcher.run(*QUICK, STUB_EXHAUSTED="*") == 0
    assert rows(watcher, "state, attempts, may_pass") == [("failed", 3, 1)]
    for file in watcher.model_dir.glob("ckpt-*"):
        file.unlink()
    assert watcher.run() == 0 and pins(watcher) == 1
    assert cli("requeue", watcher.model_dir, "--failed").returncode == 0
    assert watcher.run() == 0
    assert watcher.states() == {"ckpt-1": "scored"}


def test_the_files_of_one_that_can_never_be_evaluated_are_released(watcher: Watcher):
    save(watcher, 2)
    assert watcher.run(*QUICK, STUB_NAN="ckpt-1") == 0
    assert rows(watcher, "state, may_pass") == [("failed", 0), ("scored", 0)]
    assert pins(watcher) == 1


# -- the rows


def fail(store: Store, *, may_pass: bool) -> None:
    lease = store.queue.lease_next(NOW, 60)
    assert lease is not None
    store.queue.record_failure(lease, "SIGSEGV", NOW, may_pass=may_pass)


def test_attempts_that_were_taken_back_let_wait_what_failed_by_them(store: Store):
    for counter in (1, 2, 3):
        add(store, counter)
    fail(store, may_pass=True)
    fail(store, may_pass=False)
    lease = store.queue.lease_next(NOW, 60)
    assert lease is not None
    store.queue.retry_later(lease, "SIGSEGV", NOW, 50.0)
    assert store.queue.forgive({1: 1, 2: 1, 3: 1}, "the device", NOW) == ["ckpt-1", "ckpt-3"]
    leases = [store.queue.lease_next(NOW, 60) for _ in range(3)]
    found = [(lease.name, lease.attempt) for lease in leases if lease]
    assert found == [("ckpt-1", 1), ("ckpt-3", 1)]


def test_a_retry_that_does_not_count_leaves_the_attempts_as_they_were(store: Store):
    add(store, 1)
    for _ in range(5):
        lease = store.queue.lease_next(NOW, 60)
        assert lease is not None and lease.attempt == 1
        store.queue.retry_later(lease, "SIGSEGV", NOW, 0.0, counted=False)


def test_a_probe_is_one_that_was_not_tried_or_that_which_was_tried_first(store: Store):
    for counter in (1, 2, 3):
        add(store, counter)
    names = [
        lease.name for _ in range(3) if (lease := store.queue.lease_next(NOW, 60, after=(2, 1)))
    ]
    assert names == ["ckpt-3", "ckpt-2", "ckpt-1"]


def test_pins_of_what_may_be_tried_again_stay_within_the_bytes_that_what_waits_leaves(
    store: Store,
):
    for counter in range(1, 6):
        add(store, counter)
    for _ in range(3):
        fail(store, may_pass=True)
    # Each takes 10 bytes, two wait, and the newest comes first.
    assert store.queue.to_try_again(None) == {1, 2, 3}
    assert store.queue.to_try_again(45) == {2, 3}
    assert store.queue.to_try_again(39) == {3}
    assert store.queue.to_try_again(20) == set()
