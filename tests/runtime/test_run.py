"""The whole daemon, as a process, on checkpoints of a small trainer and with a stub evaluator."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from launching import children
from watching import ROOT, Watcher, alive, cli, wait_until

from watcher.checkpoints.bundle import verify

SIZE = 20_000


def save(manager: Manager, count: int, first_step: int = 100) -> None:
    """Save so many trained checkpoints, 100 steps apart."""
    for number in range(count):
        step = first_step + 100 * number
        manager.save(step, model_tensors(SIZE, f"{step}"))


def test_checkpoints_that_were_there_before_are_scored_and_the_best_promoted(watcher: Watcher):
    manager = Manager(watcher.model_dir)
    manager.save(0, {})
    save(manager, 4)
    scores = {"ckpt-2": 0.2, "ckpt-3": 0.5, "ckpt-4": 0.4, "ckpt-5": 0.1}
    assert watcher.run("--top-k", 2, STUB_SCORES=json.dumps(scores)) == 0
    assert watcher.states() == {
        "ckpt-1": "untrained",
        **dict.fromkeys(scores, "scored"),
    }
    assert watcher.evaluations() == ["ckpt-2", "ckpt-3", "ckpt-4", "ckpt-5"]
    assert watcher.leaderboard() == ["ckpt-3", "ckpt-4"]
    for name in ("ckpt-3", "ckpt-4"):
        assert verify(watcher.best_dir / name).global_step in (200, 300)
    assert watcher.best_files() == {
        "checkpoint",
        "best.json",
        *(f"ckpt-{n}.{suffix}" for n in (3, 4) for suffix in ("index", "data-00000-of-00001")),
    }


def test_new_checkpoints_are_noticed_while_it_runs_and_survive_rotation(watcher: Watcher):
    watcher.start()
    manager = Manager(watcher.model_dir, max_to_keep=1)
    for step in range(100, 600, 100):
        name = manager.save(step, model_tensors(SIZE, f"{step}")).name
        wait_until(lambda name=name: watcher.states().get(name), f"{name} is recorded")
    best = ["ckpt-5", "ckpt-4", "ckpt-3"]
    wait_until(lambda: watcher.leaderboard() == best, "the last three are the best three")
    assert set(watcher.states().values()) == {"scored"}
    assert len(watcher.states()) == 5
    assert sorted(path.name for path in watcher.model_dir.glob("ckpt-*.index")) == ["ckpt-5.index"]


def test_pins_of_checkpoints_that_are_not_promoted_are_released(watcher: Watcher):
    save(Manager(watcher.model_dir), 5)
    watcher.run("--top-k", 1)
    pins = list((watcher.model_dir / "watcher" / "pins").iterdir())
    promoted = watcher.query("SELECT sha256 FROM leaderboard")
    assert [path.name for path in pins] == [row["sha256"] for row in promoted]


def test_nothing_of_the_trainers_is_changed(watcher: Watcher):
    save(Manager(watcher.model_dir), 3)

    def trainers_files() -> dict[str, tuple[int, int, bytes]]:
        return {
            path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
            for path in watcher.model_dir.iterdir()
            if path.is_file()
        }

    before = trainers_files()
    watcher.run()
    assert trainers_files() == before
    assert {path.name for path in watcher.model_dir.iterdir()} - before.keys() == {
        "best",
        "watcher",
    }


def test_a_restart_evaluates_nothing_again_and_forgets_nothing(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=None)
    save(manager, 3)
    watcher.run()
    save(manager, 2, first_step=400)
    watcher.run()
    watcher.run()
    assert watcher.evaluations() == [f"ckpt-{n}" for n in range(1, 6)]
    assert set(watcher.states().values()) == {"scored"}


def test_a_killed_daemon_takes_its_worker_along_and_its_evaluation_is_done_again(watcher: Watcher):
    save(Manager(watcher.model_dir), 2)
    daemon = watcher.start(STUB_HANG="ckpt-2")
    at_work = {"ckpt-1": "scored", "ckpt-2": "leased"}
    wait_until(lambda: watcher.states() == at_work, "ckpt-2 is being evaluated")
    worker = children(daemon.pid)[0]
    daemon.kill()
    daemon.wait()
    wait_until(lambda: not alive(worker), "its worker is gone, as stopped as it was")
    assert watcher.run() == 0
    assert watcher.states() == {"ckpt-1": "scored", "ckpt-2": "scored"}
    assert watcher.evaluations() == ["ckpt-1", "ckpt-2", "ckpt-2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_within_ten_seconds_and_returns_the_running_evaluation(
    watcher: Watcher, number: signal.Signals
):
    save(Manager(watcher.model_dir), 1)
    daemon = watcher.start(STUB_SECONDS=600)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is being evaluated")
    worker = children(daemon.pid)[0]
    daemon.send_signal(number)
    assert daemon.wait(timeout=60) == 0
    assert not alive(worker)
    rows = watcher.query("SELECT state, attempts, lease_token FROM checkpoints")
    assert rows == [{"state": "pending", "attempts": 0, "lease_token": None}]


def test_signals_to_all_processes_of_a_job_break_no_evaluation(watcher: Watcher):
    save(Manager(watcher.model_dir), 1)
    process = watcher.start(STUB_SECONDS=0.5)
    wait_until(watcher.evaluations, "an evaluation")
    for worker in children(process.pid):
        os.kill(worker, signal.SIGUSR1)
        os.kill(worker, signal.SIGTERM)
    wait_until(lambda: watcher.states() == {"ckpt-1": "scored"}, "a score")
    assert watcher.evaluations() == ["ckpt-1"]


def test_the_real_worker_ignores_them_too():
    command = [sys.executable, str(ROOT / "evaluators" / "worker.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as worker:
        status = Path(f"/proc/{worker.pid}/status")
        both = (1 << signal.SIGTERM - 1) | (1 << signal.SIGUSR1 - 1)
        wait_until(
            lambda: int(re.search(r"SigIgn:\s*(\w+)", status.read_text())[1], 16) & both == both,
            "both signals ignored",
        )
        os.kill(worker.pid, signal.SIGTERM)
        worker.stdin.close()
        assert worker.wait(timeout=60) == 0


def test_asked_to_finish_again_and_again_it_ends_with_code_0(watcher: Watcher):
    save(Manager(watcher.model_dir), 2)
    process = watcher.start()
    wait_until(lambda: watcher.status().get("pid"), "it runs")
    while process.poll() is None:
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.002)
    assert process.returncode == 0
    assert set(watcher.states().values()) == {"scored"}


def test_a_second_watcher_on_one_model_dir_says_so_and_exits_with_its_own_code(watcher: Watcher):
    save(Manager(watcher.model_dir), 1)
    first = watcher.start()
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "the first one works")
    command = ["run", watcher.model_dir, "--pipeline-config", watcher.pipeline]
    second = cli(*command)
    assert second.returncode == 3
    assert second.stderr.startswith(f"error: another watcher (process {first.pid})")
    assert first.poll() is None


def test_a_checkpoint_that_kills_its_worker_fails_and_the_queue_goes_on(watcher: Watcher):
    save(Manager(watcher.model_dir), 3)
    assert watcher.run("--max-attempts", 2, "--retry-seconds", 0.1, STUB_CRASH="ckpt-2") == 0
    assert watcher.states() == {"ckpt-1": "scored", "ckpt-2": "failed", "ckpt-3": "scored"}
    reason = watcher.query("SELECT reason FROM history WHERE checkpoint = 'ckpt-2'")[0]["reason"]
    assert "SIGSEGV" in reason
    assert watcher.leaderboard() == ["ckpt-3", "ckpt-1"]


@pytest.mark.parametrize("fault", ["STUB_HANG", "STUB_GARBAGE", "STUB_SHORT"])
def test_a_worker_that_hangs_or_lies_is_replaced_and_its_answer_is_not_recorded(
    watcher: Watcher, fault: str
):
    save(Manager(watcher.model_dir), 2)
    # One that hangs does so twice; a machine that is itself held up costs the other an attempt.
    hangs = ["--max-attempts", 2, "--stall-timeout", 3, "--peace", "off"]
    flags = hangs if fault == "STUB_HANG" else ["--max-attempts", 1]
    assert watcher.run(*flags, "--retry-seconds", 0.1, **{fault: "ckpt-1"}) == 0
    assert watcher.states() == {"ckpt-1": "failed", "ckpt-2": "scored"}
    assert watcher.query("SELECT count(*) AS n FROM evaluations") == [{"n": 1}]


def test_a_checkpoint_the_evaluator_rejects_fails_at_once_with_its_reason(watcher: Watcher):
    save(Manager(watcher.model_dir), 1)
    watcher.run(STUB_REJECT="ckpt-1")
    rows = watcher.query("SELECT state, reason FROM history")
    assert rows == [
        {
            "state": "failed",
            "reason": "unmatched_variables: model/head/kernel is not in the checkpoint",
        }
    ]
    assert watcher.evaluations() == ["ckpt-1"]


def test_scores_that_are_not_finite_or_minus_one_never_rank_and_never_stop(watcher: Watcher):
    save(Manager(watcher.model_dir), 4)
    scores = {"ckpt-1": 0.3, "ckpt-2": None, "ckpt-3": -1.0, "ckpt-4": None}
    watcher.run("--patience", 1, STUB_SCORES=json.dumps(scores))
    assert watcher.leaderboard() == ["ckpt-1"]
    assert not watcher.sentinel.exists()
    assert set(watcher.states().values()) == {"scored"}


def test_the_stop_message_agrees_with_the_leaderboard(watcher: Watcher):
    manager = Manager(watcher.model_dir)
    for number, name in enumerate("abc", start=1):
        manager.save(100 * number, model_tensors(1000, name))
    scores = json.dumps({"ckpt-1": 0.3, "ckpt-2": 0.3031, "ckpt-3": 0.2})
    watcher.run("--patience", 2, "--min-delta", 0.005, STUB_SCORES=scores)
    notice = watcher.stop_notice()
    assert notice["reason"] == "patience" and notice["best"]["checkpoint"] == "ckpt-2"
    told = (
        "since ckpt-1 (step 100, score 0.3); ckpt-2 is better by 0.0031, less than min_delta 0.005"
    )
    assert notice["message"].endswith(told)
    explained = cli("explain", watcher.model_dir, COLUMNS="200").stdout
    assert told in explained and watcher.leaderboard()[0] == "ckpt-2"


def test_patience_writes_the_sentinel_and_other_settings_withdraw_it(watcher: Watcher):
    save(Manager(watcher.model_dir), 4)
    scores = json.dumps({"ckpt-1": 0.1, "ckpt-2": 0.5, "ckpt-3": 0.5, "ckpt-4": 0.505})
    watcher.run("--patience", 2, "--min-delta", 0.01, STUB_SCORES=scores)
    notice = watcher.stop_notice()
    assert notice["reason"] == "patience"
    assert notice["best"] == {"checkpoint": "ckpt-4", "global_step": 400, "score": 0.505}
    assert notice["global_step"] == 400
    assert notice["run"] == watcher.query("SELECT uuid FROM runs")[0]["uuid"]
    watcher.run("--patience", 3, "--min-delta", 0.01)
    assert not watcher.sentinel.exists()


def test_a_sentinel_of_another_run_is_left_alone(watcher: Watcher):
    save(Manager(watcher.model_dir), 1)
    theirs = '{"schema": 1, "reason": "patience", "run": "someone else"}'
    watcher.sentinel.write_text(theirs)
    watcher.run("--patience", 5)
    assert watcher.sentinel.read_text() == theirs
    assert "sentinel of another run" in watcher.log.read_text()


def test_a_file_that_is_no_sentinel_stays_and_a_stop_it_hides_is_told(watcher: Watcher):
    save(Manager(watcher.model_dir), 1)
    watcher.sentinel.write_text("notes of a person")
    assert watcher.run("--max-steps", 100, "--grace-seconds", 1) == 4
    assert "the early stop cannot be told" in watcher.log.read_text()
    assert watcher.sentinel.read_text() == "notes of a person"


def test_another_metric_mode_and_k_rank_anew_without_evaluating_again(watcher: Watcher):
    save(Manager(watcher.model_dir), 3)
    watcher.run("--top-k", 3)
    assert watcher.leaderboard() == ["ckpt-3", "ckpt-2", "ckpt-1"]
    watcher.run("--metric", "Loss/total_loss", "--mode", "max", "--top-k", 2)
    assert watcher.leaderboard() == ["ckpt-1", "ckpt-2"]
    best = watcher.query("SELECT checkpoint, score, metric FROM best")[0]
    assert best == {"checkpoint": "ckpt-1", "score": 0.999, "metric": "Loss/total_loss"}
    assert len(watcher.evaluations()) == 3
    assert 'model_checkpoint_path: "ckpt-1"' in (watcher.best_dir / "checkpoint").read_text()


def test_a_changed_evaluation_measures_the_promoted_anew_before_it_replaces_them(watcher: Watcher):
    save(Manager(watcher.model_dir, max_to_keep=1), 3)
    save(manager := Manager(watcher.model_dir, max_to_keep=None), 1, first_step=500)
    watcher.run("--top-k", 2)
    before = watcher.leaderboard()
    assert len(before) == 2
    watcher.run("--top-k", 2, STUB_FINGERPRINT="e" * 64)
    assert watcher.leaderboard() == before
    assert watcher.evaluations() == [*reversed(before), *reversed(before)]
    assert manager.save_counter == 4


def test_two_generations_with_one_name_are_two_checkpoints(watcher: Watcher):
    manager = Manager(watcher.model_dir)
    save(manager, 2)
    watcher.run()
    (watcher.model_dir / "checkpoint").unlink()
    restarted = Manager(watcher.model_dir)
    restarted.save(150, model_tensors(SIZE, "another start"))
    watcher.run()
    assert [row["state"] for row in watcher.query("SELECT state FROM history")] == ["scored"] * 3
    names = {path.stem for path in watcher.best_dir.glob("*.index")}
    sha = watcher.query("SELECT sha256 FROM history")[2]["sha256"]
    assert names == {"ckpt-1", "ckpt-2", f"ckpt-1-{sha[:8]}"}
    assert verify(watcher.best_dir / "ckpt-1").global_step == 100
    assert verify(watcher.best_dir / f"ckpt-1-{sha[:8]}").global_step == 150


def test_foreign_files_in_best_are_reported_and_never_touched(watcher: Watcher):
    save(Manager(watcher.model_dir), 2)
    watcher.best_dir.mkdir()
    (watcher.best_dir / "notes.txt").write_text("mine")
    (watcher.best_dir / "ckpt-2.index").write_text("mine too")
    watcher.run()
    assert (watcher.best_dir / "notes.txt").read_text() == "mine"
    assert (watcher.best_dir / "ckpt-2.index").read_text() == "mine too"
    best = Path(watcher.query("SELECT path FROM best")[0]["path"])
    assert verify(best).global_step == 200
    assert "notes.txt" in watcher.log.read_text()


def test_a_file_removed_from_best_comes_back(watcher: Watcher):
    save(Manager(watcher.model_dir), 1)
    watcher.run()
    (watcher.best_dir / "ckpt-1.data-00000-of-00001").unlink()
    watcher.run()
    assert verify(watcher.best_dir / "ckpt-1").global_step == 100


def test_a_damaged_checkpoint_is_corrupt_with_a_reason_and_not_evaluated(watcher: Watcher):
    save(Manager(watcher.model_dir), 2)
    data = watcher.model_dir / "ckpt-1.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    watcher.run("--grace-seconds", 0.3)
    watcher.run("--grace-seconds", 0.3)
    rows = watcher.query("SELECT checkpoint, state, reason FROM history ORDER BY checkpoint")
    assert [(row["checkpoint"], row["state"]) for row in rows] == [
        ("ckpt-1", "corrupt"),
        ("ckpt-2", "scored"),
    ]
    assert "needed" in rows[0]["reason"]
    assert watcher.evaluations() == ["ckpt-2"]


def test_saves_that_came_and_went_while_it_was_down_are_recorded_as_missed(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=1)
    save(manager, 2)
    watcher.run()
    save(manager, 3, first_step=300)
    watcher.run()
    assert watcher.states() == {
        "ckpt-2": "scored",
        "ckpt-3..ckpt-4": "missed",
        "ckpt-5": "scored",
    }


def test_the_database_deleted_under_it_ends_it_with_a_clear_error(watcher: Watcher):
    save(Manager(watcher.model_dir), 1)
    daemon = watcher.start("--rescan-seconds", 0.2)
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "it works")
    watcher.database.unlink()
    assert daemon.wait(timeout=60) == 1
    assert "was deleted or replaced while in use" in watcher.log.read_text()
