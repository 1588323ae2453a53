"""What a worker does before it is ready is told with seconds, and what waits for it as waiting."""

from __future__ import annotations

import json
import re

from fake_trainer import Manager, model_tensors
from watching import Watcher, cli, wait_until

PHASES = json.dumps([["importing TensorFlow", 0.1], ["building the model", 60]])


def save(watcher: Watcher, count: int) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for step in range(1, count + 1):
        manager.save(100 * step, model_tensors(1000, str(step)))


def test_each_phase_of_a_start_is_told_with_its_seconds(watcher: Watcher):
    watcher.start(STUB_PHASES=PHASES)
    wait_until(lambda: watcher.status().get("phase") == "building the model", "the second phase")
    shown = cli("status", watcher.model_dir).stdout
    assert re.search(r"now +starting: building the model, \d+ s", shown), shown
    assert watcher.stop() == 0
    log = watcher.log.read_text()
    assert log.index("starting: importing TensorFlow") < log.index("starting: building the model")


def test_what_the_phases_took_is_in_the_log_once_the_worker_is_ready(watcher: Watcher):
    save(watcher, 1)
    phases = json.dumps([["importing TensorFlow", 0.1], ["building the model", 1.1]])
    assert watcher.run(STUB_PHASES=phases) == 0
    (ready,) = (line for line in watcher.log.read_text().splitlines() if "worker ready" in line)
    # On a machine that is held up it is more.
    assert re.search(r"importing TensorFlow \d+ s, building the model [1-9]\d* s", ready), ready


def test_another_metric_is_pending_until_the_worker_is_ready(watcher: Watcher):
    save(watcher, 2)
    assert watcher.run() == 0
    watcher.start("--metric", "loss", "--mode", "min", STUB_PHASES=PHASES)
    wait_until(lambda: watcher.status().get("phase"), "it starts")
    shown = " ".join(cli("status", watcher.model_dir, COLUMNS="200").stdout.split())
    ranked = "ranked by DetectionBoxes_Precision/mAP (max); loss (min) counts once the worker is"
    assert ranked in shown
    assert watcher.stop() == 0
    shown = cli("status", watcher.model_dir).stdout
    assert "counts once" not in shown and "mAP (max)" in shown


def test_no_end_of_the_queue_is_foretold_while_nobody_evaluates(watcher: Watcher):
    save(watcher, 3)
    watcher.start(STUB_WAIT="ckpt-2", STUB_WAIT_FOR="/none")
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "one is scored")
    wait_until(lambda: watcher.status().get("worker") == "evaluating", "the next is evaluated")
    assert "at this pace" in cli("status", watcher.model_dir).stdout
    assert watcher.stop() == 0
    shown = cli("status", watcher.model_dir).stdout
    assert "2 waiting: ckpt-2, ckpt-3" in shown and "at this pace" not in shown
    told = json.loads(cli("status", watcher.model_dir, "--json").stdout)
    assert told["queue_seconds_left"] is None
