"""Replicates: what a worker draws, and what it says of it. Held to COCOeval in test_coco_numpy."""

from __future__ import annotations

import base64
import json
import math
from array import array
from typing import Any

import pytest
from evaluator_client import PROGRAMS, run_program

# Of 100 replicates of 48 images: every version of NumPy, on every machine, has to draw these.
DRAWS = "a854c3b98a53ee883b234d0523a4248bd02bdf185c0cc04e1ede00fe62be8c21"


@pytest.fixture(scope="module")
def said(od_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `od/replicated.py` prints of a made-up evaluation."""
    folder = tmp_path_factory.mktemp("replicates")
    found: dict[str, Any] = json.loads(
        run_program(od_python, PROGRAMS / "replicated.py", cwd=folder)
    )
    return found


def test_every_numpy_draws_the_same_images(said: dict[str, Any]) -> None:
    assert said["draws"] == DRAWS
    assert said["prefix"]  # fewer replicates are the first of more


def test_images_are_named_where_boxes_and_masks_are_measured(said: dict[str, Any]) -> None:
    assert said["image_names"] == [f"image {place}" for place in range(48)]


def test_the_influences_of_images_are_what_leaving_each_out_takes_away(said: dict[str, Any]):
    assert abs(said["sum"]) < 1e-12
    assert said["agreement"] > 0.99


def test_each_metric_and_category_has_its_replicates_and_their_interval(said: dict[str, Any]):
    fields = said["fields"]
    metrics = {(one["name"], one["category"]): one for one in fields["metrics"]}
    overall, categories = ("mAP", "mAP50", "mAP75"), (1, 2, 3)
    assert list(metrics) == [*((n, None) for n in overall), *(("mAP", c) for c in categories)]
    assert metrics["mAP", None]["objects"] == sum(metrics["mAP", c]["objects"] for c in categories)
    for one in metrics.values():
        values = array("f", base64.b64decode(one["values"]))
        assert len(values) == fields["count"] == 200
        there = sorted(value for value in values if not math.isnan(value))
        outside = sum(not one["low"] <= value <= one["high"] for value in there)
        assert outside == 10  # 5 %
    assert len(base64.b64decode(fields["influences"])) == 4 * fields["images"] == 4 * 48


def test_where_the_values_of_categories_are_too_many_for_a_message_they_have_intervals_alone(
    said: dict[str, Any],
):
    overall = dict.fromkeys(("mAP None", "mAP50 None", "mAP75 None"), True)
    assert said["few"] == overall | dict.fromkeys(("mAP 1", "mAP 2", "mAP 3"), False)
