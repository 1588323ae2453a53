"""File systems that raise no events, have no hard links, or cannot read what they hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from faults import end_strace, need_strace
from watching import CLI, ROOT, Watcher, wait_until

from watcher.checkpoints.bundle import verify


@pytest.fixture
def silent(watcher: Watcher, tmp_path: Path) -> list[object]:
    """The daemon sees model_dir through FUSE; the trainer writes to what lies beneath."""
    through_fuse(watcher)
    state, watcher.best_dir = tmp_path / "state", tmp_path / "best"
    watcher.database = state / "watcher.db"
    return ["--state-dir", state, "--best-dir", watcher.best_dir]


def through_fuse(watcher: Watcher, *options: str) -> None:
    """Let the daemon see model_dir through FUSE."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/fuse, readable and writable for this user")
    view = [
        sys.executable,
        str(ROOT / "tests" / "helpers" / "silent_fs.py"),
        *options,
        str(watcher.model_dir),
    ]
    watcher.prefix = ["unshare", "--user", "--map-root-user", "--mount", *view]
    trial = subprocess.run([*watcher.prefix, "true"], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"cannot mount FUSE in a namespace of this user: {trial.stderr.strip()}")


def test_on_a_file_system_without_events_each_checkpoint_is_found_and_pinned_by_copy(
    watcher: Watcher, silent: list[object]
):
    daemon = watcher.start(*silent, "--rescan-seconds", 10, "--top-k", 2)
    wait_until(lambda: watcher.status().get("worker") == "ready", "the daemon is ready")
    said = "FUSE announces no file that another machine or program writes"
    assert watcher.status()["watch"] == said, "the kernel takes the watch, and says nothing"
    assert f"degraded to polling: {said}" in watcher.log.read_text()
    manager = Manager(watcher.model_dir, max_to_keep=3)
    began = time.monotonic()
    for number in range(1, 7):
        name = manager.save(100 * number, model_tensors(4000, number)).name
        wait_until(lambda name=name: name in watcher.states(), "it is found")
    assert time.monotonic() - began < 40, "by polls: rescans would find five of them in 50 s"
    expected = {f"ckpt-{number}": "scored" for number in range(1, 7)}
    wait_until(lambda: watcher.states() == expected, "all are scored, none is missed")
    wait_until(lambda: watcher.leaderboard() == ["ckpt-6", "ckpt-5"], "the best are promoted")
    for name in watcher.leaderboard():
        verify(watcher.best_dir / name)
    assert "another file system" in watcher.status()["pins"]
    pinned = "SELECT pin_method AS how FROM checkpoints WHERE pin_path IS NOT NULL"
    wait_until(lambda: watcher.query(pinned) == 2 * [{"how": "copy"}], "the others are let go of")
    daemon.terminate()
    assert daemon.wait(timeout=60) == 0


def test_a_checkpoint_that_cannot_be_read_is_told_and_holds_up_no_other(watcher: Watcher):
    need_strace()
    daemon = watcher.start("--rescan-seconds", 1, "--grace-seconds", 2)
    wait_until(lambda: watcher.status().get("worker") == "ready", "the daemon is ready")
    bad = watcher.model_dir / "ckpt-1.index"
    inject = ["-f", f"--trace-path={bad}", "--trace=openat", "--inject=openat:error=EIO"]
    strace = ["strace", "-qq", "-o", os.devnull, *inject, "-p", str(daemon.pid)]
    fault = subprocess.Popen(strace, stderr=subprocess.DEVNULL)
    try:
        traced = Path(f"/proc/{daemon.pid}/status")
        wait_until(lambda: "TracerPid:\t0" not in traced.read_text(), "it is traced")
        manager = Manager(watcher.model_dir)
        for step in (100, 200, 300):
            manager.save(step, model_tensors(4000, step))
        wait_until(lambda: watcher.states().get("ckpt-3") == "scored", "the others go on")
        said = "cannot read ckpt-1.index: Input/output error"
        wait_until(lambda: watcher.status()["problem"] == said, "status says so")
        wait_until(lambda: watcher.states().get("ckpt-1") == "missed", "it is not called corrupt")
    finally:
        end_strace(fault)
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "it is read when that works")
    wait_until(lambda: watcher.status()["problem"] is None, "the problem is gone")


def test_all_of_a_run_can_lie_where_links_are_refused_with_eio(watcher: Watcher):
    """As on rclone's mount; there SQLite would take write-ahead logging without a word."""
    through_fuse(watcher, "--writable")
    manager = Manager(watcher.model_dir)
    for step in (100, 200, 300):
        manager.save(step, model_tensors(4000, step))
    assert watcher.run("--top-k", 1) == 0, watcher.log.read_text()
    assert watcher.states() == {f"ckpt-{number}": "scored" for number in (1, 2, 3)}
    assert watcher.leaderboard() == ["ckpt-3"]
    verify(watcher.best_dir / "ckpt-3")
    methods = watcher.query("SELECT pin_method AS how FROM checkpoints WHERE pin_path IS NOT NULL")
    assert methods == [{"how": "copy"}]
    assert watcher.query("PRAGMA journal_mode") == [{"journal_mode": "delete"}]
    said = watcher.log.read_text()
    assert "has no hard links (Input/output error)" in said
    assert "the database is on fuse: no watcher on another machine may use it" in said
    command = [*CLI, "doctor", watcher.model_dir, "--pipeline-config", watcher.pipeline, "--json"]
    ended = subprocess.run(
        [*watcher.prefix, *map(str, command), "--python", "/bin/false"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = {row["check"]: row for row in json.loads(ended.stdout)["findings"]}
    assert "(Input/output error)" in found["hard links"]["message"]
    assert "is on fuse" in found["database place"]["message"]
