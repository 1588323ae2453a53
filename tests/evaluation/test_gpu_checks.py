"""What `make test-gpu` runs on a machine with a GPU: its own logic, on stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from two_gpus import FAKE
from watching import ROOT

PROGRAM = ROOT / "tests" / "gpu" / "checks.py"


def check(folder: Path, gpus: object, **steer: str) -> subprocess.CompletedProcess[str]:
    answers, held = folder / "gpus.json", folder / "held"
    answers.write_text(json.dumps(gpus))
    held.mkdir()
    paths = [FAKE, ROOT / "tests" / "helpers", ROOT / "tests", ROOT]
    return subprocess.run(
        [sys.executable, PROGRAM, "--holder", FAKE / "holder.py"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "FAKE_NVML": str(answers),
            "FAKE_NVML_HELD": str(held),
            **steer,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_choice_busy_programs_locks_and_turns_are_held_to_what_is_said_of_them(tmp_path: Path):
    ran = check(tmp_path, [{"uuid": "GPU-a0", "computing": [1]}, {"uuid": "GPU-b1"}])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("| holds |") == 6
    assert "2048 MiB less free" in ran.stdout and "never two at once" in ran.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_does_not_hold_is_said_and_the_exit_code_tells_it(tmp_path: Path):
    ran = check(tmp_path, [{"uuid": "GPU-b1"}], FAKE_NVML_GREEDY="GPU-c2")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "it computes on GPU-c2" in ran.stdout
    assert ran.stdout.count("| **does not hold** |") == 3 and ran.stdout.count("| holds |") == 3


def test_without_a_gpu_nothing_is_run_and_it_says_so(tmp_path: Path):
    ran = check(tmp_path, "Driver Not Loaded")
    assert (ran.returncode, ran.stdout) == (3, "")
    assert ran.stderr.startswith("no NVIDIA GPU is seen: ")
    assert "nothing was run" in ran.stderr
