"""What cannot be evaluated is refused at start-up, by name, in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from evaluator_client import PROGRAMS, Client, draw_shapes

tensorflow = pytest.mark.tensorflow
pytestmark = pytest.mark.timeout(120)

CONFIG = (PROGRAMS / "ssd_fixed.config").read_text()


@pytest.fixture(scope="module")
def shapes(od_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes(od_python, folder, "val", 2)
    return folder


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


@tensorflow
@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (("val.tfrecord", "gone-*.tfrecord"), "missing_file", "gone-*.tfrecord"),
        (("label_map.pbtxt", "no_map.pbtxt"), "missing_file", "no_map.pbtxt"),
        (("num_classes: 2", "num_classes: two"), "bad_pipeline_config", "two"),
        (('"coco_detection_metrics"', '"nonsense"'), "bad_pipeline_config", "nonsense"),
    ],
)
def test_broken_set_up_is_refused_by_name(
    od_python: str, shapes: Path, change: tuple[str, str], code: str, named: str
) -> None:
    (shapes / "broken.config").write_text(CONFIG.replace(*change))
    error = refusal(od_python, shapes, "broken.config")
    assert error["code"] == code
    assert named in str(error["message"])


@tensorflow
def test_missing_pipeline_config_is_refused(od_python: str, shapes: Path) -> None:
    error = refusal(od_python, shapes, "none.config")
    assert (error["code"], "none.config" in str(error["message"])) == ("missing_file", True)
