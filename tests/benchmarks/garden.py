"""What a Model Garden checkpoint costs against Model Garden's own continuous evaluation.

Takes about five minutes on two quiet cores; BENCH_GARDEN_IMAGES and BENCH_ROUNDS make it smaller.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from evaluator_client import PROGRAMS, ROOT, Client, draw_shapes, environment
from garden_runs import JOBS, SHAPES, GardenRun, Job

from benchmarks.od_run import od_python, python_path
from benchmarks.table import Row, goal

IMAGES = int(os.environ.get("BENCH_GARDEN_IMAGES", "200"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "2"))
# Of detectors, which are trained until they find something above their own threshold: tests take
# what is below it too, which no user's job does.
STEPS, EVERY = 300, 150
# Jobs, and how many times faster a checkpoint is to be.
PARTS = {"retinanet": 1.5, "retinanet_ema": 1.5, "classification": 1.0}


def run(*parts: str) -> list[Row]:
    """Measures these jobs, or all, one after another."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=build) as folder, python_path(None):
        return [row for part in parts or PARTS for row in _measure(part, Path(folder))]


def _measure(name: str, folder: Path) -> list[Row]:
    """Warm seconds a checkpoint, both in turn, so that drift hits each alike."""
    job = _train(name, folder)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    metrics: dict[str, dict[str, float]] = {}
    with _theirs(job) as theirs, _ours(job) as ours:
        for turn in range(1 + ROUNDS):
            for prefix in job.prefixes:
                for who, evaluate in (("theirs", theirs), ("ours", ours)):
                    began = time.perf_counter()
                    metrics[who] = evaluate(prefix)
                    if turn:  # the first round warms up
                        seconds[who].append(time.perf_counter() - began)
    differing = [
        one for one, value in metrics["theirs"].items() if metrics["ours"].get(one) != value
    ]
    median = {who: statistics.median(values) for who, values in seconds.items()}
    if metrics["theirs"].get("AP", 1) <= 0:
        raise RuntimeError(f"the detector of {name} finds nothing: its time says little")
    return [
        Row(
            f"warm seconds a checkpoint, {name}, {IMAGES} images",
            f"{median['ours']:.2f} s",
            f"`continuous_eval` {median['theirs']:.2f} s",
            goal(median["theirs"] / median["ours"], "times faster", at_least=PARTS[name]),
        ),
        Row(
            f"metrics that differ from Model Garden's, {name}",
            "**some**" if differing else "none",
            f"{len(metrics['theirs'])} metrics",
        ),
    ]


def _train(name: str, folder: Path) -> GardenRun:
    records = folder / "records"
    if not records.exists():
        records.mkdir()
        sets = {"train": SHAPES["train"], "val": {**SHAPES["val"], "images": IMAGES}}
        draw_shapes(od_python(), records, sets)
    job = GardenRun(folder / name, records, od_python(), _job(name))
    job.folder.mkdir()
    job.make()
    return job


def _job(name: str) -> Job:
    job = JOBS[name]
    if "detection_generator" not in job.task["model"]:
        return job
    model = {key: one for key, one in job.task["model"].items() if key != "detection_generator"}
    return dataclasses.replace(job, task={**job.task, "model": model}, steps=STEPS, every=EVERY)


@contextlib.contextmanager
def _theirs(job: GardenRun) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Model Garden's runner in a process, fed with one prefix after another."""
    program = PROGRAMS / "garden_reference.py"
    with (job.folder / "theirs.log").open("wb") as log:
        process = subprocess.Popen(
            [job.python, str(program), job.job.experiment, str(job.config_file)],
            cwd=job.folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def evaluate(prefix: Path) -> dict[str, Any]:
        assert process.stdin and process.stdout
        process.stdin.write(f"{prefix}\n")
        process.stdin.flush()
        found: dict[str, Any] = json.loads(process.stdout.readline())
        found.pop("steps_per_second", None)
        return found

    try:
        yield evaluate
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _ours(job: GardenRun) -> Iterator[Callable[[Path], dict[str, Any]]]:
    with Client(job.python, job.folder) as client:
        said = job.start(client)
        assert said["type"] == "ready", said

        def evaluate(prefix: Path) -> dict[str, Any]:
            found: dict[str, Any] = client.evaluate(prefix)["metrics"]
            return found

        yield evaluate
