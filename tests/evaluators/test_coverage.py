"""Intervals hold the truth about as often as they say, on detectors whose truth is known.

`python -m benchmarks coverage` does the same with more images and more eval sets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import PROGRAMS, run_program

pytestmark = pytest.mark.slow


def covered(od_python: str, folder: Path, *arguments: int) -> dict[str, Any]:
    """What `od/coverage.py` prints."""
    told = run_program(od_python, PROGRAMS / "coverage.py", *arguments, cwd=folder)
    found: dict[str, Any] = json.loads(told)
    return found


def test_of_95_percent_intervals_about_95_percent_hold_the_truth_of_a_score_and_of_a_difference(
    od_python: str, tmp_path: Path
):
    found = covered(od_python, tmp_path, 64, 200, 1000, 100_000)
    assert 0.90 <= found["score"]["covered"] <= 0.98
    assert 0.90 <= found["difference"]["covered"] <= 0.98
    # The same images for both: what they share is not in the difference.
    assert found["difference"]["half"] < found["score"]["half"] / 2
    more = covered(od_python, tmp_path, 256, 20, 500, 1000)
    for name in ("score", "difference"):
        assert more[name]["half"] == pytest.approx(found[name]["half"] / 2, rel=0.1)
