"""A job of Model Garden under `train`, `init` and `doctor`, with stubs in place of TensorFlow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from launching import FAKE_TRAINER, Launch
from watching import CLI, STUB, cli

from watcher.config import Settings, load_settings
from watcher.launch.garden_trainer import GardenTrainer
from watcher.runtime.waiting import OVER, wait_for_trainer
from watcher.runtime.wakeup import WakeUp
from watcher.store.reading import open_reader
from watcher.systemd.notify import Notifier, Service

pytestmark = pytest.mark.slow

EXPERIMENT = "retinanet_resnetfpn_coco"
PARAMS = """\
task:
  model:
    input_size: [64, 64, 3]
trainer:
  checkpoint_interval: 250
  max_to_keep: 2
  steps_per_loop: 100
  train_steps: 9000
"""
# As official.vision.train starts: it writes its configuration some time after.
STARTING = """
import shutil
print("up", flush=True)
input()
shutil.copyfile("new.yaml", "m/params.yaml")
input()
"""
FACTS = {"versions": {"python": "3.11.7", "tensorflow": "2.21.0", "tf_models_official": "2.20.0"}}


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    run = Launch(tmp_path)
    yield run
    run.end()


def trainer(launch: Launch, *flags: object) -> list[str]:
    """A `python` that starts as official.vision.train does: it writes params.yaml, then saves."""
    script = launch.folder / "bin" / "python"
    script.parent.mkdir(exist_ok=True)
    (launch.folder / "params.yaml").write_text(PARAMS)
    script.write_text(
        f"""#!/bin/sh
[ "$1" = -c ] && exit 0
cp {launch.folder}/params.yaml {launch.model_dir}
exec {sys.executable} {FAKE_TRAINER} {launch.model_dir} --saves 3 --interval 0.3
"""
    )
    script.chmod(0o755)
    words = ["-m", "official.vision.train", f"--experiment={EXPERIMENT}", "--mode=train"]
    return [str(script), *words, f"--model_dir={launch.model_dir}", *map(str, flags)]


def environment(folder: Path) -> Path:
    """The interpreter of a training environment that answers doctor."""
    lines = [{"type": "fact", "name": name, "value": value} for name, value in FACTS.items()]
    text = "\n".join(json.dumps(line) for line in [*lines, {"type": "done"}])
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ncat > /dev/null\ncat <<'EOF'\n{text}\nEOF\n")
    python.chmod(0o755)
    return python


def test_the_watcher_beside_it_is_told_what_the_trainers_command_says(launch: Launch):
    override = "trainer.train_steps=5000"
    command = trainer(launch, f"--params_override={override}")
    code = launch.run("--watch", "--python", STUB, trainer=command)
    assert code == 0, launch.err.read_text()
    with open_reader(launch.database.parent) as reader:
        settings = reader.run()["settings"]
        assert set(reader.states()) <= {"scored", "untrained"}
    assert (settings["evaluator"], settings["experiment"]) == ("model-garden", EXPERIMENT)
    assert settings["params_override"] == [override] and not settings["config_file"]


def test_a_config_file_that_is_not_there_starts_nothing(launch: Launch):
    command = trainer(launch, "--config_file=gone.yaml")
    assert launch.run("--watch", "--python", STUB, trainer=command) == 1
    assert "config_file (gone.yaml) does not exist" in launch.err.read_text()
    assert not launch.model_dir.exists()


def test_it_says_once_that_it_waits_for_params_yaml(tmp_path: Path):
    settings = Settings.of(
        model_dir=str(tmp_path),
        evaluator="model-garden",
        experiment=EXPERIMENT,
        wait_for_model_dir=True,
        python=str(STUB),
    )
    wakeup, said = WakeUp(), list[Path]()

    def say(path: Path) -> None:
        said.append(path)
        threading.Timer(1.0, wakeup.stop).start()

    waited = wait_for_trainer(settings, None, wakeup, Service(Notifier(None)), say)
    assert waited is OVER and said == [tmp_path / "params.yaml"]


def test_the_export_that_is_proposed_is_model_gardens_own(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    given = Settings.of(model_dir=str(tmp_path), evaluator="model-garden", experiment=EXPERIMENT)
    words = GardenTrainer().export(given.run, given.evaluator)
    assert words[0] == "official.vision.serving.export_saved_model"
    assert {f"--checkpoint_path={tmp_path}/best", "--input_image_size=64,64"} < set(words)
    (tmp_path / "params.yaml").unlink()
    assert GardenTrainer().export(given.run, given.evaluator) == []


def test_init_finds_the_experiment_of_a_running_trainer_and_run_takes_the_file(tmp_path: Path):
    model_dir = tmp_path / "m"
    model_dir.mkdir()
    (model_dir / "params.yaml").write_text(PARAMS)
    environment(tmp_path / "venv")
    init = ["init", "m", "--force"]
    ended = cli(*init, cwd=tmp_path, PATH="/usr/bin:/bin")
    assert ended.returncode == 0 and "experiment ............. TO FILL IN" in ended.stderr
    program = tmp_path / "train.py"
    program.write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    flags = [f"--experiment={EXPERIMENT}", "--mode=train_and_eval", "--model_dir=m"]
    with subprocess.Popen(
        [sys.executable, program, *flags], stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        try:
            assert process.stdout and process.stdout.readline()
            ended = cli(*init, cwd=tmp_path, PATH="/usr/bin:/bin")
            beside = ["doctor", "--json", "--python", tmp_path / "venv" / "bin" / "python"]
            looked = cli(*beside, model_dir, cwd=tmp_path.parent)
        finally:
            process.kill()
    assert ended.returncode == 0, ended.stderr
    settings = load_settings({}, {}, tmp_path / "checkpoint-watcher.toml")
    assert settings.run.evaluator == "model-garden"
    assert settings.value("experiment") == EXPERIMENT
    assert settings.carrier.working_path == tmp_path
    assert settings.stopping.patience == 6  # a fifth of 30
    said = " ".join(one["message"] for one in json.loads(looked.stdout)["findings"])
    assert "it runs train_and_eval" in said and f"trainer {process.pid}" in said


def test_params_yaml_of_the_job_before_is_not_that_of_the_trainer_that_has_just_started(
    tmp_path: Path,
):
    """`run` reads the settings file that `init` wrote, and waits for what the trainer writes."""
    model_dir, ranked = tmp_path / "m", "\n  best_checkpoint_eval_metric: {}\n"
    Manager(model_dir).save(100, model_tensors(1000, "1"))
    (model_dir / "params.yaml").write_text(PARAMS.rstrip() + ranked.format("AP_of_before"))
    os.utime(model_dir / "params.yaml", (0, time.time() - 1))  # /proc rounds the start of a process
    program = tmp_path / "train.py"
    program.write_text(STARTING)
    (tmp_path / "new.yaml").write_text(
        PARAMS.rstrip() + ranked.format("DetectionBoxes_Precision/mAP")
    )
    flags = [f"--experiment={EXPERIMENT}", "--mode=train", "--model_dir=m"]
    command = [sys.executable, program, *flags]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "up\n"
            assert cli("init", "m", "--force", cwd=tmp_path).returncode == 0
            run = [*CLI, "run", "--python", str(STUB), "--exit-when-idle", "0.5"]
            with subprocess.Popen(run, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as watcher:
                time.sleep(2)
                assert not (model_dir / "watcher").exists()
                process.stdin.write("write it\n")
                process.stdin.flush()
                _, said = watcher.communicate(timeout=60)
            assert watcher.returncode == 0, said
        finally:
            process.kill()
    with open_reader(model_dir / "watcher") as reader:
        assert reader.run()["settings"]["metric"] == "DetectionBoxes_Precision/mAP"
        assert sum(reader.states().values()) == 1


def test_doctor_speaks_of_params_yaml_and_of_what_its_trainer_keeps(tmp_path: Path):
    model_dir = tmp_path / "m"
    Manager(model_dir).save(100, model_tensors(1000, "1"))
    (model_dir / "params.yaml").write_text(PARAMS)
    Manager(model_dir / "best_ckpt").save(100, model_tensors(1000, "1"))
    python = environment(tmp_path / "venv")
    ended = cli("doctor", model_dir, "--json", "--experiment", EXPERIMENT, "--python", python)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found: dict[str, str] = {}
    for one in json.loads(ended.stdout)["findings"]:
        found[one["check"]] = found.get(one["check"], "") + one["message"]
    assert "pipeline.config" not in "".join(found.values())
    assert "a combination that was run" in found["environment"]
    assert "checkpoint_interval is 250 (params.yaml)" in found["saving"]
    assert "31 checkpoints in 9000 steps, one every 300" in found["saving"]
    assert "the trainer's 2, 3 kept" in found["disk space"]
    assert "Model Garden keeps by itself" in found["passed over"]


def test_without_an_experiment_the_one_setting_that_is_missing_is_named(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(PARAMS)
    ended = cli("doctor", tmp_path)
    assert ended.returncode == 1
    assert "experiment is not set" in ended.stderr and "--experiment NAME" in ended.stderr
