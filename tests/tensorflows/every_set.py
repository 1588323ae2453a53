"""What only `make test-tensorflows` asks, on each training set; see `sets.py`."""

from __future__ import annotations

import pytest
from evaluator_client import run_program
from trained import Trained

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(600)]

EXPORTER = "object_detection.export_tflite_graph_tf2"
# Both in one process, for TensorFlow's import: the OD API's own script, and what users do then.
PROGRAM = f"""
import importlib.util, runpy, sys
written = sys.argv.pop(1)
if importlib.util.find_spec("{EXPORTER}") is None:
    sys.exit(print("not there"))
try:
    runpy.run_module("{EXPORTER}", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert not ended.code, ended.code
import tensorflow as tf
converter = tf.lite.TFLiteConverter.from_saved_model(written + "/saved_model")
model = tf.lite.Interpreter(model_content=converter.convert())
print("outputs", len(model.get_output_details()))
"""


def test_the_od_apis_exporter_for_tflite_takes_best_as_it_is(trained: Trained) -> None:
    """And what it wrote is converted, into a model of boxes, classes, scores and their number."""
    written = trained.folder / "tflite"
    out = run_program(
        trained.python,
        *("-c", PROGRAM, written, "--output_directory", written),
        *("--pipeline_config_path", trained.pipeline),
        *("--trained_checkpoint_dir", trained.model_dir / "best"),
        cwd=trained.folder,
    )
    said = out.splitlines()[-1]
    if said == "not there":
        pytest.skip(f"this OD API has no {EXPORTER}")
    assert said == "outputs 4"
