"""A Model Garden trainer is known by its command line, and what that says is what it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from paces import garden_pace

from watcher.doctor import cadence
from watcher.launch.command import python_command
from watcher.launch.garden_trainer import GardenTrainer
from watcher.launch.kinds import trainer_among, trainer_of
from watcher.launch.modules import needed_modules
from watcher.launch.processes import trainer_on, trainers, training_of

FLAGS = ["--experiment=retinanet_resnetfpn_coco", "--mode=train", "--model_dir=m"]
# As Model Garden writes it, with fields of the same ending.
PARAMS = """\
runtime:
  num_gpus: 0
task:
  model:
    num_classes: 3
trainer:
  checkpoint_interval: 300
  max_to_keep: 5
  optimizer_config:
    warmup:
      linear:
        warmup_steps: 10
  steps_per_loop: 100
  train_steps: 900
  validation_interval: 300
  validation_steps: -1
"""


@pytest.mark.parametrize(
    "front",
    [
        ["python", "-m", "official.vision.train"],
        ["python3.11", "-u", "/models/official/vision/train.py"],
        ["python", "-m", "od_api_today", "-m", "official.vision.train"],
        ["env", "CUDA_VISIBLE_DEVICES=0", "python", "-m", "official.projects.yolo.train"],
        ["python", "my/train.py"],
        ["python", "train.py"],
    ],
)
def test_a_trainer_of_model_garden_is_known_in_each_way_it_is_started(front: list[str]):
    kind, arguments = trainer_of([*front, *FLAGS])
    assert isinstance(kind, GardenTrainer) and list(arguments) == FLAGS
    start = next(place for place, word in enumerate(front) if word.startswith("python"))
    assert training_of([*front[start:], *FLAGS, ""])


@pytest.mark.parametrize(
    ("words", "trains"),
    [
        (["-m", "official.vision.train", "--mode=train_and_eval"], True),
        (["-m", "official.vision.train", "--mode", "continuous_eval"], False),
        (["-m", "official.vision.train", "--mode=eval"], False),
        (["train.py", "--epochs=3", "--model_dir=m"], False),  # of something else
        (["-m", "official.vision.serving.export_saved_model", *FLAGS], False),
    ],
)
def test_what_only_evaluates_or_is_no_model_garden_is_no_trainer(words: list[str], trains: bool):
    assert (training_of(["python", *words]) is not None) == trains


def test_a_trainer_of_a_project_tells_what_registers_its_experiments():
    module = "official.projects.yolo.train"
    for command in (["python", "-m", module, *FLAGS], ["docker", "run", "image", module, *FLAGS]):
        kind, arguments = trainer_among(command) or (None, ())
        assert kind and kind.settings(arguments)["garden_import"] == [module]
    for program in ("official.vision.train", "official/projects/yolo/train.py"):
        kind, arguments = trainer_of(["python", "-m", program, *FLAGS])
        assert kind and "garden_import" not in kind.settings(arguments)


def test_the_settings_are_those_of_its_command_line_in_the_order_in_which_they_count():
    typed = ["--config_file", "a.yaml", "--config_file=b.yaml", "--params_override=x.y=1"]
    command = ["python", "-m", "official.vision.train", *FLAGS, *typed]
    kind, arguments = trainer_of(command)
    assert kind and kind.settings(arguments) == {
        "model_dir": "m",
        "evaluator": "model-garden",
        "experiment": "retinanet_resnetfpn_coco",
        "config_file": ["a.yaml", "b.yaml"],
        "params_override": ["x.y=1"],
    }
    there = trainer_among(["docker", "run", "image", *command])
    assert there and there[1] == arguments
    python = python_command(command)
    assert python and needed_modules(python) == ["official", "tensorflow"]


@pytest.mark.parametrize(
    ("override", "steps", "every"),
    [
        ("", 900, 300),
        ("trainer.train_steps=50,trainer.checkpoint_interval=20", 50, 20),
        ('{"trainer": {"train_steps": 60}}', 60, 300),
        ("trainer: {train_steps: 70}  # train_steps: 5", 70, 300),
        ("over.yaml", 80, 300),
        ("task.model.decay_train_steps=5", 900, 300),
    ],
)
def test_steps_and_saves_are_read_as_they_are_laid_over_each_other(
    tmp_path: Path, override: str, steps: int, every: int
):
    (tmp_path / "base.yaml").write_text(PARAMS)
    (tmp_path / "over.yaml").write_text("trainer:\n  train_steps: 80\n")
    words = ["--config_file=base.yaml", f"--params_override={override}"]
    found = GardenTrainer().schedule(words, None, tmp_path, {})
    assert (found.steps, found.every, found.loop, found.keeps) == (steps, every, 100, 5)


def test_params_yaml_says_it_where_no_trainer_runs_and_nothing_is_made_up(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    found = GardenTrainer().schedule([], tmp_path / "params.yaml", tmp_path, {})
    assert (found.every, found.steps, found.source) == (300, 900, "params.yaml")
    none = GardenTrainer().schedule([], tmp_path / "none.yaml", tmp_path, {})
    (said,) = cadence.saving(cadence.Pace(none))
    assert said.severity == "note" and "not known yet" in said.message


def saved(begun: int, steps: int, every: int, loop: int) -> int:
    """Orbit's loop with TensorFlow's CheckpointManager; returns how often it saves."""
    at, count, last = begun, 0, begun or None
    while at < steps:
        at += min(loop, steps - at)
        if last is None or at >= last + every:
            count, last = count + 1, at
    return count + (at != last)


@pytest.mark.parametrize("begun", [0, 40, 100])
@pytest.mark.parametrize(("every", "loop"), [(20, 20), (50, 20), (10, 30), (200, 20)])
def test_its_saves_are_counted_as_orbit_makes_them(begun: int, every: int, loop: int):
    for steps in range(begun + 1, 130):
        plan = cadence.plan(garden_pace(every, steps, loop, begun=begun))
        assert plan and (plan.ends, plan.lost) == (steps, 0)
        assert plan.saves == saved(begun, steps, every, loop), steps


def test_an_interval_that_it_does_not_keep_to_is_told_with_the_one_that_it_does():
    warned, said = cadence.saving(garden_pace(250, 900, 100))
    assert warned.severity == "warning" and "saves every 300 steps" in warned.message
    assert "each 100 steps (steps_per_loop)" in warned.message
    assert warned.remedy == "trainer.checkpoint_interval: 300, or another multiple of 100"
    assert said.message == "4 checkpoints in 900 steps, one every 300 (params.yaml);" + (
        " the last step is saved"
    )


def test_a_queue_that_grows_is_told_with_what_model_garden_has():
    (found,) = cadence.keeping_up(garden_pace(100, 1000, 100, save_seconds=60, eval_seconds=150))
    assert found.remedy == "--queue-policy latest, or save every 300 steps"


def test_a_running_trainer_tells_its_folder_and_its_experiment(tmp_path: Path):
    program = tmp_path / "official" / "vision" / "train.py"
    program.parent.mkdir(parents=True)
    program.write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    with subprocess.Popen(
        [sys.executable, program, *FLAGS], stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        try:
            assert process.stdout and process.stdout.readline()
            seen = trainer_on(tmp_path / "m", trainers())
            assert seen and seen.pid == process.pid and seen.folder == tmp_path.resolve()
            assert seen.kind.settings(seen.arguments)["experiment"] == "retinanet_resnetfpn_coco"
        finally:
            process.kill()
