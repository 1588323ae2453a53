"""What cannot be evaluated is refused at start-up, by name, in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from evaluator_client import PROGRAMS, Client, run_program

pytestmark = pytest.mark.timeout(600)

CONFIG = (PROGRAMS / "ssd_fixed.config").read_text()
READER = "eval_input_reader {"
EVAL = "eval_config { "
PER_CATEGORY = "include_metrics_per_category: true "

# What is changed in a sound pipeline.config, the refusal's code, and what its message names.
REFUSED = {
    "no records": (("val.tfrecord", "gone-*.tfrecord"), "missing_file", "gone-*.tfrecord"),
    "no label map": (("label_map.pbtxt", "no_map.pbtxt"), "missing_file", "no_map.pbtxt"),
    "unreadable": (("num_classes: 2", "num_classes: two"), "bad_pipeline_config", "two"),
    "unknown set": (('"coco_detection_metrics"', '"nonsense"'), "bad_pipeline_config", "nonsense"),
    "panoptic": (
        ('"coco_detection_metrics"', '"coco_panoptic_metrics"'),
        "unsupported",
        "coco_panoptic_metrics",
    ),
    "no averages kept": (
        ("use_moving_averages: false", "use_moving_averages: true"),
        "bad_pipeline_config",
        "use_moving_averages",
    ),
    "keypoints of no class": (
        ('"coco_detection_metrics"', '"coco_keypoint_metrics"'),
        "bad_pipeline_config",
        "coco_keypoint_metrics",
    ),
    "super categories": (
        (EVAL, EVAL + PER_CATEGORY + "super_categories { key: 'all' value: 'rect,ellipse' }"),
        "unsupported",
        "super_categories",
    ),
    "all metrics by category": (
        (EVAL, EVAL + PER_CATEGORY + "all_metrics_per_category: true "),
        "unsupported",
        "all_metrics_per_category",
    ),
    "unlabeled classes skipped": (
        (EVAL, EVAL + PER_CATEGORY + "skip_predictions_for_unlabeled_class: true "),
        "unsupported",
        "skip_predictions_for_unlabeled_class",
    ),
    "LVIS by category": (
        ('"coco_detection_metrics"', '"lvis_mask_metrics" ' + PER_CATEGORY),
        "unsupported",
        "include_metrics_per_category",
    ),
    "random sample": (
        (READER, READER + " sample_from_datasets_weights: 1.0"),
        "unsupported",
        "sample_from_datasets_weights",
    ),
    "unknown model": (
        ("'ssd_mobilenet_v2_keras'", "'ssd_of_another_version'"),
        "bad_pipeline_config",
        "ssd_of_another_version",
    ),
    "no kind of input": (
        (CONFIG[CONFIG.index(READER) :], READER + ' label_map_path: "label_map.pbtxt" }'),
        "bad_pipeline_config",
        "the eval_input_reader (0) has no tf_record_input_reader",
    ),
    "another kind of input": (
        ('tf_record_input_reader { input_path: "val.tfrecord" }', "external_input_reader { }"),
        "unsupported",
        "external_input_reader",
    ),
    "byte order mark": (
        ("model {", "\ufeffmodel {"),
        "bad_pipeline_config",
        "byte order mark.config) begins with a byte order mark (U+FEFF)",
    ),
    "invisible character": (
        ("num_classes", "\u200bnum_classes"),
        "bad_pipeline_config",
        "got \\u200b",
    ),
    "brace missing": (
        (CONFIG, CONFIG.rstrip()[:-1]),
        "bad_pipeline_config",
        "brace missing.config) does not parse: line ",
    ),
    "label map unclosed": (
        (READER + ' label_map_path: "label_map', READER + ' label_map_path: "unclosed'),
        "bad_pipeline_config",
        'label map (unclosed.pbtxt) does not parse: line 1, column 20: Expected "}"',
    ),
    "label map empty": (
        (READER + ' label_map_path: "label_map', READER + ' label_map_path: "empty'),
        "bad_pipeline_config",
        "label map (empty.pbtxt) holds no class",
    ),
    "no eval input": (
        (CONFIG[CONFIG.index(READER) :], ""),
        "bad_pipeline_config",
        "no eval_input_reader",
    ),
}
# Requests on the sound pipeline.config.
REFUSED_REQUESTS = {
    "no pipeline.config": ({"pipeline_config": "none.config"}, "missing_file", "none.config"),
    "no such input": ({"eval_input": "test"}, "bad_pipeline_config", "test"),
    "no such index": ({"eval_input": 7}, "bad_pipeline_config", "7"),
    "unknown backend": ({"coco_backend": "magic"}, "unsupported", "magic"),
}
# Records with one fault (`od/spoiled_records.py`), and what the refusal says.
REFUSED_RECORDS = {
    "beyond": "record 42 (val-41.jpg) of beyond.tfrecord: image/object/bbox/xmax is 1.1818783",
    "turned": "record 42 (val-41.jpg) of turned.tfrecord: a box has a minimum above its maximum",
    "uneven": "record 42 (val-41.jpg) of uneven.tfrecord: it has 3, 9, 3, 3 values",
    "few texts": "record 42 (val-41.jpg) of few texts.tfrecord: it has 3 boxes and 1 values",
    "no class": "record 2 (val-1.jpg) of no class.tfrecord: it has 4 boxes and 0 values",
    "no image": "record 42 (val-41.jpg) of no image.tfrecord: it has no image/encoded",
    "garbage": "record 41 (val-40.jpg) of garbage.tfrecord: image/encoded (8 bytes) does not",
    "crowd": "record 42 (val-41.jpg) of crowd.tfrecord cannot be read: Input to reshape",
    "type": "xmin (1, 1, 1) is of type int64, and the OD API reads float",
    "two names": "image/filename (a.jpg, b.jpg) holds 2 values, and the OD API reads one",
    "no example": "record 4 of no example.tfrecord is no tf.train.Example",
    "damaged": "record 2 of damaged.tfrecord is damaged: its checksum does not match",
    "GZIP": "records (GZIP.tfrecord) are compressed (GZIP)",
    "ZLIB": "records (ZLIB.tfrecord) are compressed (ZLIB)",
    "folder": "input_path (folder.tfrecord) of the eval_input_reader is a folder",
    "all misspelled": "drops all 135 boxes",
}
# What is evaluated as the OD API does, with a warning.
WARNED_RECORDS = {
    "misspelled": 'is not in the label map (label_map.pbtxt), which has "ellipse": the OD API',
    "no box": "no box in any of the 60 eval records",
    "labels": None,
}


def refusal(python: str, cwd: Path, pipeline: str, **overrides: object) -> dict[str, object]:
    with Client(python, cwd, log=cwd / "worker.log") as client:
        error = client.start(pipeline, **overrides)
        assert error["type"] == "error", error
        assert client.process.wait(10) == 3
    assert "\n" not in str(error["message"])
    return error


def test_interpreter_without_tensorflow_is_refused(tmp_path: Path) -> None:
    error = refusal(sys.executable, tmp_path, "pipeline.config")
    assert error["code"] == "no_tensorflow"
    assert "tensorflow is not installed" in str(error["message"])


def test_another_protocol_is_refused(tmp_path: Path) -> None:
    assert refusal(sys.executable, tmp_path, "x", protocol=999)["code"] == "protocol"


def test_end_of_input_ends_the_worker(tmp_path: Path) -> None:
    with Client(sys.executable, tmp_path) as client:
        assert client.process.stdin
        client.process.stdin.close()
        assert client.process.wait(10) == 0


@pytest.fixture(scope="module")
def refusals(
    od_python: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str] | None]:
    """The refusal of each broken set-up, all tried in one process."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "sound.config").write_text(CONFIG)
    (folder / "unclosed.pbtxt").write_text("item { id: 1 name: 'rect'")
    (folder / "empty.pbtxt").write_text("")
    requests = {}
    for name, (change, _, _) in REFUSED.items():
        path = folder / f"{name}.config"
        path.write_text(CONFIG.replace(*change))
        requests[name] = {"pipeline_config": str(path)}
    for name, (overrides, _, _) in REFUSED_REQUESTS.items():
        requests[name] = {"pipeline_config": "sound.config", **overrides}
    for name in [*REFUSED_RECORDS, *WARNED_RECORDS]:
        (folder / f"{name}.config").write_text(CONFIG.replace("val.tfrecord", f"{name}.tfrecord"))
        requests[name] = {"pipeline_config": f"{name}.config", "spoil": name}
    for name in WARNED_RECORDS:
        requests[name]["records"] = "warned"
    requests["crowd"]["records"] = "explained"  # without the seconds that a model takes
    asked = list(requests.values())
    said = run_program(od_python, PROGRAMS / "refusals.py", cwd=folder, asked=asked)
    return dict(zip(requests, json.loads(said), strict=True))


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_REQUESTS])
def test_what_cannot_be_evaluated_is_refused_by_name(
    refusals: dict[str, list[str] | None], name: str
) -> None:
    _, code, named = {**REFUSED, **REFUSED_REQUESTS}[name]
    found = refusals[name]
    assert found is not None
    assert found[0] == code
    assert named in found[1]


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", REFUSED_RECORDS)
def test_records_that_cannot_be_evaluated_are_named_with_file_record_and_field(
    refusals: dict[str, list[str] | None], name: str
) -> None:
    code, message, hint = refusals[name] or []
    assert (code, REFUSED_RECORDS[name] in message, bool(hint)) == ("bad_records", True, True)
    assert not any(word in message for word in ("{{", "[[", "Op:", "DataLoss", "InvalidArgument"))


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", WARNED_RECORDS)
def test_records_that_are_evaluated_otherwise_than_they_look_are_warned_of_at_the_start(
    refusals: dict[str, list[str] | None], name: str
) -> None:
    said = WARNED_RECORDS[name]
    found = refusals[name]
    assert found is not None
    assert any(said in text for text in found) if said else not found


@pytest.mark.tensorflow
def test_missing_pipeline_config_is_refused_by_the_worker_under_the_users_name(
    od_python: str, tmp_path: Path
) -> None:
    copy = str(tmp_path / "pipeline.config")
    snapshot = {"folder": str(tmp_path), "originals": {copy: "none.config"}}
    error = refusal(od_python, tmp_path, copy, snapshot=snapshot)
    assert error["code"] == "missing_file"
    assert error["message"] == "pipeline config (none.config) is not a file"
