"""The evaluator's temporary folder goes when its process has gone, however it went."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from evaluator_client import ROOT

PROGRAM = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("scratch", sys.argv[1])
scratch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scratch)
mine = scratch.Scratch()
print(mine.path, flush=True)
time.sleep(600)
"""


def started(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process with a scratch folder under this temporary folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(ROOT / "evaluators" / "scratch.py")],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()


def test_a_killed_process_leaves_its_folder_to_the_next_which_removes_it(tmp_path: Path) -> None:
    first, folder = started(tmp_path)
    end(first)
    assert folder.exists()
    second, other = started(tmp_path)
    end(second)
    assert not folder.exists()
    assert other.exists()


def test_the_folder_of_a_living_process_stays(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-watcher-eval-set-of-somebody").mkdir()
    first, folder = started(tmp_path)
    second, other = started(tmp_path)
    end(first)
    end(second)
    assert folder.exists() and other.exists()
    assert len(list(tmp_path.iterdir())) == 3
