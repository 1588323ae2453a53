"""What a worker says is checked field by field before it is recorded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from watcher.errors import WorkerError
from watcher.evaluation import events
from watcher.evaluation.answers import UnusableAnswer, read_evaluation
from watcher.evaluation.messages import Ready, Result
from watcher.evaluation.wire import WrongResult, read_reply
from watcher.types import Evaluation

NAMES = ["car", "bus", "car", ""]


def read(**said: Any) -> Any:
    return read_reply(json.dumps(said).encode())


def said_ready(**more: Any) -> dict[str, Any]:
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    said = {"type": "ready", "fingerprint": "f", "images": 8, "metrics": [{"name": "mAP"}]}
    return {**said, "categories": categories, **more}


def result(*rows: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    categories = [{"name": name, "category": of, "value": 0.5} for name, of in rows]
    said = {"type": "result", "id": "t", "images": 8, "metrics": {"mAP": 0.5}}
    return {**said, "timings": {}, "category_metrics": categories, **more}


def evaluation(said: dict[str, Any]) -> Evaluation:
    ready, message = read(**said_ready()), read(**said)
    assert isinstance(ready, Ready) and isinstance(message, Result), message
    return read_evaluation(message, events.Ready(ready, {}))


def reason(said: dict[str, Any]) -> str:
    message = read(**said)
    assert isinstance(message, WrongResult), message
    assert message.id == "t"
    return message.reason


def test_each_value_is_read_by_its_metric_and_category():
    found = evaluation(result(("AP", 0), ("AP", 1), ("AR", 0)))
    keys = {("mAP", ""), ("AP", "car"), ("AP", "bus"), ("AR", "car")}
    assert found.values == dict.fromkeys(keys, 0.5)


def test_two_values_of_one_metric_and_category_are_refused():
    with pytest.raises(UnusableAnswer, match="AP of 'car' has two values"):
        evaluation(result(("AP", 0), ("AP", 1), ("AP", 2)))


def test_a_category_that_was_not_declared_is_refused():
    with pytest.raises(UnusableAnswer, match="AP is given of category 7, which is none of the 4"):
        evaluation(result(("AP", 7)))


def test_a_category_whose_name_is_none_is_refused():
    with pytest.raises(UnusableAnswer, match=r"the name of category 3 \(''\) is none"):
        evaluation(result(("AP", 3)))


@pytest.mark.parametrize("name", ["", "x" * 2000, None, 7, ["car"]])
def test_what_is_no_name_is_refused(name: Any):
    assert reason(result((name, 0))).startswith("category_metrics[0].name (")
    assert reason(result(("AP", "car"))).startswith("category_metrics[0].category ('car'): ")


@pytest.mark.parametrize("name", ["", "x" * 2000])
def test_an_overall_metric_without_a_name_is_refused(name: str):
    assert reason(result(metrics={"mAP": 0.5, name: 0.5})).startswith("a name in metrics ('")


def test_more_values_than_a_label_map_can_have_are_refused():
    rows = [("AP", number) for number in range(100_001)]
    assert reason(result(*rows)).startswith("category_metrics (100001 values): ")


def test_a_time_that_is_no_number_is_left_out_and_the_score_counts():
    found = evaluation(result(timings={"a_seconds": None, "b_seconds": 1.0}))
    assert found.timings == {"b_seconds": 1.0} and found.metrics == {"mAP": 0.5}


def test_part_of_the_images_is_no_evaluation():
    with pytest.raises(WorkerError, match="7 images of 8"):
        evaluation(result(images=7))


PICTURE = {"kind": "picture", "name": "a", "path": "/p/1/a.png", "sha256": 64 * "0"}


def test_pictures_are_recorded_by_their_folder_and_other_files_one_by_one():
    table = {"kind": "table", "name": "images", "uri": "s3://b/t.csv", "sha256": 64 * "1"}
    details = evaluation(result(artefacts=[PICTURE, table])).details
    assert details["visualizations"] == "/p/1"
    assert details["artefacts"] == [{**table, "path": None, "image": None}]
    assert evaluation(result()).details["visualizations"] is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"images": "many"}, "images ('many'): expected `int`, got `str`"),
        ({"images": -1}, "images (-1): expected `int` >= 0"),
        ({"metrics": None}, "metrics (None): expected `object`, got `null`"),
        ({"metrics": {"a": 1, "b": "high"}}, "metrics['b'] ('high'): expected `float | null`, got"),
        ({"timings": {"a": [1]}}, "timings['a'] (1 values): expected `float | null`, got `array`"),
        ({"metrics": {"a": 10**400}}, "metrics['a'] (1000"),
        ({"artefacts": [{**PICTURE, "uri": "s3://b"}]}, "artefacts[0] (5 values): expected either"),
        ({"artefacts": [{**PICTURE, "sha256": "0"}]}, "artefacts[0].sha256 ('0'): expected `str`"),
        ({"artefacts": [{"kind": "file"}]}, "artefacts[0] (1 values): object missing required"),
    ],
)
def test_a_wrong_result_is_told_by_its_field_and_value_and_is_of_its_evaluation_alone(
    more: dict[str, Any], said: str
):
    assert reason(result(**more)).startswith(said)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"Accumulating evaluation results...", "the worker sent garbage: b'Accumulating"),
        (b"[1]", "the worker sent garbage"),
        (b'{"type": 4}', "the worker sent garbage"),
        (b'{"type": "result", "id": "t", "metrics": {"\\ud800": 1}}', "the worker sent garbage"),
        (b'{"type": "heartbeat", "x": ' + 9999 * b"[", "the worker sent garbage"),
        (b'{"type": "later"}', "the worker sent a wrong later: type ('later'): invalid value"),
        (b'{"type": "result", "id": 7}', "the worker sent a wrong result: id (7): expected `str`"),
        (b'{"type": "progress", "id": "t", "done": 1}', "the worker sent a wrong progress: object"),
        (
            b'{"type": "hello", "protocol": {}, "protocol": 1}',
            "the worker sent a wrong hello: ",
        ),
        (
            b'{"type": "hello", "protocol": 1, "pid": 1, "versions": {"a": 1}, "versions": 1}',
            "the worker sent a wrong hello: Expected `str`, got `int` - at `$.versions[...]`",
        ),
    ],
)
def test_what_belongs_to_no_evaluation_is_an_error_of_the_worker(line: bytes, said: str):
    with pytest.raises(WorkerError) as caught:
        read_reply(line)
    assert caught.value.message.startswith(said)


def test_what_a_message_says_beyond_what_is_known_is_no_mistake():
    assert evaluation(result(since_a_later_version=1)).metrics == {"mAP": 0.5}
