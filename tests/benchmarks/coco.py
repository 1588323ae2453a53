"""What COCO's metrics cost: each backend against pycocotools, and ours against the OD API's.

Takes about eight minutes on two quiet cores, nearly all of them pycocotools'; BENCH_COCO_IMAGES
makes it smaller.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.od_run import ask, fast_backends, python_path
from benchmarks.table import Row, goal

IMAGES = int(os.environ.get("BENCH_COCO_IMAGES", "5000"))
CLASSES = 80
# Images, classes, and how many times as fast as pycocotools ours is to be.
SIZES = ((512, 2, 40), (IMAGES, CLASSES, 100))
# No pass of the next checkpoint waits longer for Python's lock.
LONGEST_WAIT = 0.05
# Images, classes, and the most seconds of CPU and MB of memory that replicates may take.
REPLICATES, REPLICATED = 1000, ((512, 3, 2, None), (IMAGES, CLASSES, 10, 300))


def run(*parts: str) -> list[Row]:
    """Measures these parts, or all, one after another."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, python_path(fast_backends()):
        return [row for part in parts or PARTS for row in PARTS[part](Path(folder))]


def arrays(folder: Path) -> list[Row]:
    """From columns of boxes to COCOeval's arrays, in one process, all backends in turn."""
    rows = []
    for images, classes, wanted in SIZES:
        found = ask("coco_arrays.py", images, classes, cwd=folder)
        theirs = found["backends"]["pycocotools"]["seconds"]
        what = f"COCOeval, {images} images x {classes} classes, {found['detections']} detections"
        for name, one in found["backends"].items():
            numbers = f"{one['differing']} of {found['numbers']} numbers differ"
            at_least = wanted if name == "numpy" else None
            ratio = goal(theirs / one["seconds"], "times faster", at_least=at_least)
            rows.append(
                Row(
                    f"{what}: {name}",
                    f"{one['seconds']:.3f} s of CPU, {numbers}",
                    f"pycocotools {theirs:.2f} s",
                    ratio,
                )
            )
            at_most = 1 if name == "numpy" else None
            ratio = goal(one["wait"] / LONGEST_WAIT, "times", at_most=at_most)
            rows.append(
                Row(
                    f"the same: longest wait of another thread for Python's lock, {name}",
                    f"{1000 * one['wait']:.0f} ms",
                    f"at most {1000 * LONGEST_WAIT:.0f} ms",
                    ratio,
                )
            )
    return rows


def od_api(folder: Path) -> list[Row]:
    """From the detections of each image to the metrics, as the OD API's evaluator does."""
    found = ask("coco_step.py", IMAGES, CLASSES, cwd=folder)
    theirs: dict[str, Any] = found.pop("od_api")
    what = f"COCO boxes, {IMAGES} images x {CLASSES} classes, {found.pop('detections')} detections"
    rows = []
    for name, ours in found.items():
        rows.append(
            Row(
                f"{what}: detections to metrics, {name}",
                f"{ours['seconds']:.2f} s",
                f"the OD API's evaluator {theirs['seconds']:.1f} s",
                goal(
                    theirs["seconds"] / ours["seconds"],
                    "times faster",
                    at_least=20 if name == "numpy" else None,
                ),
            )
        )
        apart = max(abs(ours["metrics"][n] - v) for n, v in theirs["metrics"].items())
        rows.append(Row(f"largest difference of a metric, {name}", f"{apart:.1e}"))
    return rows


def replicates(folder: Path) -> list[Row]:
    """From matched detections to replicates, intervals and influences, on one thread."""
    rows = []
    for images, classes, seconds, megabytes in REPLICATED:
        found = ask("replicates.py", images, classes, REPLICATES, cwd=folder)
        what = f"{REPLICATES} replicates, {images} images x {classes} classes"
        rows.append(
            Row(
                f"{what}, {found['detections']} detections",
                f"{found['seconds']:.2f} s of CPU, {found['wall']:.2f} s in all",
                f"at most {seconds} s; matching {found['matching']:.2f} s of CPU",
                goal(found["seconds"] / seconds, "times", at_most=1),
            )
        )
        grew = found["grew"] / 1e6
        most = megabytes and goal(grew / megabytes, "times", at_most=1)
        at_most = f"at most {megabytes} MB" if megabytes else ""
        rows.append(Row(f"{what}: memory", f"{grew:.0f} MB more", at_most, most or ""))
    return rows


PARTS: dict[str, Callable[[Path], list[Row]]] = {
    "arrays": arrays,
    "od_api": od_api,
    "replicates": replicates,
}
