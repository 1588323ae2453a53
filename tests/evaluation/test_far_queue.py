"""Runs with devices of other hosts alone: what cannot be done there keeps nothing else waiting."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from hosts import AGENT, write_settings
from two_gpus import save
from watching import ROOT, STUB, Watcher, cli, wait_until

pytestmark = pytest.mark.slow


def only_far(folder: Path, **more: Any) -> list[object]:
    """The flags of a run on one host, whose launcher is a program of this machine."""
    table = {"host": "far-1", "device": "cpu", "launcher": ["env", f"PYTHONPATH={ROOT}"]}
    table |= {"agent": AGENT, "python": str(STUB), "cache": str(folder / "cache")}
    settings = write_settings(folder / "run.toml", [{**table, **more}])
    return ["--config", settings, "--retry-seconds", 0.05]


def test_a_checkpoint_that_lacks_on_the_host_keeps_no_other_one_waiting(
    watcher: Watcher, tmp_path: Path
):
    mirror = tmp_path / "mirror"
    save(watcher, range(1, 3))
    watcher.start(*only_far(tmp_path, path_map={str(watcher.model_dir): str(mirror)}))

    def leased() -> list[str]:
        states = watcher.states()
        return [one for one in states if len(states) == 2 and states[one] == "leased"]

    (lacking,) = wait_until(leased, "one is leased")
    ignored = shutil.ignore_patterns("requests", f"{lacking}.*")
    shutil.copytree(watcher.model_dir, mirror, ignore=ignored)
    wait_until(lambda: "scored" in watcher.states().values(), "the other one is scored", 90)
    assert watcher.states()[lacking] != "scored"
    assert watcher.stop() == 0
    rows = watcher.query("SELECT attempts FROM checkpoints")
    assert all(row["attempts"] <= 1 for row in rows)


def test_a_checkpoint_that_never_goes_to_the_host_ends_a_run_that_is_to_end(
    watcher: Watcher, tmp_path: Path
):
    manager = Manager(watcher.model_dir, max_to_keep=None)
    manager.save(100, model_tensors(1000, 1))
    daemon = watcher.start(*only_far(tmp_path, cache_limit=20_000))
    wait_until(lambda: watcher.states() == {"ckpt-1": "scored"}, "what fits is scored")
    manager.save(200, model_tensors(20_000, 2))
    wait_until(lambda: watcher.states().get("ckpt-2") == "leased", "the other one is found")
    daemon.send_signal(signal.SIGUSR1)
    assert daemon.wait(60) == 4
    assert "1 checkpoints cannot be evaluated: " in watcher.log.read_text()
    assert watcher.states()["ckpt-2"] == "pending"


def test_an_average_that_no_device_of_this_machine_can_write_fails_and_the_run_ends(
    watcher: Watcher, tmp_path: Path
):
    save(watcher, range(1, 3))
    assert watcher.run() == 0
    assert cli("average", watcher.model_dir, "ckpt-1,ckpt-2").returncode == 0
    assert watcher.run(*only_far(tmp_path)) == 0
    (row,) = watcher.query("SELECT state, reason FROM averages")
    assert row == {
        "state": "failed",
        "reason": "no device of this machine is left to write it",
    }


def test_an_average_that_waits_for_a_device_that_is_broken_keeps_no_run_from_its_end(
    watcher: Watcher, tmp_path: Path
):
    starts, broken = tmp_path / "starts", tmp_path / "broken"
    far = {"launcher": ["env", "-u", "STUB_DIE_IF", "-u", "STUB_STARTS", f"PYTHONPATH={ROOT}"]}
    flags = only_far(tmp_path, **far)
    text = (tmp_path / "run.toml").read_text()
    (tmp_path / "run.toml").write_text(f'[[device]]\ndevice = "cpu"\n{text}')
    save(watcher, range(1, 3))
    daemon = watcher.start(*flags, STUB_STARTS=starts, STUB_DIE_IF=broken)
    wait_until(lambda: [*watcher.states().values()] == ["scored"] * 2, "both are scored")
    broken.touch()
    os.kill(int(starts.read_text().split()[-1]), signal.SIGKILL)
    assert cli("average", watcher.model_dir, "ckpt-1,ckpt-2").returncode == 0
    daemon.send_signal(signal.SIGUSR1)
    assert daemon.wait(60) == 4
    assert watcher.query("SELECT state FROM averages") == [{"state": "waiting"}]
    # Once the device is mended, the next start writes it.
    broken.unlink()
    assert watcher.run() == 0
    assert watcher.query("SELECT state FROM averages") == [{"state": "scored"}]


def test_a_run_that_ends_when_idle_ends_where_its_only_host_is_never_reached(
    watcher: Watcher, tmp_path: Path
):
    assert watcher.run(*only_far(tmp_path, launcher=["false"])) == 4
    said = watcher.log.read_text()
    assert "checkpoints cannot be evaluated: far-1 cannot be reached" in said
