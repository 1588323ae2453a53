"""A device of another host whose machine differs proves itself over the line to its agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hosts import AGENT, write_settings
from two_gpus import QUICK, save, scored
from watching import ROOT, STUB, Watcher, wait_until

pytestmark = pytest.mark.slow

MAP = "DetectionBoxes_Precision/mAP"
HOME = {"device": "cpu", "instructions": "x86_64 avx avx2 avx512f"}
THERE = {"device": "cpu", "instructions": "x86_64 avx avx2"}


def there(folder: Path, deviation: float) -> dict[str, Any]:
    """A host whose launcher is a program of this machine, with an environment of its own."""
    steer = {
        "STUB_MACHINE": json.dumps(THERE),
        "STUB_DEVIATION": json.dumps({MAP: deviation}),
        "STUB_LOG": str(folder / "there"),
        "PYTHONPATH": str(ROOT),
    }
    launcher = ["env", *(f"{name}={value}" for name, value in steer.items())]
    table = {"host": "far-1", "device": "cpu", "launcher": launcher, "agent": AGENT}
    return {**table, "python": str(STUB), "cache": str(folder / "cache")}


def start(watcher: Watcher, folder: Path, deviation: float) -> list[str]:
    """Have all scored, and return what was evaluated on the other host."""
    settings = write_settings(folder / "run.toml", [{"device": "cpu"}, there(folder, deviation)])
    save(watcher, range(1, 9))
    steer = {"STUB_MACHINE": json.dumps(HOME), "STUB_SECONDS": 0.5}
    watcher.start("--config", settings, *QUICK, "--start-timeout", 60, **steer)
    wait_until(lambda: len(scored(watcher)) == 8, "all are scored")
    proved = "SELECT 1 FROM machine_proofs"
    wait_until(lambda: watcher.query(proved) or watcher.status()["worker"] == "ready", "compared")
    save(watcher, range(9, 15))
    wait_until(lambda: len(scored(watcher)) == 14, "all are scored")
    wait_until(lambda: watcher.query(proved), "it was compared")
    return (folder / "there").read_text().split()


def standings(watcher: Watcher) -> list[str]:
    rows = watcher.query("SELECT standing FROM machine_state ORDER BY machine")
    return [row["standing"] for row in rows]


def test_another_host_joins_once_it_has_measured_the_same(watcher: Watcher, tmp_path: Path):
    evaluated = start(watcher, tmp_path, 0.0)
    assert watcher.stop() == 0
    assert standings(watcher) == ["reference", "equal"]
    assert len(evaluated) + len(watcher.evaluations()) == 15
    assert watcher.query("SELECT count(*) AS n FROM evaluations") == [{"n": 14}]


def test_another_host_that_measures_something_else_is_left_out_and_home_goes_on(
    watcher: Watcher, tmp_path: Path
):
    evaluated = start(watcher, tmp_path, 2.0**-20)
    problem = wait_until(lambda: watcher.status().get("problem"), "it is told")
    assert problem.startswith("far-1/cpu is left out until the next start: its machine differs")
    assert watcher.stop() == 0
    assert standings(watcher) == ["reference", "differs"] and len(evaluated) == 1
