"""The main job on the real parts: unmodified trainer, real evaluator, real checkpoints.

One run serves all tests here, and others besides (`helpers/trained.py`): `model_main_tf2` writes
checkpoints under the launcher, the watcher beside it stops the training, and is through with all of
them when the run is handed to the tests.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import PROGRAMS, run_program
from launching import children
from tensorboards import tensorboard
from trained import IMAGES, PICTURES, REFERRED, Trained
from watching import Watcher, alive, cli, wait_until

from watcher.checkpoints.bundle import verify

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(1200)]

MAP = "DetectionBoxes_Precision/mAP"
# The OD API's exporter, after what TensorFlow takes for the latest checkpoint of a folder.
EXPORTER = """
import runpy, sys, tensorflow
print(tensorflow.train.latest_checkpoint(sys.argv.pop(1)))
runpy.run_module("object_detection.exporter_main_v2", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Job:
    """A finished training run with the watcher beside it."""

    run: Trained
    watcher: Watcher

    @property
    def folder(self) -> Path:
        return self.run.folder

    def flags(self) -> list[object]:
        return self.run.flags()


@pytest.fixture(scope="module")
def job(trained: Trained) -> Iterator[Job]:
    text = trained.pipeline.read_text()
    watcher = Watcher(trained.folder)
    trained.pipeline.write_text(text)
    yield Job(trained, watcher)
    watcher.end()


def test_every_checkpoint_of_the_trainer_has_its_outcome(job: Job):
    states = job.watcher.states()
    assert states.pop("ckpt-1") == "untrained"
    assert len(states) >= 2
    assert set(states.values()) == {"scored"}
    steps = job.watcher.query("SELECT global_step FROM history ORDER BY global_step")
    assert [row["global_step"] for row in steps] == [100 * n for n in range(len(steps))]


@pytest.mark.parametrize("name", REFERRED)
def test_every_metric_equals_the_od_apis_own_to_the_last_bit(job: Job, name: str):
    rows = job.watcher.query(
        "SELECT metric, value FROM metric_values WHERE checkpoint = ? AND category IS NULL", name
    )
    ours = {row["metric"]: row["value"] for row in rows}
    assert ours.pop("latency_ms") > 0  # our own; the OD API does not measure it
    assert ours == job.run.reference[name]
    assert any(name.startswith("Loss/") for name in ours)


def test_tensorboard_shows_what_the_od_apis_own_evaluation_would_have_written(job: Job):
    seen = {}
    for folder in (job.watcher.model_dir, job.folder / "reference"):
        with tensorboard(job.run.python, folder) as look:
            seen[folder] = look()
    ours, theirs = seen.values()
    evaluated = [row["global_step"] for row in job.watcher.query("SELECT * FROM history")][1:]
    pictures = {f"eval_side_by_side_{number}_0" for number in range(PICTURES)}
    for reader in ("accumulator", "server"):
        expected, found = (one[reader]["scalars"]["eval"] for one in (theirs, ours))
        assert found.keys() - expected.keys() == {"checkpoint_watcher/latency_ms"}
        for tag, points in expected.items():
            if all(value == -1 for _, value in points):
                assert tag not in found, "nothing was measured"
                continue
            assert [step for step, _ in points] == [100, 200]
            assert [step for step, _ in found[tag]] == evaluated
            assert points == [point for point in found[tag] if point[0] <= 200], tag
        expected, found = (one[reader]["images"]["eval"] for one in (theirs, ours))
        assert found.keys() == expected.keys() == pictures
        for tag, points in expected.items():
            assert points == [point for point in found[tag] if point[0] <= 200], tag
    assert "train" in ours["server"]["scalars"], "beside the trainer's"


def test_the_report_shows_pictures_of_the_images_by_the_names_of_the_records(
    job: Job, tmp_path: Path
):
    (row,) = job.watcher.query("SELECT names FROM image_names")
    names = json.loads(row["names"])[:PICTURES]
    tags = {name: f"eval_side_by_side_{number}_0" for number, name in enumerate(names)}
    for told in job.watcher.query("SELECT details FROM evaluations"):
        assert json.loads(told["details"])["pictured"] == tags
    file = tmp_path / "report.html"
    assert cli("web", job.watcher.model_dir, "--export", file).returncode == 0
    text = file.read_text()
    captions = re.findall(r"<figcaption>(.*?): [+-]", text)
    assert sorted(captions) == sorted(names)
    pngs = [base64.b64decode(one) for one in re.findall(r"image/png;base64,([^\"]+)", text)]
    # Both may have found nothing in one of them, and then its pictures are the same.
    assert len(pngs) == 2 * PICTURES and len(set(pngs)) >= PICTURES


def test_best_is_what_the_database_says_and_tensorflow_and_the_exporter_take_it_as_it_is(job: Job):
    best = job.watcher.query("SELECT checkpoint, path, sha256, score FROM best")[0]
    scores = job.watcher.query("SELECT max(score) AS score FROM history")[0]
    assert best["score"] == scores["score"]
    assert verify(Path(best["path"])).sha256 == best["sha256"]
    board = json.loads((job.watcher.best_dir / "best.json").read_text())["checkpoints"]
    assert [row["checkpoint"] for row in board] == job.watcher.leaderboard()
    # Both in one process, for TensorFlow's import.
    out = run_program(
        job.run.python,
        *("-c", EXPORTER, job.watcher.best_dir, "--input_type", "image_tensor"),
        *("--pipeline_config_path", job.run.pipeline),
        *("--trained_checkpoint_dir", job.watcher.best_dir),
        *("--output_directory", job.folder / "exported"),
        cwd=job.folder,
    )
    assert out.splitlines()[0] == best["path"]
    assert (job.folder / "exported" / "saved_model" / "saved_model.pb").stat().st_size > 0


def test_watcher_and_worker_leave_nothing_in_their_temporary_folder(job: Job):
    """Not the code that TensorFlow generates either, though the worker is ended at once."""
    assert list(job.run.temporary.iterdir()) == []


def test_the_sentinel_tells_why_and_which_is_best(job: Job):
    notice = job.watcher.stop_notice()
    assert notice["reason"] == "patience"
    assert "since ckpt-2 " in notice["message"]  # no gain can be greater than min_delta 1
    best = job.watcher.query("SELECT max(score) AS score FROM history")[0]
    assert notice["best"]["score"] == best["score"]
    assert notice["run"] == job.watcher.query("SELECT uuid FROM runs")[0]["uuid"]


def test_timings_versions_and_device_are_recorded(job: Job):
    row = job.watcher.query("SELECT timings, versions, device, images FROM evaluations")[0]
    assert row["images"] == IMAGES and row["device"] == "cpu"
    assert json.loads(row["versions"])["tensorflow"].startswith("2.")
    assert json.loads(row["timings"])["forward_seconds"] > 0


@pytest.fixture(scope="module")
def restarted(job: Job) -> dict[str, Any]:
    """What was evaluated before the watcher ran again, with another metric and to average."""
    evaluated = job.watcher.query(EVALUATED)[0]
    for further in ((), ("--recompute-batch-norm", 8)):
        asked = cli("average", job.watcher.model_dir, "--last", 2, *further)
        assert asked.returncode == 0, asked.stderr
    metric = ["--metric", "Loss/total_loss", "--mode", "min", "--exit-when-idle", 1]
    ended = cli("run", job.watcher.model_dir, *job.flags(), *metric, seconds=240)
    assert ended.returncode == 0, ended.stderr
    return evaluated


EVALUATED = """SELECT max(evaluated_at) AS at, count(*) AS n FROM evaluations
    WHERE checkpoint_id IN (SELECT id FROM checkpoints)"""


def test_a_restart_with_another_metric_needs_no_evaluation(job: Job, restarted: dict[str, Any]):
    assert job.watcher.query(EVALUATED) == [restarted]
    best = job.watcher.query("SELECT score, metric FROM best")[0]
    least = job.watcher.query(
        "SELECT min(value) AS value FROM metric_values WHERE metric = 'Loss/total_loss'"
        " AND checkpoint IN (SELECT checkpoint FROM leaderboard)"
    )[0]
    assert best == {"score": least["value"], "metric": "Loss/total_loss"}


def test_an_average_of_a_finished_run_is_the_mean_of_its_parents_evaluated_and_kept(
    job: Job, restarted: dict[str, Any], tmp_path: Path
):
    scored = [row["checkpoint"] for row in job.watcher.query("SELECT * FROM history")][1:]
    row, _ = job.watcher.query("SELECT * FROM averages")
    assert (row["state"], row["reason"], row["metric"]) == ("scored", None, "Loss/total_loss")
    assert row["parents"] == ",".join(scored[-2:])
    assert row["global_step"] == 100 * len(scored) and row["score"] > 0
    kinds = job.watcher.query("SELECT name FROM all_checkpoints WHERE kind = 'averaged'")
    assert [one["name"] for one in kinds] == [f"{scored[-1]}-average{n}" for n in (1, 2)]
    placed = job.watcher.model_dir / "best-averages"
    assert row["path"] == str(placed / f"{scored[-1]}-average1")
    assert verify(Path(row["path"])).sha256 == row["sha256"]
    board = json.loads((placed / "best.json").read_text())["checkpoints"]
    assert (row["checkpoint"], row["score"]) in [(one["checkpoint"], one["score"]) for one in board]
    parents = [job.watcher.model_dir / name for name in scored[-2:]]
    program = [PROGRAMS / "means.py", row["path"], *parents]
    said = json.loads(run_program(job.run.python, *program, cwd=tmp_path))
    assert said["wrong"] == [] and said["graph"]
    # A slow run goes on where the learning rate is 0: batch norm's statistics alone still move.
    assert said["means"] > said["moved"] > 100


def test_an_average_with_batch_norm_computed_anew_is_another_one_beside_it(
    job: Job, restarted: dict[str, Any]
):
    plain, anew = job.watcher.query("SELECT * FROM averages")
    assert (anew["state"], anew["parents"]) == ("scored", plain["parents"])
    assert (plain["recompute_batch_norm"], plain["batch_norm_images"]) == (None, None)
    told = ("recompute_batch_norm", "batch_norm_images", "batch_norm_batch", "batch_norm_layers")
    assert [anew[name] for name in told] == [8, 8, 4, 64]
    assert anew["score"] != plain["score"] and anew["sha256"] != plain["sha256"]


def test_an_unknown_metric_is_refused_with_all_the_names_there_are(job: Job):
    ended = cli(
        *("run", job.watcher.model_dir, *job.flags(), "--metric", "mAPP", "--exit-when-idle", 1),
        seconds=240,
    )
    assert ended.returncode == 1
    hint = ended.stderr.strip().splitlines()[-1]
    rows = job.watcher.query("SELECT DISTINCT metric FROM metric_values WHERE category IS NULL")
    assert all(row["metric"] in hint for row in rows)


def test_a_broken_set_up_ends_the_start_with_one_clear_error(job: Job, tmp_path: Path):
    broken = tmp_path / "pipeline.config"
    broken.write_text(job.run.pipeline.read_text().replace("label_map.pbtxt", "no_map.pbtxt"))
    flags = ["--pipeline-config", broken, "--python", job.run.python]
    ended = cli("run", tmp_path, *flags, seconds=240)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    error, hint = ended.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: ") and "no_map.pbtxt" in error
    assert hint.startswith("hint: ")


def test_a_gpu_that_tensorflow_does_not_see_is_refused_not_replaced_by_the_cpu(
    job: Job, tmp_path: Path
):
    ended = cli("run", tmp_path, *job.flags(), "--device", "gpu:7", seconds=240)
    assert ended.returncode == 1
    assert "error: device (gpu:7) is not visible to TensorFlow" in ended.stderr


def test_an_interpreter_without_tensorflow_is_refused(job: Job, tmp_path: Path):
    flags = ["--pipeline-config", job.run.pipeline, "--python", sys.executable]
    ended = cli("run", tmp_path, *flags)
    assert ended.returncode == 1
    assert "tensorflow is not installed" in ended.stderr


def test_the_real_worker_dies_with_a_killed_daemon_even_when_it_is_stopped(job: Job):
    daemon = job.watcher.start(*job.flags())
    worker = wait_until(lambda: children(daemon.pid), "the worker has started")[0]
    maps = Path(f"/proc/{worker}/maps")
    wait_until(lambda: "tensorflow" in maps.read_text(), "the worker is at work", 60)
    os.kill(worker, signal.SIGSTOP)
    try:
        daemon.kill()
        daemon.wait()
        assert wait_until(lambda: not alive(worker), "the stopped worker is gone")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_the_launcher_ends_the_unmodified_trainer_after_one_more_whole_checkpoint(job: Job):
    model_dir = job.watcher.model_dir
    (line,) = [
        line for line in job.run.launcher_log.read_text().splitlines() if "] early stop, " in line
    ]
    assert "the trainer ends at its next checkpoint: no improvement" in line
    asked = datetime.fromisoformat(line.split()[0]).timestamp()
    saved = {path: verify(path.with_suffix("")) for path in model_dir.glob("ckpt-*.index")}
    assert sum(path.stat().st_mtime > asked for path in saved) == 1
    state = (model_dir / "checkpoint").read_text()
    assert all(f'"{path.stem}"' in state for path in saved)
    assert not list(model_dir.glob("*_temp"))
