"""The worker may have the next checkpoint while it computes metrics, and is replaced when large."""

from __future__ import annotations

import itertools
from pathlib import Path

from fake_trainer import Manager, model_tensors
from watching import Watcher, wait_until


def save(watcher: Watcher, count: int) -> None:
    manager = Manager(watcher.model_dir)
    for number in range(1, count + 1):
        manager.save(100 * number, model_tensors(1000, str(number)))


def test_the_next_checkpoint_runs_while_the_metrics_of_the_last_are_computed(watcher: Watcher):
    save(watcher, 3)
    assert watcher.run(STUB_METRICS_SECONDS=2) == 0
    rows = watcher.query(
        "SELECT c.name, e.started_at, e.evaluated_at FROM evaluations e"
        " JOIN checkpoints c ON c.id = e.checkpoint_id ORDER BY c.global_step"
    )
    assert [row["name"] for row in rows] == ["ckpt-1", "ckpt-2", "ckpt-3"]
    for earlier, later in itertools.pairwise(rows):
        assert later["started_at"] < earlier["evaluated_at"] < later["evaluated_at"]
    assert watcher.leaderboard() == ["ckpt-3", "ckpt-2", "ckpt-1"]


def test_a_stop_gives_back_both_and_counts_no_attempt(watcher: Watcher):
    save(watcher, 3)
    watcher.start(STUB_METRICS_SECONDS=60)
    both = {"ckpt-1": "leased", "ckpt-2": "leased", "ckpt-3": "pending"}
    wait_until(lambda: watcher.states() == both, "two are under way")
    assert watcher.stop() == 0
    rows = watcher.query("SELECT DISTINCT state, attempts, lease_token FROM checkpoints")
    assert rows == [{"state": "pending", "attempts": 0, "lease_token": None}]


def test_one_that_breaks_the_worker_takes_its_neighbour_along_once_at_most(watcher: Watcher):
    save(watcher, 3)
    flags = ["--max-attempts", 2, "--retry-seconds", 0.05]
    assert watcher.run(*flags, STUB_CRASH="ckpt-2", STUB_METRICS_SECONDS=0.3) == 0
    assert watcher.states() == {"ckpt-1": "scored", "ckpt-2": "failed", "ckpt-3": "scored"}


def test_a_worker_that_has_grown_too_large_is_replaced_after_its_evaluation(
    watcher: Watcher, tmp_path: Path
):
    save(watcher, 3)
    starts = tmp_path / "starts"
    assert watcher.run("--worker-memory-limit", "1MB", STUB_STARTS=starts) == 0
    assert set(watcher.states().values()) == {"scored"}
    assert len(starts.read_text().split()) >= 3
    assert "it had grown too large" in watcher.log.read_text()
    attempts = watcher.query("SELECT DISTINCT attempts FROM checkpoints")
    assert attempts == [{"attempts": 1}]
