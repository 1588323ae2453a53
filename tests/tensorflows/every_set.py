"""What only `make test-tensorflows` asks, on each training set; see `sets.py`."""

from __future__ import annotations

import pytest
from evaluator_client import run_program
from trained import Trained

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(600)]

EXPORTER = "object_detection.export_tflite_graph_tf2"
IS_THERE = f"import importlib.util as u; print(u.find_spec({EXPORTER!r}) is not None)"
CONVERTER = """
import sys, tensorflow as tf
converter = tf.lite.TFLiteConverter.from_saved_model(sys.argv[1])
model = tf.lite.Interpreter(model_content=converter.convert())
print(len(model.get_output_details()))
"""


def test_the_od_apis_exporter_for_tflite_takes_best_as_it_is(trained: Trained) -> None:
    """And what it wrote is converted, into a model of boxes, classes, scores and their number."""
    if run_program(trained.python, "-c", IS_THERE, cwd=trained.folder).strip() != "True":
        pytest.skip(f"this OD API has no {EXPORTER}")
    written = trained.folder / "tflite"
    run_program(
        trained.python,
        *("-m", EXPORTER, "--pipeline_config_path", trained.pipeline),
        *("--trained_checkpoint_dir", trained.model_dir / "best"),
        *("--output_directory", written),
        cwd=trained.folder,
    )
    made = run_program(trained.python, "-c", CONVERTER, written / "saved_model", cwd=trained.folder)
    assert made.splitlines()[-1] == "4"
