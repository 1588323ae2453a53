"""A Model Garden that has no official.vision.train is refused by its version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from watching import ROOT

PROGRAM = """
from evaluators.model_garden import libraries
from evaluators.protocol import Refusal
try:
    libraries.import_libraries()
except Refusal as refusal:
    print(refusal.code, refusal.message, refusal.hint, sep="; ")
"""


def test_a_model_garden_without_a_trainer_of_vision_is_refused_with_its_version(tmp_path: Path):
    """As 2.8 is, which the OD API asks for on TensorFlow 2.8: the trainer is in a beta folder."""
    for name in ("tensorflow", "official", "official/core", "official/vision"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "official/core/train_lib.py").touch()
    known = tmp_path / "tf_models_official-2.8.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Name: tf-models-official\nVersion: 2.8.0\n")
    program = f"import sys\nsys.path[:0] = {[str(tmp_path), str(ROOT)]}\n{PROGRAM}"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.startswith("no_model_garden; tf-models-official 2.8.0 in "), ran.stderr
    assert "has no official.vision.train; give --python" in ran.stdout
