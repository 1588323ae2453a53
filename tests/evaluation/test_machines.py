"""A worker on a machine that differs proves itself by a scored checkpoint: real processes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from two_gpus import QUICK, TWO, Machine, by_device, evaluated_on, save, scored
from watching import Watcher, cli, wait_until

pytestmark = pytest.mark.slow

MAP, LOSS = "DetectionBoxes_Precision/mAP", "Loss/total_loss"
HOME = {"device": "cpu", "instructions": "x86_64 avx avx2 avx512f"}
OTHER = {"device": "cpu", "instructions": "x86_64 avx avx2"}
LITTLE = 2.0**-20  # 9.5e-07


def on(parts: dict[str, str], **deviation: float | None) -> dict[str, str]:
    """Steer the stub to be on a machine, where it measures something else by so much."""
    names = {"map": MAP, "loss": LOSS}
    deviating = {names[name]: more for name, more in deviation.items()}
    return {"STUB_MACHINE": json.dumps(parts), "STUB_DEVIATION": json.dumps(deviating)}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    here = Machine(tmp_path)
    yield here
    for watcher in here.watchers:
        watcher.end()


@pytest.fixture
def run(watcher: Watcher) -> Watcher:
    """A run whose two first checkpoints were scored on one machine."""
    save(watcher, range(1, 3))
    drawn = json.dumps({"ckpt-1": [0.001, 0.002], "ckpt-2": [0.002, 0.003]})
    assert watcher.run(*QUICK, STUB_REPLICATES=drawn, **on(HOME)) == 0
    watcher.evaluated.unlink()
    return watcher


def recorded(watcher: Watcher) -> list[Any]:
    """All that is recorded of the evaluations of the two first checkpoints, and their places."""
    first = "(SELECT id FROM all_checkpoints WHERE name IN ('ckpt-1', 'ckpt-2'))"
    of = f"evaluation_id IN (SELECT id FROM evaluations WHERE checkpoint_id IN {first})"
    return [
        watcher.query(f"SELECT * FROM evaluations WHERE checkpoint_id IN {first}"),
        watcher.query(f"SELECT * FROM metrics WHERE {of}"),
        watcher.query(f"SELECT * FROM replicates WHERE {of}"),
        watcher.query(f"SELECT name, state, attempts FROM checkpoints WHERE id IN {first}"),
    ]


def standings(watcher: Watcher) -> list[tuple[str, int]]:
    rows = watcher.query("SELECT standing, evaluations FROM machine_state ORDER BY machine")
    return [(row["standing"], row["evaluations"]) for row in rows]


def doing(watcher: Watcher) -> list[str]:
    return sorted(one["worker"] for one in watcher.status().get("workers", []))


def errors(watcher: Watcher) -> str:
    return watcher.log.read_text().rsplit("\nerror: ", 1)[-1]


def test_a_worker_on_an_equal_machine_measures_nothing_again(run: Watcher):
    save(run, range(3, 4))
    assert run.run(*QUICK, **on(HOME)) == 0
    assert run.evaluations() == ["ckpt-3"]
    assert standings(run) == [("reference", 3)]
    rows = run.query("SELECT checkpoint, machine FROM history")
    assert [row["machine"] for row in rows] == [1, 1, 1]


def test_one_that_measures_the_same_joins_for_good_and_its_proof_is_no_evaluation(run: Watcher):
    before, board = recorded(run), run.leaderboard()
    save(run, range(3, 4))
    assert run.run(*QUICK, **on(OTHER)) == 0
    # The newest of the reference is measured again, before anything else.
    assert run.evaluations() == ["ckpt-2", "ckpt-3"]
    assert recorded(run) == before
    assert run.leaderboard() == ["ckpt-3", *board]
    assert standings(run) == [("reference", 2), ("equal", 1)]
    proof = run.query("SELECT * FROM machine_proofs")[0]
    assert (proof["equal"], proof["compared"], proof["differences"]) == (1, 3, "[]")
    save(run, range(4, 5))
    assert run.run(*QUICK, **on(OTHER)) == 0
    assert run.evaluations() == ["ckpt-2", "ckpt-3", "ckpt-4"]
    assert not json.loads(cli("explain", run.model_dir, "--json").stdout)["machines"]


def test_nothing_is_measured_again_while_nothing_waits(run: Watcher):
    assert run.run(*QUICK, **on(OTHER)) == 0
    assert run.evaluations() == [] and run.query("SELECT * FROM machine_proofs") == []


def test_the_only_machine_that_measures_something_else_ends_the_run_and_says_how_it_differs(
    run: Watcher,
):
    before, board = recorded(run), run.leaderboard()
    save(run, range(3, 4))
    differs = on(OTHER, map=LITTLE, loss=-LITTLE / 2)
    assert run.run(*QUICK, **differs) == 1
    assert run.evaluations() == ["ckpt-2"]
    assert recorded(run) == before and run.leaderboard() == board
    assert run.states()["ckpt-3"] == "pending"
    said = errors(run)
    assert "cpu: its machine differs from that of the scores (instructions without avx512f)" in said
    assert "ckpt-2 measured again is not the same: 2 of 3 figures differ" in said
    assert f"{MAP} by 9.5e-07 (0.00200095" in said
    assert "--accept-host-differences 1e-06" in said
    ended = json.loads(run.query("SELECT status FROM runs")[0]["status"])
    assert ended["refused"] and "its machine differs" in ended["ended"]
    # It is known from now on: another start ends at once, and measures nothing again.
    assert run.run(*QUICK, **differs) == 1
    assert run.evaluations() == ["ckpt-2"]
    assert standings(run) == [("reference", 2), ("differs", 0)]


def test_a_tolerance_lets_it_in_and_that_is_recorded_and_told(run: Watcher):
    save(run, range(3, 4))
    differs = on(OTHER, map=LITTLE)
    assert run.run(*QUICK, "--accept-host-differences", LITTLE / 2, **differs) == 1
    assert run.states()["ckpt-3"] == "pending"
    run.start(*QUICK, "--accept-host-differences", LITTLE, **differs)
    wait_until(lambda: run.states()["ckpt-3"] == "scored", "it is scored")
    wait_until(lambda: run.status().get("worker") == "ready", "it is told")
    assert (
        "is let in by --accept-host-differences 9.53674e-07" in cli("status", run.model_dir).stdout
    )
    assert run.stop() == 0
    assert run.evaluations() == ["ckpt-2", "ckpt-3"]
    shown = " ".join(cli("status", run.model_dir).stdout.split())
    assert "ckpt-3 was measured on another machine (instructions without avx512f)" in shown
    assert standings(run) == [("reference", 2), ("accepted", 1)]
    assert run.query("SELECT tolerance FROM machine_state")[1] == {"tolerance": LITTLE}
    told = json.loads(cli("explain", run.model_dir, "--json").stdout)["machines"]
    assert [(one["standing"], one["checkpoints"]) for one in told] == [("accepted", ["ckpt-3"])]
    explained = " ".join(cli("explain", run.model_dir).stdout.split())
    said = "ckpt-3 was measured on another machine (instructions without avx512f), whose figures"
    assert f"{said} differ by up to 9.5e-07; --accept-host-differences" in explained
    compared = cli("compare", run.model_dir, "ckpt-2", "ckpt-3")
    assert "ckpt-3 (step 300) was measured on another machine" in compared.stdout
    both = json.loads(cli("compare", run.model_dir, "ckpt-2", "ckpt-3", "--json").stdout)
    assert [both[end]["machine_standing"] for end in ("from", "to")] == ["reference", "accepted"]


def test_figures_that_are_drawn_at_random_are_not_compared(watcher: Watcher):
    save(watcher, range(1, 2))
    drawn = {"STUB_RANDOM": json.dumps([LOSS])}
    assert watcher.run(*QUICK, **on(HOME), **drawn) == 0
    save(watcher, range(2, 3))
    assert watcher.run(*QUICK, **on(OTHER, loss=0.5), **drawn) == 0
    assert standings(watcher) == [("reference", 1), ("equal", 1)]


def test_no_number_on_both_machines_is_the_same(watcher: Watcher):
    save(watcher, range(1, 2))
    assert watcher.run(*QUICK, **on(HOME, loss=None)) == 0
    save(watcher, range(2, 3))
    assert watcher.run(*QUICK, **on(OTHER, loss=None)) == 0
    assert standings(watcher) == [("reference", 1), ("equal", 1)]


def test_a_proof_that_breaks_off_says_nothing_and_is_tried_again(run: Watcher, tmp_path: Path):
    once = tmp_path / "once"
    once.mkdir()
    before = recorded(run)
    save(run, range(3, 4))
    assert run.run(*QUICK, STUB_KILL="ckpt-2", STUB_ONCE=once, **on(OTHER)) == 0
    # By the next one, since the first may be to blame.
    assert run.evaluations() == ["ckpt-2", "ckpt-1", "ckpt-3"]
    assert recorded(run) == before
    assert standings(run) == [("reference", 2), ("equal", 1)]


def test_a_proof_that_always_breaks_off_ends_in_an_error_that_tells_no_difference(run: Watcher):
    before = recorded(run)
    save(run, range(3, 4))
    assert run.run(*QUICK, STUB_KILL="ckpt-1,ckpt-2", **on(OTHER)) == 1
    assert run.evaluations() == ["ckpt-2", "ckpt-1", "ckpt-2"]
    assert "could not measure a scored checkpoint again in 3 attempts" in errors(run)
    assert recorded(run) == before and run.query("SELECT * FROM machine_proofs") == []
    assert run.states()["ckpt-3"] == "pending"


def test_a_checkpoint_that_vanishes_while_it_is_measured_again_costs_no_attempt(
    run: Watcher, tmp_path: Path
):
    save(run, range(3, 4))
    go = tmp_path / "go"
    failing = {"STUB_EXHAUSTED": "ckpt-2", "STUB_WAIT": "ckpt-2", "STUB_WAIT_FOR": go}
    flags = [*QUICK, "--max-attempts", 1, "--rescan-seconds", 10]
    daemon = run.start(*flags, "--exit-when-idle", 0.2, **failing, **on(OTHER))
    wait_until(lambda: run.evaluations() == ["ckpt-2"], "it is measured again")
    pins = run.database.parent / "pins"
    shutil.rmtree(next(pins.glob("*/ckpt-2.index")).parent)
    for path in (*run.best_dir.glob("ckpt-2*"), *run.model_dir.glob("ckpt-2*")):
        path.unlink()
    go.touch()
    assert daemon.wait(60) == 0
    assert run.evaluations() == ["ckpt-2", "ckpt-1", "ckpt-3"]
    assert standings(run) == [("reference", 2), ("equal", 1)]


def test_without_a_checkpoint_left_it_goes_on_unproven_and_that_is_told(run: Watcher):
    with closing(sqlite3.connect(run.database)) as db, db:
        db.execute("UPDATE all_checkpoints SET pin_path = NULL")
        db.execute("DELETE FROM promotions")
    for path in (*run.model_dir.glob("ckpt-*"), *run.best_dir.iterdir()):
        path.unlink()
    save(run, range(3, 4))
    run.start(*QUICK, **on(OTHER, map=LITTLE))
    wait_until(lambda: run.states().get("ckpt-3") == "scored", "it is scored")
    assert "cpu is not proven" in cli("status", run.model_dir).stdout
    assert run.stop() == 0
    assert standings(run) == [("reference", 2), ("unproven", 1)]
    explained = " ".join(cli("explain", run.model_dir).stdout.split())
    assert "ckpt-3" in explained and "which has not proved itself" in explained
    # The reference goes on, and leaves something to be compared by.
    save(run, range(4, 5))
    assert run.run(*QUICK, **on(HOME)) == 0
    save(run, range(5, 6))
    assert run.run(*QUICK, **on(OTHER, map=LITTLE)) == 1
    assert "ckpt-4 measured again is not the same" in errors(run)
    assert standings(run) == [("reference", 3), ("differs", 1)]


def test_scores_of_which_the_machine_is_not_known_are_taken_for_those_of_the_newcomer(
    watcher: Watcher,
):
    save(watcher, range(1, 3))
    assert watcher.run(*QUICK) == 0
    save(watcher, range(3, 4))
    assert watcher.run(*QUICK, **on(OTHER)) == 0
    assert watcher.evaluations() == ["ckpt-1", "ckpt-2", "ckpt-3"]
    assert standings(watcher) == [("reference", 1)]
    rows = watcher.query("SELECT checkpoint, machine FROM history")
    assert [row["machine"] for row in rows] == [None, None, 1]


def test_of_several_devices_the_one_that_differs_is_left_out_and_the_others_go_on(machine: Machine):
    watcher = machine.watcher("run", 1)
    go = machine.folder / "go"
    # Something is left to do until the other has been compared.
    home = {**on(HOME), "STUB_WAIT": "ckpt-8", "STUB_WAIT_FOR": str(go)}
    steer = by_device(machine.folder, GPU_a0=home, GPU_b1=on(OTHER, map=LITTLE))
    assert machine.run(watcher, "--device", "gpu:0", STUB_ON=steer) == 0
    save(watcher, range(2, 9))
    machine.start(watcher, *TWO, STUB_ON=steer)
    problem = wait_until(lambda: watcher.status().get("problem"), "it is told")
    go.touch()
    wait_until(lambda: len(scored(watcher)) == 8, "all are scored")
    assert problem.startswith("gpu:1 Fake GPU (GPU-b1) is left out until the next start: its mach")
    assert problem.endswith("or let it in with --accept-host-differences 1e-06")
    assert watcher.stop() == 0
    first, second = evaluated_on(machine.folder)
    assert len(first) == 8 and len(second) == 1
    assert standings(watcher) == [("reference", 8), ("differs", 0)]


def test_of_several_devices_the_one_that_differs_joins_once_it_has_measured_the_same(
    machine: Machine,
):
    watcher = machine.watcher("run", 8)
    go = machine.folder / "go"
    waits = {"STUB_WAIT": "*", "STUB_WAIT_FOR": go}
    steer = by_device(machine.folder, GPU_a0=on(HOME), GPU_b1=on(OTHER))
    machine.start(watcher, *TWO, STUB_ON=steer, STUB_SECONDS=0.3, **waits)
    wait_until(lambda: doing(watcher) == ["evaluating", "waiting to be compared"], "one waits")
    go.touch()
    wait_until(lambda: len(scored(watcher)) == 8, "all are scored")
    assert watcher.stop() == 0
    # Both began with nothing: one of them waited for a score of the other.
    both = evaluated_on(machine.folder)
    assert len(both[0]) + len(both[1]) == 9
    assert both[0][0] == both[1][0] or both[0][1:2] == both[1][:1] or both[1][1:2] == both[0][:1]
    rows = watcher.query("SELECT DISTINCT attempts FROM checkpoints WHERE state = 'scored'")
    assert rows == [{"attempts": 1}]


def test_a_checkpoint_that_is_measured_anew_meanwhile_keeps_the_score_of_that(machine: Machine):
    watcher = machine.watcher("run", 1)
    go = machine.folder / "go"
    home = by_device(machine.folder, GPU_a0=on(HOME), GPU_b1={"STUB_DIE": "7"})
    assert machine.run(watcher, "--device", "gpu:0", STUB_ON=home) == 0
    waits = {"STUB_WAIT": "ckpt-1", "STUB_WAIT_FOR": str(go)}
    both = by_device(machine.folder, GPU_a0=on(HOME), GPU_b1={**on(OTHER), **waits})
    machine.start(watcher, *TWO, STUB_ON=both)
    wait_until(lambda: watcher.status().get("worker") == "ready", "one is ready")
    assert cli("requeue", watcher.model_dir, "ckpt-1").returncode == 0
    save(watcher, range(2, 3))
    wait_until(lambda: evaluated_on(machine.folder)[1] == ["ckpt-1"], "the other measures it too")
    wait_until(lambda: scored(watcher) == {"ckpt-1", "ckpt-2"}, "it is measured anew")
    score = watcher.query("SELECT * FROM evaluations WHERE checkpoint_id = 1")
    go.touch()
    wait_until(lambda: ("equal", 0) in standings(watcher), "the other has joined")
    assert watcher.query("SELECT * FROM evaluations WHERE checkpoint_id = 1") == score
    assert watcher.stop() == 0


def test_a_watcher_that_is_killed_in_the_middle_of_a_proof_begins_it_anew(
    run: Watcher, tmp_path: Path
):
    before = recorded(run)
    save(run, range(3, 4))
    go = tmp_path / "go"
    daemon = run.start(*QUICK, STUB_WAIT="ckpt-2", STUB_WAIT_FOR=go, **on(OTHER))
    wait_until(lambda: run.evaluations() == ["ckpt-2"], "it is measured again")
    daemon.kill()
    daemon.wait()
    assert recorded(run) == before
    assert run.run(*QUICK, **on(OTHER)) == 0
    assert run.evaluations() == ["ckpt-2", "ckpt-2", "ckpt-3"]
    assert recorded(run) == before and standings(run) == [("reference", 2), ("equal", 1)]


def test_an_average_waits_for_the_proof_as_well(run: Watcher):
    assert cli("average", run.model_dir, "ckpt-1", "ckpt-2").returncode == 0
    assert run.run(*QUICK, **on(OTHER)) == 0
    assert run.evaluations()[0] == "ckpt-2" and len(run.evaluations()) == 2
    assert standings(run) == [("reference", 2), ("equal", 1)]


def test_of_two_devices_on_one_new_machine_one_proves_it_and_both_join(machine: Machine):
    watcher = machine.watcher("run", 1)
    home = by_device(machine.folder, GPU_a0=on(HOME))
    assert machine.run(watcher, "--device", "gpu:0", STUB_ON=home) == 0
    save(watcher, range(2, 8))
    go = machine.folder / "go"
    waits = {"STUB_WAIT": "*", "STUB_WAIT_FOR": go}
    new = by_device(machine.folder, GPU_a0=on(OTHER), GPU_b1=on(OTHER))
    machine.start(watcher, *TWO, STUB_ON=new, STUB_SECONDS=0.3, **waits)
    wait_until(lambda: len(doing(watcher)) == 2 and "starting" not in doing(watcher), "both wait")
    go.touch()
    wait_until(lambda: len(scored(watcher)) == 7, "all are scored")
    assert watcher.stop() == 0
    first, second = evaluated_on(machine.folder)
    assert sorted(first + second).count("ckpt-1") == 2  # the score, and the proof
    assert len(first) + len(second) == 8 and min(len(first) - 1, len(second)) > 0


def test_one_that_waits_to_be_compared_costs_the_watcher_next_to_nothing(machine: Machine):
    watcher = machine.watcher("run", 3)
    go = machine.folder / "go"
    slow = {**on(HOME), "STUB_WAIT": "*", "STUB_WAIT_FOR": str(go)}
    steer = by_device(machine.folder, GPU_a0=slow, GPU_b1={**slow, **on(OTHER)})
    daemon = machine.start(watcher, *TWO, STUB_ON=steer)
    wait_until(lambda: doing(watcher) == ["evaluating", "waiting to be compared"], "one waits")
    stat = Path(f"/proc/{daemon.pid}/stat")
    before = sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13]))
    time.sleep(3)
    used = sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13])) - before
    assert used / os.sysconf("SC_CLK_TCK") < 1
    go.touch()
    wait_until(lambda: len(scored(watcher)) == 3, "all are scored")
    assert watcher.stop() == 0
