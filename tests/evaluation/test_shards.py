"""One evaluation on several devices: who runs which part, and what becomes of one that breaks off.

The GPUs are told of by a stand-in for nvidia-ml-py; the stub evaluator needs none. That the score
is the same to the last bit is shown with each family of models (`test_evaluator_families.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from two_gpus import FAKE
from watching import Watcher, wait_until

pytestmark = pytest.mark.slow

GPUS = [{"uuid": "GPU-a0"}, {"uuid": "GPU-b1"}, {"uuid": "GPU-c2"}]
JOBS = json.dumps(["evaluate", "average", "part"])


class Machine:
    """Three GPUs, and a run on them."""

    def __init__(self, watcher: Watcher, folder: Path) -> None:
        self.watcher, self.log = watcher, folder / "parts"
        self._manager = Manager(watcher.model_dir, max_to_keep=None)
        answers = folder / "gpus.json"
        answers.write_text(json.dumps(GPUS))
        self._environment = {
            "PYTHONPATH": FAKE,
            "FAKE_NVML": answers,
            "CHECKPOINT_WATCHER_DEVICE_LOCK_DIR": folder,
            "STUB_JOBS": JOBS,
            "STUB_PARTS": self.log,
        }

    def start(self, *flags: object, **steer: object) -> None:
        """Start with no checkpoint, and wait until all devices are ready for one."""
        quick = ["--retry-seconds", 0.05, "--device", "gpu:0,gpu:1,gpu:2"]
        self.watcher.start(*quick, *flags, **{**self._environment, **steer})
        wait_until(lambda: self.doing().count("ready") == 3, "all are ready")

    def doing(self) -> list[str]:
        return [one["worker"] for one in self.watcher.status().get("workers", [])]

    def save(self) -> str:
        number = self._manager.save_counter + 1
        self._manager.save(100 * number, model_tensors(4000, number))
        return f"ckpt-{number}"

    def scored(self, name: str) -> None:
        wait_until(lambda: self.watcher.states().get(name) == "scored", f"{name} is scored")

    def parts(self) -> list[str]:
        """What each divided evaluation was told of its parts."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def attempts(self) -> set[int]:
        return {row["attempts"] for row in self.watcher.query("SELECT attempts FROM checkpoints")}


@pytest.fixture
def machine(watcher: Watcher, tmp_path: Path) -> Iterator[Machine]:
    yield Machine(watcher, tmp_path)


def on(**steer: dict[str, Any]) -> str:
    """What the stub does on one of the GPUs alone."""
    return json.dumps({uuid.replace("_", "-"): what for uuid, what in steer.items()})


def test_idle_devices_run_a_part_each_and_the_evaluation_says_how_many(machine: Machine):
    machine.start("--shard", 8)
    machine.scored(machine.save())
    assert machine.parts() == ["ckpt-1 1/3 2/3"]
    (row,) = machine.watcher.query("SELECT details FROM evaluations")
    assert json.loads(row["details"])["parts"] == 3
    assert "evaluating on several devices" in machine.watcher.log.read_text()
    assert machine.watcher.stop() == 0


def test_no_more_devices_share_than_were_asked_for_and_none_by_default(machine: Machine):
    machine.start()
    machine.scored(machine.save())
    assert machine.parts() == []
    assert machine.watcher.stop() == 0
    machine.start("--shard", 2)
    machine.scored(machine.save())
    assert machine.parts() == ["ckpt-2 1/2"]


def test_devices_that_have_a_checkpoint_of_their_own_run_no_part(machine: Machine, tmp_path: Path):
    go = tmp_path / "go"
    machine.start("--shard", 3, STUB_WAIT="ckpt-1,ckpt-2", STUB_WAIT_FOR=go)
    names = [machine.save()]
    wait_until(lambda: machine.doing().count("evaluating") == 3, "the first is divided")
    go.touch()
    machine.scored(names[0])
    assert machine.parts() == ["ckpt-1 1/3 2/3"]
    go.unlink()
    (row,) = machine.watcher.query("SELECT count(*) AS n FROM evaluations")
    assert row["n"] == 1


def test_auto_divides_none_that_takes_less_than_two_minutes(machine: Machine):
    machine.start("--shard", "auto")
    for _ in range(2):
        machine.scored(machine.save())
    assert machine.parts() == []


@pytest.mark.parametrize(
    "fault", ["STUB_CRASH", "STUB_EXHAUSTED", "STUB_NAN", "STUB_WRONG", "STUB_GARBAGE"]
)
def test_a_part_that_breaks_off_is_left_to_who_evaluates_and_counts_as_no_attempt(
    machine: Machine, tmp_path: Path, fault: str
):
    once = tmp_path / "once"
    once.mkdir()
    steer = {fault: "*", "STUB_ONCE": str(once)}
    machine.start("--shard", 3, STUB_ON=on(GPU_b1=steer, GPU_c2=steer, GPU_a0={}))
    machine.scored(machine.save())
    (line,) = machine.parts()
    assert line.split()[0] == "ckpt-1" and "none" in line.split()
    assert machine.attempts() == {1}
    machine.scored(machine.save())
    assert machine.watcher.stop() == 0


def test_one_that_waits_for_a_part_is_not_blamed_for_a_device_that_hangs(
    machine: Machine, tmp_path: Path
):
    once = tmp_path / "once"
    once.mkdir()
    hangs = {"STUB_HANG": "*", "STUB_ONCE": str(once)}
    stalls = ["--stall-timeout", 8, "--peace", "off"]
    machine.start("--shard", 2, *stalls, STUB_ON=on(GPU_b1=hangs))
    machine.scored(machine.save())
    assert machine.parts() == ["ckpt-1 none"] and machine.attempts() == {1}
    assert "made no progress for 8 s" in machine.watcher.log.read_text()


def test_parts_of_an_evaluation_that_broke_off_are_dropped_and_it_is_tried_again_alone(
    machine: Machine, tmp_path: Path
):
    once = tmp_path / "once"
    once.mkdir()
    crash = {"STUB_CRASH": "ckpt-1", "STUB_ONCE": str(once)}
    machine.start("--shard", 3, STUB_PART_SECONDS=0.5, STUB_ON=on(GPU_a0=crash))
    machine.scored(machine.save())
    assert machine.parts() == [] and machine.attempts() == {2}
    assert "evaluation broke off" in machine.watcher.log.read_text()
    # The one that was lost may be at rest: a GPU that nobody needs is nobody's.
    wait_until(lambda: machine.doing().count("ready") >= 2, "two are ready again")
    machine.scored(machine.save())
    assert machine.parts()[0].startswith("ckpt-2 1/")


def test_a_stop_in_the_middle_gives_the_checkpoint_back_once_and_leaves_no_file(
    machine: Machine, tmp_path: Path
):
    steer = {"STUB_WAIT": "*", "STUB_WAIT_FOR": tmp_path / "never"}
    machine.start("--shard", 3, TMPDIR=tmp_path, **steer)
    machine.save()
    wait_until(lambda: machine.doing().count("evaluating") == 3, "it is divided")
    assert machine.watcher.stop() == 0
    rows = machine.watcher.query("SELECT state, attempts, lease_token FROM checkpoints")
    assert rows == [{"state": "pending", "attempts": 0, "lease_token": None}]
    assert list(tmp_path.rglob("part-*.npz*")) == []


def test_eval_data_that_changed_as_a_part_sees_it_starts_all_workers_anew(
    machine: Machine, tmp_path: Path
):
    once = tmp_path / "once"
    once.mkdir()
    changed = {"STUB_CHANGED": "*", "STUB_ONCE": str(once)}
    machine.start("--shard", 3, STUB_SECONDS=0.5, STUB_ON=on(GPU_c2=changed))
    machine.scored(machine.save())
    assert "the eval data changed" in machine.watcher.log.read_text()
    assert machine.attempts() == {1}
