"""Real Model Garden jobs, small, each trained once for all tests that ask for it.

`official.vision.train` as a user starts it, on the drawn shapes of `od/shapes.py`; what Model
Garden's own continuous evaluation gives for each checkpoint is in `reference.json`.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import PROGRAMS, Client, draw_shapes, run_program
from shared import once

IMAGES = 30
SIZE = 64
SHAPES = {
    "train": {"images": 32, "size": [SIZE, SIZE], "empty_every": 0, "flags": False, "garden": True},
    "val": {"images": IMAGES, "seed": 2, "size": [SIZE, SIZE], "garden": True},
}
_BACKBONE = {
    "type": "mobilenet",
    "mobilenet": {"model_id": "MobileNetV2", "filter_size_scale": 0.35},
}
_LEARNING = {
    "optimizer": {"type": "sgd", "sgd": {"momentum": 0.9}},
    "learning_rate": {"type": "constant", "constant": {"learning_rate": 0.02}},
    "warmup": {"type": "linear", "linear": {"warmup_steps": 5, "warmup_learning_rate": 0.001}},
}
_SLOW = {"learning_rate": {"type": "constant", "constant": {"learning_rate": 0.001}}}
_EMA = {"ema": {"average_decay": 0.9, "trainable_weights_only": True}}
_DETECTOR = {
    "num_classes": 3,
    "input_size": [SIZE, SIZE, 3],
    "min_level": 3,
    "max_level": 5,
    "backbone": _BACKBONE,
    "decoder": {"type": "fpn", "fpn": {"num_filters": 32}},
}
_RETINANET = {
    "annotation_file": "",
    "model": {
        **_DETECTOR,
        "head": {"num_convs": 1, "num_filters": 32},
        # So few steps may lift no score over the threshold, and nothing found is an AP of 0.
        "detection_generator": {"pre_nms_score_threshold": 0.0},
    },
}
_SMALL_HEADS = {
    "rpn_head": {"num_convs": 1, "num_filters": 32},
    "detection_head": {"num_convs": 1, "num_filters": 16, "num_fcs": 1, "fc_dims": 32},
    "roi_generator": {"num_proposals": 32, "test_num_proposals": 32, "pre_nms_top_k": 64},
    "roi_sampler": {"num_sampled_rois": 16},
    "mask_head": {"num_convs": 1, "num_filters": 16},
    "mask_sampler": {"num_sampled_masks": 8},
}


@dataclass(frozen=True)
class Job:
    """What is trained: an experiment, and what is set in it.

    With `annotated`, the ground truth is COCO's annotation file beside the records. `data` is for
    both data sets. The trainer of a project registers its experiments.
    """

    experiment: str
    task: dict[str, Any]
    optimizer: dict[str, Any]
    steps: int = 40
    every: int = 20
    batch: int = 8
    annotated: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    program: str = "official.vision.train"

    @property
    def registers(self) -> str:
        """What is imported for the experiment, where that is a project's."""
        return "" if self.program == "official.vision.train" else self.program


JOBS = {
    "retinanet": Job("retinanet_resnetfpn_coco", _RETINANET, _LEARNING, annotated=True),
    "retinanet_ema": Job("retinanet_resnetfpn_coco", _RETINANET, {**_LEARNING, **_EMA}),
    "classification": Job(
        "resnet_imagenet",
        {"model": {"num_classes": 3, "input_size": [SIZE, SIZE, 3], "backbone": _BACKBONE}},
        _LEARNING,
    ),
    "mask_rcnn": Job(
        "maskrcnn_resnetfpn_coco",
        {"annotation_file": "", "model": {**_DETECTOR, **_SMALL_HEADS}},
        {**_LEARNING, **_SLOW},
    ),
    "faster_rcnn": Job(
        "fasterrcnn_resnetfpn_coco",
        {"annotation_file": "", "model": {**_DETECTOR, **_SMALL_HEADS}},
        {**_LEARNING, **_SLOW},
    ),
    "yolo": Job(
        "coco_yolov7_pico",
        {"model": {"num_classes": 3, "input_size": [SIZE, SIZE, 3]}},
        {
            "optimizer": {"sgd_torch": {"warmup_steps": 5}},
            "learning_rate": {"cosine": {"initial_learning_rate": 0.02}},
            "warmup": {"linear": {"warmup_steps": 5}},
        },
        data={
            "decoder": {"simple_decoder": {"coco91_to_80": False}},
            # Of four and of nine images together: slow, and in gigabytes of memory.
            "parser": {
                "mosaic": {"mosaic_frequency": 0, "mosaic9_frequency": 0, "mixup_frequency": 0}
            },
        },
        program="official.projects.yolo.train",
    ),
    "segmentation": Job(
        "seg_deeplabv3plus_pascal",
        {
            "model": {
                "num_classes": 3,
                "input_size": [SIZE, SIZE, 3],
                "backbone": _BACKBONE,
                "decoder": {"type": "identity"},
                "head": {"level": 4, "num_convs": 1, "num_filters": 16, "feature_fusion": None},
            },
            "evaluation": {"report_per_class_iou": True},
        },
        _LEARNING,
    ),
}


@dataclass(frozen=True)
class GardenRun:
    """A job, finished; nothing of it runs any more."""

    folder: Path
    records: Path
    python: str
    job: Job

    @property
    def model_dir(self) -> Path:
        """The trainer's folder."""
        return self.folder / "model_dir"

    @property
    def config_file(self) -> Path:
        """The parameters that the trainer wrote."""
        return self.model_dir / "params.yaml"

    @property
    def prefixes(self) -> list[Path]:
        """The checkpoints, by step."""
        found = [path.with_suffix("") for path in self.model_dir.glob("ckpt-*.index")]
        return sorted(found, key=lambda prefix: int(prefix.name.split("-")[1]))

    @property
    def reference(self) -> dict[str, dict[str, float]]:
        """What Model Garden's own evaluation gives, by checkpoint."""
        found: dict[str, dict[str, float]] = json.loads(self._reference.read_text())
        return found

    @property
    def _reference(self) -> Path:
        return self.folder / "reference.json"

    def make(self) -> None:
        """Train and refer, in an empty folder."""
        written = self.folder / "experiment.yaml"
        written.write_text(json.dumps(self._parameters()))
        options = ["--mode=train", f"--model_dir={self.model_dir}", f"--config_file={written}"]
        program = ["-m", self.job.program, f"--experiment={self.job.experiment}"]
        run_program(self.python, *program, *options, cwd=self.folder)
        self._reference.write_text(json.dumps(self.evaluate()))

    def evaluate(
        self,
        experiment: str = "",
        registers: str = "",
        prefixes: Iterable[Path] = (),
        **override: Any,
    ) -> dict[str, dict[str, float]]:
        """What Model Garden's own evaluation says of all checkpoints, with further settings.

        Or of others, where `prefixes` are given.
        """
        given = [json.dumps(override), registers or self.job.registers]
        program = ["-c", _WITH_OVERRIDE, *given, PROGRAMS / "garden_reference.py"]
        arguments = [*program, experiment or self.job.experiment, self.config_file]
        arguments += prefixes or self.prefixes
        found: dict[str, dict[str, float]]
        found = json.loads(run_program(self.python, *arguments, cwd=self.folder))
        return found

    def start(self, client: Client, **options: Any) -> dict[str, Any]:
        """Starts a worker on the job as the watcher does; returns `ready` or `error`."""
        return start_garden(
            client,
            check=str(options.pop("check", self.prefixes[0])),
            **{
                "experiment": self.job.experiment,
                "config_file": str(self.config_file),
                "garden_imports": [self.job.registers] if self.job.registers else [],
                **options,
            },
        )

    def _parameters(self) -> dict[str, Any]:
        """The job's parameters, as a YAML file would give them."""
        job = self.job
        data: dict[str, Any] = {"global_batch_size": job.batch, "dtype": "float32", **job.data}
        if job.experiment.startswith("seg_"):
            data["output_size"] = [SIZE, SIZE]
        train = {**data, "input_path": str(self.records / "train.tfrecord")}
        train["shuffle_buffer_size"] = 32
        if job.experiment.startswith("seg_"):
            train["crop_size"] = None
        validation = {**data, "input_path": str(self.records / "val.tfrecord")}
        task = {"annotation_file": str(self.records / "val.json")} if job.annotated else {}
        return {
            "runtime": {
                "distribution_strategy": "mirrored",
                "mixed_precision_dtype": "float32",
                "num_gpus": 0,
            },
            "task": {
                "init_checkpoint": "",
                **job.task,
                **task,
                "train_data": train,
                "validation_data": validation,
            },
            "trainer": {
                "train_steps": job.steps,
                "steps_per_loop": job.every,
                "summary_interval": job.every,
                "checkpoint_interval": job.every,
                "validation_interval": job.steps,
                "validation_steps": -1,
                "optimizer_config": job.optimizer,
            },
        }


@functools.cache
def has_trainer(python: str) -> bool:
    """Whether there is an official.vision.train: that of 2.8 is in a beta folder."""
    program = "import official, pathlib; print(pathlib.Path(official.__path__[0], 'vision'))"
    ran = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    return Path(ran.stdout.strip(), "train.py").is_file()


def garden_run(name: str, python: str, factory: pytest.TempPathFactory) -> GardenRun:
    """The job of JOBS, trained by the first process of the test run that asks for it."""
    if not has_trainer(python):
        pytest.skip("tf-models-official of this set has no official.vision.train")
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    records = once(folder / "garden-records", lambda made: draw_shapes(python, made, SHAPES))
    run = GardenRun(folder / f"garden-{name}", records, python, JOBS[name])
    once(run.folder, lambda _: run.make())
    return run


def start_garden(client: Client, check: str | None = None, **options: Any) -> dict[str, Any]:
    """Starts a worker of the kind `model-garden`; returns `ready` or `error`."""
    client.send(type="start", protocol=2, kind="model-garden", check=check, options=options)
    return client.receive("ready", "error")


_WITH_OVERRIDE = """
import os, runpy, sys
del sys.argv[0]
os.environ["PARAMS_OVERRIDE"] = sys.argv.pop(0)
os.environ["GARDEN_IMPORT"] = sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
