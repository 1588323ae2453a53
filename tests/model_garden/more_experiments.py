"""Experiments that take longer: `make test-tensorflows` asks for them, on each training set."""

from __future__ import annotations

from pathlib import Path

import pytest
from garden_runs import IMAGES, garden_run
from test_garden_exact import differing, evaluate

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", ["segmentation", "mask_rcnn"])
def test_every_metric_equals_model_gardens_own_to_the_last_bit(
    name: str, od_python: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    run = garden_run(name, od_python, tmp_path_factory)
    found = evaluate(run, tmp_path)
    assert found.ready["images"] == IMAGES
    reference = run.reference
    for prefix, result in zip(run.prefixes, found.results, strict=False):
        assert differing(result, reference[prefix.name]) == {}
        for one in result["category_metrics"]:
            if one["name"] == "iou":
                assert one["value"] == result["metrics"][f"iou/{one['category']}"]
    names = {one["name"] for one in found.results[0]["category_metrics"]}
    assert names == ({"iou"} if name == "segmentation" else _AP)


_AP = {f"{kind}{name}" for kind in ("", "mask_") for name in ("AP", "AP50", "AP75", "ARmax100")}


def test_the_whole_eval_set_of_a_detector_is_measured_as_model_garden_would(
    od_python: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    run = garden_run("retinanet", od_python, tmp_path_factory)
    found = evaluate(run, tmp_path, whole_eval_set=True)
    assert found.ready["images"] == IMAGES and found.ready["warnings"] == []
    reference = run.evaluate(task={"validation_data": {"drop_remainder": False}})
    for prefix, result in zip(run.prefixes, found.results, strict=False):
        assert differing(result, reference[prefix.name]) == {}
