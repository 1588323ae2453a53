"""How a run starts and ends: what a start that fails leaves as it was, and says of itself."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, cli, wait_until

from watcher.checkpoints.bundle import verify

SIZE = 5_000
LOSS = "Loss/total_loss"


def save(watcher: Watcher, count: int) -> Manager:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, count + 1):
        manager.save(100 * number, model_tensors(SIZE, number))
    return manager


def warnings(watcher: Watcher) -> list[str]:
    told: list[str] = json.loads(cli("status", watcher.model_dir, "--json").stdout)["warnings"]
    return told


@pytest.mark.parametrize(
    ("flags", "steer", "reason"),
    [
        (["--metric", "mAPP"], {}, "metric (mAPP) is not reported by this evaluation"),
        ([], {"STUB_REFUSE": "tensorflow is not installed"}, "tensorflow is not installed"),
    ],
)
def test_a_start_that_fails_is_not_told_as_a_kill(
    watcher: Watcher, flags: list[str], steer: dict[str, str], reason: str
):
    assert watcher.run(*flags, **steer) == 1
    (said,) = warnings(watcher)
    assert said.startswith("the watcher ended with an error") and reason in said
    doctor = cli("doctor", "--state-dir", watcher.database.parent, watcher.model_dir)
    assert "ended without saying so" not in doctor.stdout
    assert (
        f"ended with an error: {reason}"
        in watcher.query("SELECT message FROM events WHERE kind = 'ended'")[0]["message"]
    )
    assert watcher.run() == 0
    assert warnings(watcher) == []


def test_closing_its_terminal_ends_it_in_peace_and_nohup_does_not(watcher: Watcher):
    save(watcher, 1)
    outer, inner = pty.openpty()
    daemon = subprocess.Popen(
        watcher.command("--log-format", "live"),
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # its terminal from now on
        env={**os.environ, "STUB_SECONDS": "60"},
    )
    watcher.adopt(daemon)
    os.close(inner)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is being evaluated")
    os.close(outer)
    daemon.wait(timeout=60)
    assert watcher.status() == {}
    assert watcher.states() == {"ckpt-1": "pending"}
    watcher.prefix = ["nohup"]
    daemon = watcher.start()
    wait_until(lambda: watcher.states() == {"ckpt-1": "scored"}, "it works")
    daemon.send_signal(signal.SIGHUP)
    save(watcher, 1)
    wait_until(lambda: watcher.leaderboard()[:1] == ["ckpt-2"], "it goes on")
    assert watcher.stop() == 0


def test_the_log_names_the_best_only_when_the_best_changed(watcher: Watcher):
    save(watcher, 4)
    scores = {"ckpt-1": 0.5, "ckpt-2": 0.2, "ckpt-3": 0.7, "ckpt-4": 0.6}
    assert watcher.run("--log-format", "json", STUB_SCORES=json.dumps(scores)) == 0
    lines = [json.loads(line) for line in watcher.log.read_text().splitlines()]
    best = [line["checkpoint"] for line in lines if line["event"] == "best"]
    assert best == ["ckpt-1", "ckpt-3"]


def by_loss() -> dict[str, str]:
    """Scores of four checkpoints; the stub's loss is 1 - score, so ckpt-1 has the largest."""
    scores = {"ckpt-1": 0.1, "ckpt-2": 0.2, "ckpt-3": 0.3, "ckpt-4": 0.4}
    return {"STUB_SCORES": json.dumps(scores)}


def test_what_deserves_a_place_again_comes_back_from_model_dir(watcher: Watcher):
    save(watcher, 4)
    assert watcher.run("--top-k", 1, **by_loss()) == 0
    assert watcher.leaderboard() == ["ckpt-4"]
    another = [f"--what-if={pair}" for pair in ("metric=loss", "mode=max", "top_k=2")]
    assert cli("explain", watcher.model_dir, *another).stdout.count("in MODEL_DIR") == 2
    assert watcher.run("--metric", "loss", "--mode", "max", "--top-k", 2) == 0
    assert watcher.leaderboard() == ["ckpt-1", "ckpt-2"]
    assert verify(watcher.best_dir / "ckpt-1").global_step == 100
    assert "files are gone" not in watcher.log.read_text()
    assert watcher.evaluations() == ["ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4"]


def test_what_lies_there_with_its_name_is_not_taken_for_it(watcher: Watcher):
    save(watcher, 4)
    assert watcher.run("--top-k", 1, **by_loss()) == 0
    (watcher.model_dir / "other").mkdir()
    Manager(watcher.model_dir / "other").save(500, model_tensors(SIZE, "other"))
    for file in (watcher.model_dir / "other").glob("ckpt-1.*"):
        file.replace(watcher.model_dir / file.name)
    data = watcher.model_dir / "ckpt-2.data-00000-of-00001"
    whole = data.read_bytes()
    data.unlink()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    other = {"STUB_SCORES": json.dumps({"ckpt-1": 0.9})}
    assert watcher.run("--metric", "loss", "--mode", "max", "--top-k", 1, **other) == 0
    assert watcher.leaderboard() == ["ckpt-3"]
    assert verify(watcher.best_dir / "ckpt-3").global_step == 300
    assert "its files are gone" in watcher.log.read_text()
    (leader,) = json.loads(cli("explain", watcher.model_dir, "--json").stdout)["leaders"]
    assert leader["checkpoint"] == "ckpt-1" and not leader["files"] and not leader["in_model_dir"]


def test_what_is_to_be_kept_comes_back_from_model_dir_too(watcher: Watcher):
    save(watcher, 4)
    assert watcher.run("--top-k", 1, **by_loss()) == 0
    assert watcher.run("--top-k", 1, "--keep-last", 3) == 0
    kept = watcher.query("SELECT checkpoint FROM boards WHERE board = 'kept' ORDER BY rank")
    assert [row["checkpoint"] for row in kept] == ["ckpt-4", "ckpt-3", "ckpt-2"]
    assert verify(watcher.model_dir / "kept" / "ckpt-2").global_step == 200


def test_when_the_best_is_lost_the_next_comes_back_from_model_dir(watcher: Watcher):
    save(watcher, 3)
    watcher.start("--top-k", 1, "--rescan-seconds", 0.3)
    wait_until(lambda: list(watcher.states().values()) == ["scored"] * 3, "all are scored")
    wait_until(lambda: watcher.leaderboard() == ["ckpt-3"], "the best is promoted")
    for file in [*watcher.model_dir.rglob("ckpt-3.*")]:
        file.unlink()
    wait_until(lambda: watcher.leaderboard() == ["ckpt-2"], "the next best has its place")
    assert verify(watcher.best_dir / "ckpt-2").global_step == 200


def decided(watcher: Watcher) -> object:
    """All that a start may change of what was decided."""
    row = watcher.query("SELECT metric, mode, board, settings FROM runs")
    events = watcher.query("SELECT kind, message FROM events WHERE kind != 'ended'")
    scores = watcher.query("SELECT score FROM evaluations")
    files = sorted((path.name, path.read_bytes()) for path in watcher.best_dir.iterdir())
    return row, events, scores, files, watcher.leaderboard(), watcher.sentinel.exists()


@pytest.fixture
def starts(tmp_path: Path) -> dict[str, str]:
    """What makes the stub count its starts."""
    return {"STUB_STARTS": str(tmp_path / "starts")}


def test_an_unknown_metric_is_refused_before_a_worker_starts_and_changes_nothing(
    watcher: Watcher, starts: dict[str, str]
):
    save(watcher, 3)
    assert watcher.run("--top-k", 2) == 0
    before = decided(watcher)
    assert watcher.run("--metric", "mAPP", "--top-k", 1, "--patience", 1, **starts) == 1
    assert decided(watcher) == before
    assert "error: metric (mAPP) is not reported by this evaluation" in watcher.log.read_text()
    assert "did you mean mAP?" in watcher.log.read_text()
    assert not Path(starts["STUB_STARTS"]).exists()
    assert any("metric (mAPP)" in warning for warning in warnings(watcher))


def test_where_there_may_be_other_metrics_the_worker_decides_and_nothing_is_changed_before(
    watcher: Watcher, starts: dict[str, str]
):
    save(watcher, 3)
    assert watcher.run("--top-k", 2) == 0
    before = decided(watcher)
    watcher.pipeline.write_text("another metrics set\n")
    assert watcher.run("--metric", "mAPP", "--top-k", 1, **starts) == 1
    assert Path(starts["STUB_STARTS"]).exists()
    assert decided(watcher) == before
    assert watcher.run("--metric", "'Plugin/it'", "--metric-plugin", "it.py:Plugin") == 1
    assert decided(watcher) == before


def test_a_start_that_the_worker_refuses_leaves_the_ranking_as_it_was(watcher: Watcher):
    save(watcher, 3)
    assert watcher.run("--top-k", 1) == 0
    before = decided(watcher)
    flags = ["--metric", "loss", "--mode", "max", "--patience", 1, "--keep-last", 2]
    assert watcher.run(*flags, STUB_REFUSE="tensorflow is not installed") == 1
    dies = ["--retry-seconds", 0.1]
    assert watcher.run(*flags, *dies, STUB_DIE=1) == 1
    assert decided(watcher) == before
    assert not (watcher.model_dir / "kept").exists()
    assert watcher.run(*flags) == 0
    assert watcher.leaderboard()[0] == "ckpt-1" and watcher.sentinel.exists()
    assert len(watcher.evaluations()) == 3


def test_the_same_settings_wait_for_no_worker_and_others_do(watcher: Watcher):
    save(watcher, 3)
    assert watcher.run("--top-k", 2) == 0
    (watcher.best_dir / "checkpoint").unlink()
    watcher.start("--top-k", 2, STUB_MUTE=1)
    wait_until((watcher.best_dir / "checkpoint").exists, "best/ is put right")
    wait_until(lambda: watcher.status().get("decided"), "and it says so")
    watcher.stop()
    watcher.start("--top-k", 1, "--rescan-seconds", 0.1, STUB_MUTE=1)
    wait_until(lambda: watcher.status().get("worker") == "starting", "its worker starts")
    assert cli("keep", watcher.model_dir, "ckpt-1").returncode == 0
    assert not watcher.status()["decided"]
    assert watcher.leaderboard() == ["ckpt-3", "ckpt-2"]
    assert watcher.stop() == 0
