"""Relative paths in pipeline.config begin where the trainer was started, whoever reads them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from launching import Launch
from paces import od_pace
from watching import STUB, Watcher, cli, wait_until

from watcher.doctor import cadence, state
from watcher.launch.processes import trainers


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Where the trainer is started: the label map that pipeline.config names lies there."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "label_map.pbtxt").write_text("item { id: 1 name: 'cat' }\n")
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A training environment's interpreter, which writes down where it was started."""
    done = json.dumps({"type": "done"})
    script = tmp_path / "tf" / "bin" / "python"
    script.parent.mkdir(parents=True)
    script.write_text(
        "#!/bin/sh\n"
        f"case $1 in *doctor.py) pwd >> {tmp_path}/asked; cat > /dev/null; echo '{done}'; exit;;\n"
        f"*worker.py) pwd >> {tmp_path}/worked;; esac\n"
        f'exec {sys.executable} {STUB} "$@"\n'
    )
    script.chmod(0o755)
    return script


@contextlib.contextmanager
def trainer(folder: Path, model_dir: Path, *flags: str) -> Iterator[int]:
    """A trainer at work, started in a folder; gives its process id."""
    program = folder / "model_main_tf2.py"
    program.write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    command = [sys.executable, str(program), f"--model_dir={os.path.relpath(model_dir, folder)}"]
    with subprocess.Popen([*command, *flags], cwd=folder, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def recorded(watcher: Watcher) -> str | None:
    folder = json.loads(watcher.query("SELECT settings FROM runs")[0]["settings"])
    return folder["working_directory"]


def test_the_worker_is_started_where_the_trainer_was_and_doctor_knows_it_from_elsewhere(
    watcher: Watcher, project: Path, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Manager(watcher.model_dir).save(100, model_tensors(1000, "a"))
    monkeypatch.chdir(tmp_path)  # --python and --working-directory begin at the user's folder
    flags = ["--python", python.relative_to(tmp_path), "--working-directory", "project"]
    assert watcher.run(*flags) == 0
    assert lines(tmp_path / "worked") == [str(project)] and recorded(watcher) == str(project)
    monkeypatch.chdir("/")
    cli("doctor", watcher.model_dir, "--python", python)
    assert lines(tmp_path / "asked") == [str(project)]


def test_run_and_doctor_take_the_folder_of_a_trainer_at_work(
    watcher: Watcher, project: Path, python: Path, tmp_path: Path
):
    with trainer(project, watcher.model_dir) as pid:
        flags = ["--pipeline-config", watcher.pipeline, "--python", python]
        ended = cli("doctor", watcher.model_dir, *flags, "--json")
        found = {one["check"]: one for one in json.loads(ended.stdout)["findings"]}
        told = found["working_directory"]
        assert told["severity"] == "ok"
        assert (
            told["message"] == f"relative paths begin at {project}, where trainer {pid} was started"
        )
        assert watcher.run("--python", python) == 0
        other = cli("doctor", watcher.model_dir, *flags, "--working-directory", tmp_path)
        assert "mean other files to it" in " ".join(other.stdout.split())
        assert "--working-directory" in other.stdout
    assert lines(tmp_path / "worked") == [str(project)] and recorded(watcher) == str(project)
    assert lines(tmp_path / "asked") == [str(project), str(tmp_path)]


@pytest.mark.slow
def test_train_sets_it_for_its_watcher(tmp_path: Path, python: Path):
    launch = Launch(tmp_path)
    try:
        flags = ["--watch", "--pipeline-config", launch.pipeline, "--python", python]
        command = launch.saving("--saves", 2, "--interval", 0)
        assert launch.run(*flags, trainer=command) == 0
        run = cli("doctor", launch.model_dir, "--python", python)
        assert lines(tmp_path / "worked") == lines(tmp_path / "asked") == [str(tmp_path)], run
        assert launch.run("--working-directory", "/", *flags, trainer=command) == 0
        told = f"working_directory is set to /, and the trainer is started in {tmp_path}"
        assert told in launch.said()
    finally:
        launch.end()


def test_a_folder_that_is_not_there_is_one_error_with_a_hint(watcher: Watcher):
    flags = ["--pipeline-config", watcher.pipeline, "--python", STUB]
    words = [*flags, "--working-directory", "/nowhere"]
    ended = cli("run", watcher.model_dir, *words)
    error, hint = ended.stderr.splitlines()
    assert ended.returncode == 1 and error.startswith("error: working_directory (/nowhere) is not")
    assert hint == "hint: give the folder that the trainer is started in"
    assert (
        "working_directory (/nowhere) is not a folder"
        in cli("doctor", watcher.model_dir, *words, COLUMNS="200").stdout
    )


def test_a_label_map_of_a_relative_path_is_looked_after_where_the_trainer_has_it(
    watcher: Watcher, project: Path
):
    label_map = project / "data" / "label_map.pbtxt"
    flags = ["--working-directory", project, "--rescan-seconds", 0.1]
    watcher.start(*flags, STUB_TAKE="data/label_map.pbtxt")
    wait_until(lambda: watcher.status().get("worker") == "ready", "the worker is ready")
    told = "label map (data/label_map.pbtxt) was changed"
    assert not watcher.log.read_text().count("since this run started")
    label_map.write_text("another")
    wait_until(lambda: told in watcher.log.read_text(), "the change is told")
    assert watcher.stop() == 0


# -- init


def init(here: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run init in a folder, where nothing of this machine is found."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "watcher", "init", "-o", "-", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=here,
        env={"PATH": "/usr/bin:/bin", "HOME": str(here / "home")},
        timeout=60,
    )


def test_init_finds_the_folder_of_a_trainer_at_work(watcher: Watcher, project: Path, python: Path):
    with trainer(project, watcher.model_dir) as pid:
        ended = init(Path("/tmp"), watcher.model_dir, "--python", python)
    assert f'\nworking_directory = "{project}"\n' in ended.stdout, ended.stderr
    assert f"Found: trainer {pid} was started there." in ended.stdout


def test_init_finds_the_folder_from_which_pipeline_config_s_label_map_is_there(
    watcher: Watcher, project: Path, tmp_path: Path
):
    text = 'model {}\neval_input_reader { label_map_path: "data/label_map.pbtxt" }\n'
    watcher.pipeline.unlink()
    (project / "configs").mkdir()
    pipeline = project / "configs" / "ssd.config"
    pipeline.write_text(text)
    ended = init(tmp_path, watcher.model_dir, "--pipeline-config", pipeline)
    assert f'\nworking_directory = "{project}"\n' in ended.stdout
    # Started where it lies, init needs no flag; what it has looked at in vain it names.
    ended = init(pipeline.parent, watcher.model_dir)
    assert f'\npipeline_config = "{pipeline}"\n' in ended.stdout
    assert "the only pipeline in the current folder" in ended.stdout
    assert "both TensorFlow and the OD API (/usr/bin/python3" in " ".join(ended.stderr.split())
    (project / "data" / "label_map.pbtxt").unlink()
    ended = init(pipeline.parent, watcher.model_dir)
    assert "TO FILL IN: the folder that the trainer is started in" in ended.stderr


# -- what doctor says of saves and faults


def test_a_number_is_proposed_once():
    (found,) = cadence.saving(od_pace(1000, 300))
    assert found.remedy and found.remedy.startswith(
        "set num_steps to 1000, or --checkpoint_every_n"
    )
    (found,) = cadence.saving(od_pace(1000, 2300))
    assert found.remedy and found.remedy.startswith("set num_steps to 2000 or 3000, or")


def test_saves_that_the_od_api_rounds_are_warned_of_by_doctor_and_train(
    watcher: Watcher, project: Path, python: Path
):
    with trainer(project, watcher.model_dir, "--checkpoint_every_n=40"):
        flags = ["--pipeline-config", watcher.pipeline, "--python", python, "--json"]
        found = json.loads(cli("doctor", watcher.model_dir, *flags).stdout)["findings"]
    (saving,) = (one for one in found if one["check"] == "saving")
    assert saving["severity"] == "warning"
    assert "checkpoint_every_n is 40" in saving["message"]
    assert "the trainer saves every 100 steps" in saving["message"]
    assert saving["remedy"].startswith("--checkpoint_every_n 100,")
    script = project / "python"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    command = [script, "model_main_tf2.py", "--model_dir", project / "m", "--checkpoint_every_n"]
    told = "checkpoint_every_n is 40 (the trainer's command), and the trainer saves every 100 steps"
    assert told in cli("train", "--", *command, "40").stderr
    assert "checkpoint_every_n is" not in cli("train", "--", *command, "200").stderr


def test_a_fault_is_not_marked_ok():
    assert state.sqlite("3.40.1").severity == "note"
    assert state.sqlite("3.51.3").severity == "ok"


def test_a_trainer_whose_folder_cannot_be_seen_has_none(tmp_path: Path):
    process = tmp_path / "4711"
    process.mkdir()
    words = ["python", "-m", "object_detection.model_main_tf2", "--model_dir", "m"]
    (process / "cmdline").write_text("\0".join(words))
    assert [one.folder for one in trainers(tmp_path)] == [None]
    (process / "cwd").symlink_to("/gone (deleted)")
    assert [one.folder for one in trainers(tmp_path)] == [None]
