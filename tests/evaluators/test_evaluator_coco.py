"""Every COCO backend gives what the OD API's own evaluators give with pycocotools.

hotcoco to the last bit; faster-coco-eval, which is used only when asked for, within 1e-15. So does
brute force in a metric plugin.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import PROGRAMS, ROOT, run_program

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(300)]

# Where make installs the fast backends, which the training lists leave out.
BACKENDS = ROOT / "build" / "coco-backends"


def answers(od_python: str, folder: Path, *options: object) -> dict[str, Any]:
    out = run_program(od_python, PROGRAMS / "coco_backends.py", *options, cwd=folder)
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(
    "options", [("--images", 60, "--seed", 3), ("--masks",), ("--nothing-found",)], ids=str
)
def test_backends_equal_the_od_api(
    od_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...]
) -> None:
    there = BACKENDS.exists()
    monkeypatch.setenv("PYTHONPATH", str(BACKENDS))
    found = answers(od_python, tmp_path, *options)
    expected = found.pop("od_api")["metrics"]
    kind = "Masks" if "--masks" in options else "Boxes"
    by_plugin = found.pop("plugin")
    assert by_plugin == pytest.approx(expected[f"Detection{kind}_Precision/mAP@.50IOU"], rel=1e-9)
    assert set(found) >= {"pycocotools", *(("hotcoco", "faster-coco-eval") if there else ())}
    for backend, answer in found.items():
        reference = found["pycocotools"]["categories"]
        if backend == "faster-coco-eval":
            assert answer["metrics"] == pytest.approx(expected, abs=1e-15)
            values = [metric["value"] for metric in answer["categories"]]
            assert values == pytest.approx([metric["value"] for metric in reference], abs=1e-15)
        else:
            assert answer["metrics"] == expected, backend
            assert answer["categories"] == reference, backend
    scores = list(expected.values())
    assert max(scores) == 0.0 if "--nothing-found" in options else max(scores) > 0.1
    if not there:
        pytest.skip("pycocotools alone was compared: `make environments` installs the others")
