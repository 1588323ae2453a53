"""The benchmarks of the daemon still run: between two releases nobody else calls them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from watching import ROOT

pytestmark = pytest.mark.slow

PATHS = os.pathsep.join(str(ROOT / folder) for folder in ("tests/helpers", "tests", "."))


def test_growth_and_scale_are_measured_on_a_small_run(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--small", "growth", "scale", "workers"]
    environment = {**os.environ, "PYTHONPATH": PATHS}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stderr
    rows = [line.split(" | ") for line in ran.stdout.splitlines() if line.startswith("| ")]
    measured = {row[0].removeprefix("| "): row[1] for row in rows}
    assert measured["scored"] == "2, 4"
    (scored,) = (value for what, value in measured.items() if what.startswith("scored of"))
    assert scored.startswith("5;")


def test_an_exponent_is_0_where_a_cost_is_constant_and_1_where_it_is_linear():
    program = (
        "from benchmarks.growth import exponent as e\n"
        "print(round(e([10, 100, 1000], [3, 3, 3]), 9), round(e([1, 10, 100], [3, 30, 300]), 9))"
    )
    environment = {**os.environ, "PYTHONPATH": PATHS}
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert list(map(float, ran.stdout.split())) == [0.0, 1.0], ran.stderr
