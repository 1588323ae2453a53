"""What an evaluation costs against the OD API's own, against its bound, and the trainer beside it.

Runs for about ten minutes on two cores. `BENCH_PARTS=speed,coco` runs some parts alone, of
`speed`, `bound`, `restore`, `coco` and `trainer`; `BENCH_IMAGES` and `BENCH_COCO_IMAGES` make them
smaller.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluator_client import ROOT, Client

from benchmarks import trainer
from benchmarks.od_run import OdLoop, TrainingRun, ask, fast_backends, od_python, python_path
from benchmarks.table import Row, goal

IMAGES = int(os.environ.get("BENCH_IMAGES", "512"))
COCO_IMAGES = int(os.environ.get("BENCH_COCO_IMAGES", "5000"))
COCO_CLASSES = 80
# Rounds of the warm comparison: the OD API's loop runs once in each, our workers several times.
ROUNDS = 2
OURS_A_ROUND = 3
BOUND_ROUNDS = 7
RESTORE_ROUNDS = 40


def run() -> list[Row]:
    """Measures the parts asked for, one after another."""
    parts: dict[str, Callable[[TrainingRun], list[Row]]] = {
        "speed": speed,
        "bound": bound,
        "restore": restore,
        "coco": coco,
        "trainer": trainer.steps,
    }
    wanted = os.environ.get("BENCH_PARTS", ",".join(parts)).split(",")
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=build) as folder, python_path(None):
        training_run = TrainingRun(Path(folder), IMAGES)
        for name in wanted:
            began = time.perf_counter()
            rows += parts[name](training_run)
            print(f"  {name}: {time.perf_counter() - began:.0f} s", flush=True)
    return rows


def speed(run: TrainingRun) -> list[Row]:
    """Warm seconds a checkpoint, all contenders in turn, so that drift hits each alike."""
    prefixes = run.checkpoints()
    seconds: dict[str, list[float]] = {}
    metrics: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        asked = _contenders(run, stack)
        for prefix in [prefixes[0]] + ROUNDS * [prefixes[1]]:
            for name, evaluate in asked.items():
                for _ in range(1 if name == "od_api" else OURS_A_ROUND):
                    began = time.perf_counter()
                    metrics[name] = evaluate(prefix)
                    took = time.perf_counter() - began
                    # The first round warms up: each has traced and built what it keeps.
                    if prefix != prefixes[0]:
                        seconds.setdefault(name, []).append(took)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    theirs = metrics["od_api"]
    equal = all(metrics["hotcoco"][name] == value for name, value in theirs.items())
    rows = []
    for name, what, wanted in (
        ("hotcoco", "the pipeline's batch size, 1", 4),
        ("pycocotools", "the same with pycocotools", None),
        ("batches of 8", "`--eval-batch-size 8`", 8),
    ):
        rows.append(
            Row(
                f"warm seconds a checkpoint, {run.images} images, {what}",
                f"{median[name]:.2f} s",
                f"`eager_eval_loop` {median['od_api']:.1f} s",
                goal(median["od_api"] / median[name], "times faster", at_least=wanted),
            )
        )
    rows.append(
        Row(
            "metrics that differ from the OD API's, batch size 1, hotcoco",
            "none" if equal else "**some**",
            f"{len(theirs)} metrics",
        )
    )
    apart = max(abs(metrics["batches of 8"][name] - value) for name, value in theirs.items())
    rows.append(Row("largest difference of any metric, `--eval-batch-size 8`", f"{apart:.1e}"))
    return rows


def _contenders(
    run: TrainingRun, stack: contextlib.ExitStack
) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Start the OD API's loop and our workers; all wait while one evaluates."""
    theirs = OdLoop(run)
    stack.callback(theirs.end)
    found: dict[str, Callable[[Path], dict[str, Any]]] = {"od_api": theirs.metrics}
    for name, options in (
        ("hotcoco", {"coco_backend": "hotcoco"}),
        ("pycocotools", {"coco_backend": "pycocotools"}),
        ("batches of 8", {"coco_backend": "hotcoco", "eval_batch_size": 8}),
    ):
        with python_path(fast_backends()):
            client = stack.enter_context(Client(od_python(), run.folder))
        ready = client.start(run.pipeline, **options)
        assert ready["type"] == "ready", ready
        found[name] = lambda prefix, client=client: client.evaluate(prefix)["metrics"]
    return found


def bound(run: TrainingRun) -> list[Row]:
    """Our evaluation against the forward pass and the metrics alone, in one process."""
    with python_path(fast_backends()):
        found = ask("bound.py", run.pipeline, run.checkpoints()[1], BOUND_ROUNDS, cwd=run.folder)
    ours, forward, metrics = (statistics.median(found[n]) for n in ("ours", "forward", "metrics"))
    return [
        Row(
            f"an evaluation, {run.images} images, batch size 1, {found['backend']}",
            f"{ours:.2f} s",
            f"bound: forward pass {forward:.2f} s + metrics {metrics:.2f} s",
            goal(ours / (forward + metrics), "times the bound", at_most=1.4),
        )
    ]


def restore(run: TrainingRun) -> list[Row]:
    """Restoring a checkpoint against reading its bytes, of a small and a larger model."""
    rows = []
    few = run.folder / "few"
    few.mkdir()
    small = TrainingRun(few, 2)
    for depth in ("0.25", "1.0"):
        config = small.config.replace("depth_multiplier: 0.25", f"depth_multiplier: {depth}")
        pipeline = small.write_pipeline(f"depth-{depth}.config", config)
        folder = few / depth
        folder.mkdir()
        found = ask("restore.py", pipeline, folder, RESTORE_ROUNDS, cwd=few)
        ours, reading = (statistics.median(found[name]) for name in ("restore", "read"))
        rows.append(
            Row(
                f"restoring a checkpoint of {found['bytes'] / 1e6:.1f} MB (MobileNet v2 {depth})",
                f"{1000 * ours:.1f} ms",
                f"reading its bytes, cached {1000 * reading:.1f} ms",
                goal(ours / reading, "times", at_most=1.5),
            )
        )
    return rows


def coco(run: TrainingRun) -> list[Row]:
    """The COCO metric step alone, on made-up boxes."""
    with python_path(fast_backends()):
        found = ask("coco_step.py", COCO_IMAGES, COCO_CLASSES, cwd=run.folder)
    theirs = found.pop("od_api")
    detections = found.pop("detections")
    what = f"{COCO_IMAGES} images x {COCO_CLASSES} classes, {detections} detections"
    rows = []
    fastest = min(found, key=lambda name: found[name]["whole"])
    for name, ours in sorted(found.items(), key=lambda item: item[1]["whole"]):
        for part, label, wanted in (
            ("compute", "COCOeval alone", 50),
            ("whole", "detections to metrics", 20),
        ):
            rows.append(
                Row(
                    f"COCO boxes, {what}: {label}, {name}",
                    f"{ours[part]:.2f} s",
                    f"pycocotools under the OD API {theirs[part]:.1f} s",
                    goal(
                        theirs[part] / ours[part],
                        "times faster",
                        at_least=wanted if name == fastest else None,
                    ),
                )
            )
        apart = max(abs(ours["metrics"][n] - v) for n, v in theirs["metrics"].items())
        rows.append(Row(f"largest difference of a metric, {name}", f"{apart:.1e}"))
    return rows
