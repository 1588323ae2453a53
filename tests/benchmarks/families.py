"""Warm seconds a checkpoint in each family of models, ours and the OD API's own loop in one run.

Small models of the tests' families, on the CPU, COCO's boxes, the pipeline's batch size of 1. The
OD API traces its graph again for each checkpoint, which counts; how long that takes stands beside
it, since it weighs the less the larger an eval set is. Takes about ten minutes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluator_client import PROGRAMS, ROOT, Client, draw_shapes

from benchmarks.od_run import OdLoop, ask, od_python, python_path
from benchmarks.table import Row, goal

sys.path.insert(0, str(PROGRAMS))
import families

# Rounds of the warm comparison: the OD API's loop runs once in each, ours several times.
ROUNDS = 2
OURS_A_ROUND = 3
# By what an image takes: from a tenth of a second to a thousandth.
FEW, MANY = 96, 384
SMALL = {"FEW": 8, "MANY": 8, "ROUNDS": 1, "OURS_A_ROUND": 1}


@dataclass(frozen=True)
class Family:
    """A family of models to measure.

    Attributes:
        title: What to call it.
        config: The pipeline.config's text.
        source: The family whose checkpoint is scored.
        is_slow: An image takes tens of milliseconds.
        wanted: How many times faster it is to be.
    """

    title: str
    config: str
    source: str
    is_slow: bool = False
    wanted: float | None = None


def _alone(model: str, **options: Any) -> str:
    config: str = families.pipeline(model, [families.COCO], batch=1, **options)
    return config


FAMILIES = {
    "ssd_fpn": Family("SSD FPN 96 px", _alone(families.ssd_fpn()), "ssd_fpn_ema_alone", wanted=6),
    "ema": Family(
        "SSD FPN 96 px, moving averages",
        _alone(families.ssd_fpn(), averages=True),
        "ssd_fpn_ema_alone",
    ),
    "faster_rcnn": Family(
        "Faster R-CNN ResNet 50, 64 px",
        _alone(families.faster_rcnn(families.ONE_SHAPE)),
        "faster_rcnn",
        is_slow=True,
        wanted=2.5,
    ),
    "center_net": Family(
        "CenterNet hourglass 10, 96 px",
        _alone(families.center_net(), reader=families.KEYPOINTS),
        "center_net",
    ),
    "efficientdet": Family(
        "EfficientDet b0, 192 px",
        _alone(families.efficientdet(nms=families.ONE_FOR_ALL)),
        "efficientdet",
    ),
}
PARTS = tuple(FAMILIES)
_folders: list[tempfile.TemporaryDirectory[str]] = []


@dataclass(frozen=True)
class FamilyRun:
    """What the OD API's loop and our worker are given."""

    folder: Path
    pipeline: Path


def run(part: str) -> list[Row]:
    """Measures one family."""
    family = FAMILIES[part]
    images = FEW if family.is_slow else MANY
    with python_path(None):
        folder = _folder(images)
        given = FamilyRun(folder, folder / f"{part}.config")
        given.pipeline.write_text(family.config)
        prefix = Path(ask("family.py", family.source, cwd=folder))
        ready, metrics, seconds = _compare(given, prefix)
    theirs, ours = (statistics.median(seconds[name]) for name in ("od_api", "ours"))
    tracing = statistics.median(seconds["tracing"])
    drawn = {metric["name"] for metric in ready["metrics"] if not metric["reproducible"]}
    same = metrics["od_api"].keys() - drawn
    differing = [name for name in same if metrics["ours"][name] != metrics["od_api"][name]]
    batches = ready["details"]["batches"]
    return [
        Row(
            f"{family.title}: warm seconds a checkpoint, {images} images,"
            f" {batches['size']} at once",
            f"{ours:.2f} s",
            f"`eager_eval_loop` {theirs:.1f} s, {tracing:.1f} of them until its first image",
            goal(theirs / ours, "times faster", at_least=family.wanted)
            + f", {(theirs - tracing) / ours:.3g} without that",
        ),
        Row(
            f"{family.title}: metrics that differ from the OD API's",
            ", ".join(sorted(differing)) or "none",
            f"{len(same)} metrics that are not drawn at random",
            "" if batches["size"] > 1 else batches["why"],
        ),
    ]


@functools.cache
def _folder(images: int) -> Path:
    """Draw the images once for the families that share them."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    _folders.append(tempfile.TemporaryDirectory(prefix="bench-", dir=build))
    folder = Path(_folders[-1].name)
    train = {"images": 8, "size": (100, 120), "empty_every": 0, "flags": False}
    draw_shapes(
        od_python(), folder, {"train": train, "val": {"images": images, "size": (100, 120)}}
    )
    return folder


def _compare(
    given: FamilyRun, prefix: Path
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Returns our `ready`, both sides' metrics, and the seconds of each round."""
    seconds: dict[str, list[float]] = {"od_api": [], "tracing": [], "ours": []}
    metrics: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(Client(od_python(), given.folder))
        ready = client.start(given.pipeline)
        assert ready["type"] == "ready", json.dumps(ready)[:4000]
        theirs = OdLoop(given)
        stack.callback(theirs.end)
        for number in range(ROUNDS + 1):
            began = time.perf_counter()
            metrics["od_api"] = theirs.metrics(prefix)
            took = {"od_api": [time.perf_counter() - began], "ours": []}
            took["tracing"] = [theirs.until_first_image]
            for _ in range(OURS_A_ROUND):
                began = time.perf_counter()
                metrics["ours"] = client.evaluate(prefix)["metrics"]
                took["ours"].append(time.perf_counter() - began)
            if number:  # the first warms up: each has built what it keeps
                for name, values in took.items():
                    seconds[name] += values
    return ready, metrics, seconds
