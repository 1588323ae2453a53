"""Whether intervals hold the truth as often as they say, on simulated detectors.

Nothing in it depends on the machine or on how busy it is: the same seeds give the same shares.
Takes about two minutes of CPU.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from evaluator_client import PROGRAMS, run_program

from benchmarks.od_run import od_python
from benchmarks.table import Row

# Images and how many eval sets of them.
SIZES = ((64, 400), (256, 400), (1024, 300))
REPLICATES, TRUTH_IMAGES = 1000, 100_000
LEAST, MOST = 0.90, 0.98
SMALL = {"SIZES": ((64, 20),), "REPLICATES": 100, "TRUTH_IMAGES": 2000}


def run() -> list[Row]:
    """Measures each size."""
    rows = []
    for images, sets in SIZES:
        arguments = (images, sets, REPLICATES, TRUTH_IMAGES)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            told = run_program(od_python(), PROGRAMS / "coverage.py", *arguments, cwd=Path(folder))
        found = json.loads(told)
        for name, what in (("score", "mAP"), ("difference", "the paired difference of two")):
            one = found[name]
            rows.append(
                Row(
                    f"95 % intervals of {what}, {sets} sets of {images} images x 3 categories",
                    f"{one['covered']:.1%} hold the truth, {one['truth']:.4f}",
                    f"half of the median width {one['half']:.4f}, mean value {one['mean']:.4f}",
                    _goal(one["covered"]),
                )
            )
    return rows


def _goal(covered: float) -> str:
    rule = f"goal between {LEAST} and {MOST}"
    return f"({rule})" if LEAST <= covered <= MOST else f"**missed** ({rule})"
