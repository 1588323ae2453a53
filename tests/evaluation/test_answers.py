"""What a worker says is checked field by field before it is recorded."""

from __future__ import annotations

from typing import Any

import pytest

from watcher.errors import WorkerError
from watcher.evaluation.answers import UnusableAnswer, read_evaluation, read_ready

READY = read_ready({"fingerprint": "f", "images": 8, "metric_names": ["mAP"], "device": "cpu"}, {})


def result(*rows: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    categories = [{"name": name, "category": of, "value": 0.5} for name, of in rows]
    said = {"images": 8, "metrics": {"mAP": 0.5}, "timings": {}, "category_metrics": categories}
    return {**said, **more}


def test_each_value_is_read_by_its_metric_and_category():
    found = read_evaluation(result(("AP", "car"), ("AP", "bus"), ("AR", "car")), READY)
    keys = {("mAP", ""), ("AP", "car"), ("AP", "bus"), ("AR", "car")}
    assert found.values == dict.fromkeys(keys, 0.5)


def test_two_values_of_one_metric_and_category_are_refused():
    with pytest.raises(UnusableAnswer, match="AP of 'car' has two values"):
        read_evaluation(result(("AP", "car"), ("AP", "bus"), ("AP", "car")), READY)


@pytest.mark.parametrize("name", ["", "x" * 2000, None, 7, ["car"]])
def test_what_is_no_name_is_refused(name: Any):
    with pytest.raises(UnusableAnswer, match="the name of a category of AP"):
        read_evaluation(result(("AP", name)), READY)
    with pytest.raises(UnusableAnswer, match="the name of a metric"):
        read_evaluation(result((name, "car")), READY)


def test_an_overall_metric_without_a_name_is_refused():
    with pytest.raises(UnusableAnswer, match="the name of a metric"):
        read_evaluation(result(metrics={"": 0.5}), READY)


def test_more_values_than_a_label_map_can_have_are_refused():
    rows = [("AP", f"category {number}") for number in range(100_001)]
    with pytest.raises(UnusableAnswer, match="100001 values"):
        read_evaluation(result(*rows), READY)


def test_a_time_that_is_no_number_is_left_out_and_the_score_counts():
    found = read_evaluation(result(timings={"a_seconds": float("nan"), "b_seconds": 1.0}), READY)
    assert found.timings == {"b_seconds": 1.0} and found.metrics == {"mAP": 0.5}


def test_part_of_the_images_is_no_evaluation():
    with pytest.raises(WorkerError, match="7 images of 8"):
        read_evaluation(result(images=7), READY)
