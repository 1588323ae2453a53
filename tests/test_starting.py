"""How a run starts and ends: what a start that fails leaves as it was, and says of itself."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, cli, wait_until

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
    daemon.wait(timeout=15)
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
