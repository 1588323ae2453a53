"""What a run that waits for MODEL_DIR is refused for before it waits, and not hours later."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from privileges import subject_to_permissions
from watching import ROOT, STUB, cli

from watcher.config import Settings
from watcher.errors import ConfigError
from watcher.runtime.inputs import refuse_before_waiting


@pytest.fixture(autouse=True)
def absolute_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.config"
    path.write_text("")
    return path


def od(pipeline: Path, **given: Any) -> Settings:
    places = {"model_dir": str(pipeline.with_name("none")), "pipeline_config": str(pipeline)}
    return Settings.of(**places, wait_for_model_dir=True, **given)


def look(settings: Settings) -> None:
    """Look as `run` does before it waits."""
    refuse_before_waiting(settings.run, settings.evaluator, settings.carrier)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "package"),
    [
        (["--pipeline-config", "pipeline.config"], "object_detection"),
        (["--experiment", "retinanet_resnetfpn_coco"], "official"),
    ],
)
def test_an_interpreter_without_tensorflow_is_refused_before_model_dir_is_there(
    pipeline: Path, flags: list[str], package: str
):
    words = ["run", "none", "--wait-for-model-dir", "--python", sys.executable, *flags]
    ended = cli(*words, cwd=pipeline.parent)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"error: tensorflow and {package} are not installed in {sys.executable}",
        "hint: give --python the interpreter of the environment that trains",
    ]


@pytest.mark.slow
def test_so_it_is_where_model_garden_s_params_yaml_is_waited_for(tmp_path: Path):
    words = ["--experiment", "retinanet_resnetfpn_coco", "--python", sys.executable]
    ended = cli("run", tmp_path, "--wait-for-model-dir", *words)
    assert ended.returncode == 1
    assert "are not installed in" in ended.stderr and "waiting" not in ended.stderr


def test_an_interpreter_that_evaluates_nothing_here_may_lack_tensorflow(pipeline: Path):
    table = {"host": "box", "launcher": ("sh",)}
    far = od(pipeline, device="box/cpu", device_tables=(table,), python=sys.executable)
    look(far)
    near = od(pipeline, device="cpu,box/cpu", device_tables=(table,), python=sys.executable)
    with pytest.raises(ConfigError, match="tensorflow and object_detection are not installed"):
        look(near)


def test_a_launcher_that_is_not_there_is_refused(pipeline: Path):
    table = {"host": "box", "launcher": ("/no/srun",)}
    with pytest.raises(ConfigError, match=r"launcher of box/cpu \(/no/srun\) does not exist"):
        look(od(pipeline, device="box/cpu", device_tables=(table,)))


def test_a_worker_of_ones_own_is_not_asked_for_packages(pipeline: Path):
    look(od(pipeline, python=str(STUB)))
    silent = pipeline.with_name("python-that-fails")
    silent.write_text("#!/bin/sh\nexit 3\n")
    silent.chmod(0o755)
    look(od(pipeline, python=str(silent)))


def test_packages_that_may_be_found_in_the_trainer_s_folder_are_not_missed(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYTHONPATH", "slim:/srv/models")
    look(od(pipeline, python=sys.executable))


def test_a_pipeline_that_may_not_be_read_is_refused(pipeline: Path):
    pipeline.chmod(0)
    with (
        subject_to_permissions(),
        pytest.raises(ConfigError, match=r"pipeline_config \(.*\) cannot be read: Permission"),
    ):
        look(od(pipeline, python=str(STUB)))


def test_a_configuration_of_model_garden_may_come_with_model_dir_but_not_elsewhere(tmp_path: Path):
    def garden(file: Path) -> Settings:
        given = {"evaluator": "model-garden", "experiment": "cls", "python": str(STUB)}
        return Settings.of(model_dir=str(tmp_path / "none"), config_file=(str(file),), **given)

    look(garden(tmp_path / "none" / "params.yaml"))
    with pytest.raises(ConfigError, match=r"config_file \(.*gone.yaml\) cannot be read: No such"):
        look(garden(tmp_path / "gone.yaml"))
