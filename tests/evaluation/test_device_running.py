"""Workers on several devices, and watchers that evaluate on one GPU in turn: real processes.

The GPUs are told of by a stand-in for nvidia-ml-py; the stub evaluator needs none.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from two_gpus import GPUS, TWO, Machine, by_device, evaluated_on, save, scored
from watching import alive, cli, wait_until

from watcher.checkpoints.bundle import verify

pytestmark = pytest.mark.slow


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    here = Machine(tmp_path)
    yield here
    for watcher in here.watchers:
        watcher.end()


def test_two_gpus_evaluate_at_the_same_time_and_each_checkpoint_once(machine: Machine):
    watcher = machine.watcher("run", 24)
    go = machine.folder / "go"
    steer = {"STUB_WAIT": "*", "STUB_WAIT_FOR": go, "STUB_ON": by_device(machine.folder)}
    machine.start(watcher, *TWO, STUB_SECONDS=0.3, **steer)
    both = wait_until(
        lambda: [w for w in watcher.status().get("workers", []) if w["worker"] == "evaluating"][1:],
        "both evaluate",
    )
    assert both[0]["on"] == "gpu:1 Fake GPU (GPU-b1)"
    shown = cli("status", watcher.model_dir).stdout
    assert shown.count("evaluating ckpt-") == 2 and "/8 images" in shown
    go.touch()
    wait_until(lambda: len(scored(watcher)) == 24, "all are scored")
    assert watcher.stop() == 0
    first, second = evaluated_on(machine.folder)
    assert sorted(first + second) == sorted(f"ckpt-{number}" for number in range(1, 25))
    assert len(first) >= 3 and len(second) >= 3
    assert watcher.leaderboard() == ["ckpt-24", "ckpt-23", "ckpt-22"]


def test_when_one_worker_is_killed_the_other_goes_on_and_nothing_is_lost(machine: Machine):
    watcher = machine.watcher("run", 6)
    starts, go = machine.folder / "starts", machine.folder / "go"
    steer = {"STUB_WAIT": "*", "STUB_WAIT_FOR": go, "STUB_STARTS": starts}
    machine.start(watcher, *TWO, "--retry-seconds", 60, **steer)
    wait_until(lambda: len(watcher.evaluations()) >= 2, "both evaluate")
    os.kill(int(starts.read_text().split()[1]), signal.SIGKILL)
    go.touch()
    # But for the one that it had, which waits for its next attempt.
    wait_until(lambda: len(scored(watcher)) == 5, "the other evaluates the rest")
    assert sorted(watcher.states().values()) == ["pending"] + 5 * ["scored"]
    wait_until(lambda: watcher.status()["worker"] == "ready", "the other is there")
    assert watcher.stop() == 0
    assert machine.run(watcher, *TWO) == 0
    assert set(watcher.states().values()) == {"scored"}
    assert watcher.query("SELECT count(*) AS n FROM evaluations") == [{"n": 6}]


def test_a_device_that_cannot_be_used_is_left_out_and_said_to_be(machine: Machine):
    watcher = machine.watcher("run", 4)
    refused = by_device(machine.folder, GPU_b1={"STUB_REFUSE": "no such device"})
    machine.start(watcher, *TWO, STUB_ON=refused)
    wait_until(lambda: len(scored(watcher)) == 4, "the other evaluates all")
    wait_until(lambda: "left out" in str(watcher.status().get("problem")), "status says so")
    expected = "gpu:1 Fake GPU (GPU-b1) is left out until the next start: no such device"
    assert watcher.status()["problem"] == expected
    assert watcher.stop() == 0
    dying = by_device(machine.folder, GPU_a0={"STUB_DIE": "7"}, GPU_b1={"STUB_DIE": "8"})
    assert machine.run(watcher, *TWO, STUB_ON=dying) == 1
    assert "could not be started in 3 attempts" in watcher.log.read_text()


def test_a_gpu_on_which_all_breaks_off_is_held_back_and_the_other_evaluates_all(machine: Machine):
    watcher = machine.watcher("run", 16)
    go = machine.folder / "go"
    waits = {"STUB_WAIT": "*", "STUB_WAIT_FOR": str(go)}
    dies = by_device(machine.folder, GPU_a0=waits, GPU_b1={"STUB_CRASH": "*"})
    machine.start(watcher, *TWO, STUB_ON=dies)
    wait_until(lambda: watcher.status().get("held_back"), "it is held back")
    assert watcher.status()["held_back"].startswith("evaluation on gpu:1 Fake GPU (GPU-b1) is held")
    go.touch()
    wait_until(lambda: len(scored(watcher)) == 16, "the other evaluates all")
    assert watcher.status()["worker"] in ("evaluating", "ready")
    assert watcher.stop() == 0


def test_a_worker_that_would_measure_something_else_is_refused(machine: Machine):
    watcher = machine.watcher("run", 4)
    other = by_device(machine.folder, GPU_b1={"STUB_FINGERPRINT": "e" * 64})
    machine.start(watcher, *TWO, STUB_ON=other, STUB_SECONDS=0.1)
    wait_until(lambda: len(scored(watcher)) == 4, "all are scored")
    wait_until(lambda: "is not used" in str(watcher.status().get("problem")), "status says so")
    assert "its evaluation (" in watcher.status()["problem"]
    assert watcher.stop() == 0
    rows = watcher.query("SELECT DISTINCT fingerprint FROM evaluations")
    assert len(rows) == 1
    assert [bool(names) for names in evaluated_on(machine.folder)].count(True) == 1


def test_auto_evaluates_on_the_free_gpu_by_uuid_or_on_the_cpu_and_says_why(machine: Machine):
    watcher = machine.watcher("run", 1)
    machine.have([{"uuid": "GPU-a0"}, {"uuid": "GPU-b1", "computing": [1]}])
    assert machine.run(watcher, "--device", "auto", STUB_ON=by_device(machine.folder)) == 0
    assert evaluated_on(machine.folder) == [["ckpt-1"], []]
    assert "device=GPU-a0 reason='no process computes on it" in watcher.log.read_text()
    before = sorted(machine.locks.iterdir())
    machine.have([{"uuid": "GPU-a0", "computing": [1]}])
    assert machine.run(watcher, "--device", "auto") == 0
    assert "no GPU is free: gpu:0: process 1 computes on it" in watcher.log.read_text()
    # The CPU is nobody's: no lock is taken for it.
    assert sorted(machine.locks.iterdir()) == before


def test_watchers_share_a_gpu_in_turn_and_status_says_who_has_it(machine: Machine):
    first, second = machine.watcher("first", 2), machine.watcher("second", 2)
    starts = machine.folder / "starts"
    gpu = ["--device", "auto"]
    machine.have([{"uuid": "GPU-a0", "computing": [1]}, GPUS[1]])
    go = machine.folder / "go"
    machine.start(first, *gpu, STUB_WAIT="*", STUB_WAIT_FOR=go, STUB_STARTS=starts)
    wait_until(lambda: first.status().get("worker") == "evaluating", "the first evaluates")
    # What the second sees of the first is its worker, which is no trainer.
    worker = int(starts.read_text())
    machine.have([{"uuid": "GPU-a0", "computing": [1]}, {"uuid": "GPU-b1", "computing": [worker]}])
    machine.start(second, *gpu)
    waiting = wait_until(lambda: second.status().get("waiting_for"), "the second waits")
    assert waiting.startswith("waiting for gpu:1 Fake GPU (GPU-b1): the watcher of first (process ")
    assert second.status()["worker"] == "waiting for the device"
    assert "the watcher of first" in cli("status", second.model_dir).stdout
    go.touch()
    wait_until(lambda: len(scored(second)) == 2, "the second has its turn")
    # Nothing was left to do for the first. When there is, the second has nothing left.
    assert scored(first) == {"ckpt-1", "ckpt-2"} and not alive(worker)
    assert first.status()["worker"] == "at rest"
    save(first, range(3, 4))
    wait_until(lambda: "ckpt-3" in scored(first), "the first has its turn again")
    assert first.stop() == 0 and second.stop() == 0


def test_a_watcher_with_much_to_do_gives_way_after_its_turn_and_comes_back(machine: Machine):
    # A minute of work: it lasts until the other is there, however slow the machine is.
    busy, other = machine.watcher("busy", 100), machine.watcher("other", 1)
    flags = ["--device", "gpu:1", "--device-turn-seconds", 1]
    starts = machine.folder / "starts"
    machine.start(busy, *flags, STUB_SECONDS=0.6, STUB_STARTS=starts)
    wait_until(lambda: scored(busy), "the busy one has begun")
    machine.start(other, *flags)
    wait_until(lambda: scored(other), "the other has its turn")
    assert len(scored(busy)) < 100 and "another watcher's turn has come" in busy.log.read_text()
    done = len(scored(busy))
    wait_until(lambda: len(scored(busy)) > done, "the busy one goes on")
    assert len(starts.read_text().split()) == 2
    rows = busy.query("SELECT DISTINCT attempts FROM checkpoints WHERE state = 'scored'")
    assert rows == [{"attempts": 1}]  # nothing was broken off


def test_a_gpu_of_a_killed_watcher_is_free_at_once(machine: Machine):
    first, second = machine.watcher("first", 1), machine.watcher("second", 1)
    daemon = machine.start(first, "--device", "GPU-b1", STUB_SECONDS=600)
    wait_until(lambda: first.status().get("worker") == "evaluating", "the first evaluates")
    machine.start(second, "--device", "gpu:1")
    wait_until(lambda: second.status().get("waiting_for"), "the second waits")
    daemon.kill()
    wait_until(lambda: scored(second), "the second evaluates")


def test_a_new_best_is_kept_while_a_slower_gpu_measures_a_promoted_one_anew(machine: Machine):
    watcher = machine.watcher("run", 1)
    scores = {"ckpt-1": 0.3, "ckpt-2": 0.2, "ckpt-3": 0.9, "ckpt-4": 0.1}
    steer = {"STUB_SCORES": json.dumps(scores)}
    assert machine.run(watcher, "--device", "gpu:0", "--top-k", 1, **steer) == 0
    # A library was upgraded: ckpt-1 is measured anew, on a GPU that is slow at it.
    go = machine.folder / "go"
    steer |= {"STUB_FINGERPRINT": "e" * 64, "STUB_WAIT": "ckpt-1", "STUB_WAIT_FOR": str(go)}
    daemon = machine.start(watcher, *TWO, "--top-k", 1, **steer)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "ckpt-1 is measured anew")
    manager = Manager(watcher.model_dir, max_to_keep=1)
    for name in ("ckpt-2", "ckpt-3", "ckpt-4"):
        number = int(name.removeprefix("ckpt-"))
        manager.save(100 * number, model_tensors(4000, number))
        wait_until(lambda name=name: name in scored(watcher), f"{name} is scored")
    assert watcher.leaderboard() == ["ckpt-1"] and not (watcher.model_dir / "ckpt-3.index").exists()
    assert "measured anew, until then it stays as it is" in watcher.log.read_text()
    go.touch()
    wait_until(lambda: watcher.leaderboard() == ["ckpt-3"], "the best of all is in best/")
    assert verify(watcher.best_dir / "ckpt-3").global_step == 300
    pins = watcher.database.parent / "pins"
    wait_until(lambda: [i.stem for i in pins.glob("*/*.index")] == ["ckpt-3"], "others are let go")
    daemon.terminate()
    assert daemon.wait(timeout=60) == 0
