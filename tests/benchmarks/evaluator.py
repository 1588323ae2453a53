"""What an evaluation costs against the OD API's own, against its bound, and the trainer beside it.

Takes about ten minutes on two quiet cores. `python -m benchmarks evaluator:speed` runs one of PARTS
alone; BENCH_IMAGES, BENCH_ROUNDS and BENCH_CYCLES make them smaller.
"""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evaluator_client import ROOT, Client, start_request

from benchmarks import trainer
from benchmarks.od_run import OdLoop, TrainingRun, ask, od_python, python_path
from benchmarks.table import Row, goal

IMAGES = int(os.environ.get("BENCH_IMAGES", "512"))
# Rounds of the warm comparison: the OD API's loop runs once in each, our workers several times.
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "2"))
OURS_A_ROUND = 3
BOUND_ROUNDS = 7
RESTORE_ROUNDS = 40
# So many checkpoints one after another, and so often with and without replicates in turn.
QUEUED, QUEUE_ROUNDS, REPLICATES = 8, 4, 1000
_folders: list[tempfile.TemporaryDirectory[str]] = []


def run(*parts: str) -> list[Row]:
    """Measures these parts, or all, one after another."""
    with python_path(None):
        return [row for part in parts or PARTS for row in PARTS[part](training_run())]


@functools.cache
def training_run() -> TrainingRun:
    """What the parts measure on, made once; its folder goes with the process."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    _folders.append(tempfile.TemporaryDirectory(prefix="bench-", dir=build))
    return TrainingRun(Path(_folders[-1].name), IMAGES)


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
    equal = all(metrics["default"][name] == value for name, value in theirs.items())
    rows = []
    for name, what, wanted in (
        ("default", "as many images at once as change no bit", 10),
        ("pycocotools", "the same with pycocotools", None),
        ("one by one", "`--eval-batch-size 1`", 4),
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
            "metrics that differ from the OD API's, as many at once as change no bit",
            "none" if equal else "**some**",
            f"{len(theirs)} metrics",
        )
    )
    for kind in ("Detection", "Loss"):
        apart, name = max(
            (abs(metrics["batches of 8"][name] - value), name)
            for name, value in theirs.items()
            if name.startswith(kind)
        )
        rows.append(
            Row(
                f"largest difference of a metric {kind}..., `--eval-batch-size 8`",
                f"{apart:.1e} in {name}",
                f"its value {theirs[name]:.3g}",
            )
        )
    return rows


def _contenders(
    run: TrainingRun, stack: contextlib.ExitStack
) -> dict[str, Callable[[Path], dict[str, Any]]]:
    """Start the OD API's loop and our workers; all wait while one evaluates."""
    clients = {}
    for name, options in (
        ("default", {}),
        ("pycocotools", {"coco_backend": "pycocotools"}),
        ("one by one", {"eval_batch_size": 1}),
        ("batches of 8", {"eval_batch_size": 8}),
    ):
        clients[name] = stack.enter_context(Client(od_python(), run.folder))
        clients[name].send(**start_request(run.pipeline, **options))
    theirs = OdLoop(run)
    stack.callback(theirs.end)
    found: dict[str, Callable[[Path], dict[str, Any]]] = {"od_api": theirs.metrics}
    for name, client in clients.items():
        ready = client.receive("ready", "error")
        assert ready["type"] == "ready", ready
        found[name] = lambda prefix, client=client: client.evaluate(prefix)["metrics"]
    return found


def bound(run: TrainingRun) -> list[Row]:
    """Our evaluation against the forward pass and the metrics alone, in one process."""
    found = ask("bound.py", run.pipeline, run.checkpoints()[1], BOUND_ROUNDS, cwd=run.folder)
    ours, forward, metrics = (statistics.median(found[n]) for n in ("ours", "forward", "metrics"))
    return [
        Row(
            f"an evaluation, {run.images} images, {found['size']} at once, {found['backend']}",
            f"{ours:.2f} s",
            f"bound: the same passes alone {forward:.2f} s + metrics {metrics:.2f} s",
            goal(ours / (forward + metrics), "times the bound", at_most=1.2),
        )
    ]


def replicates(run: TrainingRun) -> list[Row]:
    """Seconds a checkpoint, one after another as a queue gives them, with replicates and without.

    Those of one are computed while the next is in the model.
    """
    prefixes = run.checkpoints()
    seconds: dict[int, list[float]] = {REPLICATES: [], 0: []}
    with contextlib.ExitStack() as stack:
        clients = {}
        for count in seconds:
            clients[count] = stack.enter_context(Client(od_python(), run.folder))
            assert clients[count].start(run.pipeline, replicates=count)["type"] == "ready"
            _in_a_row(clients[count], prefixes[:1])
        for _ in range(QUEUE_ROUNDS):
            for count, client in clients.items():
                seconds[count] += [_in_a_row(client, QUEUED * prefixes[1:]) / QUEUED]
    with_them, without = (statistics.median(seconds[count]) for count in (REPLICATES, 0))
    return [
        Row(
            f"warm seconds a checkpoint, {QUEUED} of {run.images} images in a row,"
            f" {REPLICATES} replicates of each",
            f"{with_them:.3f} s",
            f"`--replicates 0` {without:.3f} s",
            goal(with_them / without, "times", at_most=1.05),
        )
    ]


def _in_a_row(client: Client, prefixes: Sequence[Path]) -> float:
    """Return the seconds until all have their results; each is asked for once the model is free."""
    began = time.perf_counter()
    results = 0
    for number, prefix in enumerate(prefixes):
        client.send(type="evaluate", id=str(number), prefix=str(prefix))
        while client.receive("free", "result", "replicates", "failed")["type"] != "free":
            results += client.replies[-1]["type"] == "result"
    while results < len(prefixes):
        results += client.receive("result", "failed")["type"] == "result"
    took = time.perf_counter() - began
    if client.replies[-1].get("replicates_follow"):
        client.receive("replicates")
    return took


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


PARTS: dict[str, Callable[[TrainingRun], list[Row]]] = {
    "speed": speed,
    "bound": bound,
    "replicates": replicates,
    "restore": restore,
    "trainer": trainer.steps,
}
