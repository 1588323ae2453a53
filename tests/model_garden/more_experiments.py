"""Experiments that take longer: `make test-families` and `make test-tensorflows` ask for them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from evaluator_client import PROGRAMS
from garden_runs import IMAGES, JOBS, garden_run
from test_garden_exact import BATCHED, differing, evaluate

pytestmark = [pytest.mark.tensorflow, pytest.mark.families, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("name", ["segmentation", "mask_rcnn", "faster_rcnn", "yolo"])
def test_every_metric_equals_model_gardens_own_to_the_last_bit(
    name: str, od_python: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    if name == "yolo":
        require_import(od_python, JOBS[name].program)
    run = garden_run(name, od_python, tmp_path_factory)
    found = evaluate(run, tmp_path)
    assert found.ready["images"] == (BATCHED if name == "yolo" else IMAGES)
    reference = run.reference
    for prefix, result in zip(run.prefixes, found.results, strict=False):
        assert differing(result, reference[prefix.name]) == {}
        for one in result["category_metrics"]:
            if one["name"] == "iou":
                assert one["value"] == result["metrics"][f"iou/{one['category']}"]
    names = {one["name"] for one in found.results[0]["category_metrics"]}
    kinds = ("", "mask_") if name == "mask_rcnn" else ("",)
    expected = {f"{kind}{one}" for kind in kinds for one in ("AP", "AP50", "AP75", "ARmax100")}
    assert names == ({"iou"} if name == "segmentation" else expected)


def require_import(python: str, module: str) -> None:
    """Skips a test where Model Garden has a project that does not import with its Python."""
    ran = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True)
    if ran.returncode:
        pytest.skip(f"{module}: {ran.stderr.strip().splitlines()[-1]}")


def test_an_experiment_and_a_task_of_ones_own_have_their_own_metrics(
    od_python: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    """With the metrics that the task makes of COCO's and of the model."""
    run = garden_run("retinanet", od_python, tmp_path_factory)
    own = {"experiment": "my_retinanet"}
    found = evaluate(run, tmp_path, garden_imports=[str(PROGRAMS / "own_retinanet.py")], **own)
    reference = run.evaluate(registers="own_retinanet", **own)
    for prefix, result in zip(run.prefixes, found.results, strict=False):
        assert differing(result, reference[prefix.name]) == {}
        assert {"AP_twice", "first_weight"} < result["metrics"].keys()
    assert len({one["first_weight"] for one in reference.values()}) == len(run.prefixes)


def test_the_whole_eval_set_of_a_detector_is_measured_as_model_garden_would(
    od_python: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    run = garden_run("retinanet", od_python, tmp_path_factory)
    found = evaluate(run, tmp_path, whole_eval_set=True)
    assert found.ready["images"] == IMAGES and found.ready["warnings"] == []
    reference = run.evaluate(task={"validation_data": {"drop_remainder": False}})
    for prefix, result in zip(run.prefixes, found.results, strict=False):
        assert differing(result, reference[prefix.name]) == {}
