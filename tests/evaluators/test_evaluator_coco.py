"""Every COCO backend gives what the OD API's own evaluators give with pycocotools.

Ours (`numpy`) and hotcoco to the last bit; faster-coco-eval within 1e-15. So does brute force in a
metric plugin. `test_coco_numpy.py` has more cases, without the OD API.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import PROGRAMS, run_program

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def backends(od_python: str) -> Path:
    """Where make installs the fast backends, which the training lists leave out."""
    return Path(od_python).parents[1] / "coco-backends"


CASES = {
    "boxes": {"images": 60, "seed": 3},
    "masks": {"masks": True},
    "nothing found": {"nothing_found": True},
}


@pytest.fixture(scope="module")
def answers(
    od_python: str, backends: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What every backend says of each case, all from one process."""
    folder = tmp_path_factory.mktemp("coco")
    asked = list(CASES.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(backends))
        said = run_program(od_python, PROGRAMS / "coco_backends.py", cwd=folder, asked=asked)
    return dict(zip(CASES, json.loads(said), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_backends_equal_the_od_api(answers: dict[str, Any], backends: Path, case: str) -> None:
    there = backends.exists()
    found = answers[case]
    expected = found.pop("od_api")["metrics"]
    kind = "Masks" if case == "masks" else "Boxes"
    by_plugin = found.pop("plugin")
    assert by_plugin == pytest.approx(expected[f"Detection{kind}_Precision/mAP@.50IOU"], rel=1e-9)
    others = ("hotcoco", "faster-coco-eval") if there else ()
    assert set(found) >= {"numpy", "pycocotools", *others}
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
    assert max(scores) == 0.0 if case == "nothing found" else max(scores) > 0.1
    if not there:
        pytest.skip("our own alone was compared: `make environments` installs the others")
