"""The main job on a really trained RetinaNet of Model Garden: watched, ranked, kept and used."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from evaluator_client import PROGRAMS, run_program
from garden_runs import GardenRun, garden_run
from watching import Watcher, cli

from watcher.checkpoints.bundle import verify

pytestmark = [pytest.mark.tensorflow, pytest.mark.equality, pytest.mark.timeout(1200)]

SIZE = "64,64"


@dataclass(frozen=True)
class Job:
    """A run that the watcher went through, with nothing given but the experiment's name."""

    run: GardenRun
    watcher: Watcher

    @property
    def rows(self) -> list[tuple[object, ...]]:
        """What the database says of each checkpoint."""
        rows = self.watcher.query(
            "SELECT checkpoint, state, global_step, score FROM history ORDER BY global_step"
        )
        return [tuple(row.values()) for row in rows]


@pytest.fixture(scope="module")
def job(od_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    run = garden_run("retinanet", od_python, tmp_path_factory)
    folder = tmp_path_factory.mktemp("watched")
    watcher = Watcher(folder)
    shutil.rmtree(watcher.model_dir)
    shutil.copytree(run.model_dir, watcher.model_dir)
    theirs = watcher.model_dir / "best_ckpt"
    theirs.mkdir()
    for path in run.model_dir.glob(f"{run.prefixes[0].name}.*"):
        shutil.copy(path, theirs)
    words = ["--experiment", run.job.experiment, "--python", od_python, "--average", "last-2"]
    ended = cli("run", watcher.model_dir, *words, "--exit-when-idle", 1, seconds=300)
    assert ended.returncode == 0, ended.stderr
    yield Job(run, watcher)
    watcher.end()


def test_every_checkpoint_is_scored_as_model_garden_scores_it_and_none_is_missed(job: Job):
    expected = [
        (
            prefix.name,
            "scored",
            int(prefix.name.split("-")[1]),
            job.run.reference[prefix.name]["AP"],
        )
        for prefix in job.run.prefixes
    ]
    assert job.rows == expected


def test_the_names_of_model_garden_and_the_short_ones_mean_the_same(job: Job):
    said = cli("leaderboard", job.watcher.model_dir, "--json").stdout
    best = max(job.rows, key=lambda row: (row[3], -int(str(row[2]))))
    assert json.loads(said)[0]["checkpoint"] == best[0]
    explained = cli("explain", job.watcher.model_dir, "--what-if", "metric=mAP50").stdout
    assert "by mAP50 (max)" in explained


def test_an_average_is_the_mean_of_its_parents_evaluated_and_kept(job: Job, tmp_path: Path):
    (row,) = job.watcher.query("SELECT * FROM averages")
    parents = job.run.prefixes[-2:]
    assert (row["state"], row["parents"]) == ("scored", ",".join(one.name for one in parents))
    name = f"{parents[-1].name}-average1"
    assert row["checkpoint"] == name and f"ckpt-{row['global_step']}" == parents[-1].name
    assert row["path"] == str(job.watcher.model_dir / "best-averages" / name)
    assert verify(Path(row["path"])).sha256 == row["sha256"]
    program = [PROGRAMS / "means.py", row["path"], *parents]
    said = json.loads(run_program(job.run.python, *program, cwd=tmp_path))
    assert said["wrong"] == [] and said["graph"]
    assert said["moved"] > said["means"] / 2 > 50
    refused = cli("average", job.watcher.model_dir, "--last", 2, "--recompute-batch-norm", 8)
    assert refused.returncode == 1
    assert "batch normalisation of Model Garden's models cannot be computed" in refused.stderr


def test_what_model_garden_keeps_itself_is_neither_evaluated_nor_touched(job: Job):
    theirs = sorted(path.name for path in (job.watcher.model_dir / "best_ckpt").iterdir())
    first = job.run.prefixes[0].name
    assert theirs == [f"{first}.data-00000-of-00001", f"{first}.index"]
    assert (job.watcher.model_dir / "params.yaml").read_bytes() == job.run.config_file.read_bytes()


def test_tensorboard_has_the_curve_in_model_gardens_own_folder(job: Job):
    files = list((job.watcher.model_dir / "validation").glob("events.*checkpoint-watcher*"))
    assert len(files) == len(job.run.prefixes)


@pytest.mark.families
def test_model_garden_takes_best_as_it_is(job: Job, tmp_path: Path):
    """It evaluates the best of it, with the numbers that are recorded, exports it and trains on."""
    takes(job, job.watcher.model_dir / "best", tmp_path)


@pytest.mark.families
def test_model_garden_takes_an_average_as_it_is(job: Job, tmp_path: Path):
    takes(job, job.watcher.model_dir / "best-averages", tmp_path)


def takes(job: Job, best: Path, tmp_path: Path) -> None:
    """Has Model Garden evaluate, export and train on from the first of a board's folder."""
    run = job.run
    words = [f"--experiment={run.job.experiment}", f"--config_file={run.config_file}"]
    evaluation = ["-m", "official.vision.train", "--mode=eval", f"--model_dir={best}"]
    said = run_program(run.python, *evaluation, *words, cwd=tmp_path)
    first = json.loads((best / "best.json").read_text())["checkpoints"][0]
    assert re.search(rf"eval \| step: +{first['global_step']} \|", said)
    found = dict(re.findall(r"'(\w+)': (?:np\.float32\()?([-\d.e+]+)", said))
    names = next(iter(run.reference.values())).keys()
    assert found.keys() == names - {"steps_per_second"}
    for name, value in found.items():
        assert struct.pack("f", float(value)) == struct.pack("f", first["metrics"][name]), name
    exporter = ["-m", "official.vision.serving.export_saved_model", f"--checkpoint_path={best}"]
    exporter += [f"--export_dir={tmp_path / 'exported'}", f"--input_image_size={SIZE}"]
    run_program(run.python, *exporter, "--batch_size=1", *words, cwd=tmp_path)
    assert (tmp_path / "exported" / "saved_model" / "saved_model.pb").is_file()
    start = f"task.init_checkpoint={best},task.init_checkpoint_modules=all"
    for name in ("train_steps", "steps_per_loop", "summary_interval"):
        start += f",trainer.{name}=2"
    trainer = ["-m", "official.vision.train", "--mode=train", f"--params_override={start}"]
    run_program(run.python, *trainer, f"--model_dir={tmp_path / 'next'}", *words, cwd=tmp_path)
    assert (tmp_path / "next" / "ckpt-2.index").is_file()


def test_doctor_finds_no_fault_in_a_sound_run_and_names_an_experiment_that_is_none(job: Job):
    python = ["--python", job.run.python]
    sound = cli("doctor", job.watcher.model_dir, *python, seconds=200)
    assert sound.returncode == 0 and "error " not in sound.stdout, sound.stdout
    assert "pipeline" not in sound.stdout
    wrong = cli(
        "doctor", job.watcher.model_dir, *python, "--experiment", "retinanet_coco", seconds=200
    )
    assert wrong.returncode == 1, wrong.stdout
    assert "experiment (retinanet_coco) is not registered" in wrong.stdout
    assert "the nearest are retinanet_mobile_coco, retinanet" in wrong.stdout
