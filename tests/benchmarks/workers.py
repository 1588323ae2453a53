"""How the work grows with workers: the queue's efficiency, and what the daemon spends on it.

A real daemon gives checkpoints to stub workers that each take a fixed time and no CPU, on GPUs that
a stand-in for NVML tells of. Efficiency is what the workers did of what they could have done from
the first evaluation's begin to the last one's end.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import tempfile
import time
from pathlib import Path

from fake_trainer import Manager, model_tensors
from two_gpus import FAKE
from watching import CLI, ROOT, STUB

from benchmarks.growth import rows_of
from benchmarks.table import Row

PARTS = ("queue", "many")
WORKERS = (1, 2, 4, 8)
EACH = 15
SECONDS = 2.0
MANY_WORKERS = 64
MANY_CHECKPOINTS = 10_000
SMALL = {"WORKERS": (1, 2), "EACH": 2, "SECONDS": 0.1, "MANY_WORKERS": 4, "MANY_CHECKPOINTS": 12}
EFFICIENT = 0.95


def run(part: str) -> list[Row]:
    """Runs one of PARTS."""
    if part == "many":
        found = _measure(MANY_WORKERS, MANY_CHECKPOINTS)
        what = f"{MANY_WORKERS} workers, {MANY_CHECKPOINTS:,} checkpoints of {SECONDS:g} s"
        return [Row(name, f"{value:.3g}", what) for name, value in found.items()]
    figures = [_measure(workers, EACH * workers) for workers in WORKERS]
    rows = rows_of(figures, WORKERS, f"workers, {EACH} checkpoints of {SECONDS:g} s for each")
    least = figures[-1]["efficiency of the queue"]
    missed = "" if least >= EFFICIENT else ": **missed**"
    return [*rows, Row(f"with {WORKERS[-1]} workers", f"{least:.3f}", "", f"goal 0.95{missed}")]


def _measure(workers: int, checkpoints: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        model_dir = folder / "model_dir"
        manager = Manager(model_dir, max_to_keep=None)
        for number in range(1, checkpoints + 1):
            manager.save(100 * number, model_tensors(1000, number))
        (folder / "pipeline.config").write_text("")
        gpus = [{"uuid": f"GPU-{number:02d}"} for number in range(workers)]
        (folder / "gpus.json").write_text(json.dumps(gpus))
        devices = ",".join(f"gpu:{number}" for number in range(workers))
        command = [*CLI, "run", model_dir, "--pipeline-config", folder / "pipeline.config"]
        command += ["--python", STUB, "--device", devices, "--exit-when-idle", "1"]
        environment = {
            "PYTHONPATH": f"{FAKE}:{ROOT}",
            "FAKE_NVML": str(folder / "gpus.json"),
            "CHECKPOINT_WATCHER_DEVICE_LOCK_DIR": str(folder),
            "STUB_SECONDS": str(SECONDS),
        }
        used, resident = _ran([str(word) for word in command], environment, folder / "log")
        rows = _evaluations(model_dir / "watcher" / "watcher.db")
    assert len(rows) == checkpoints, f"{len(rows)} of {checkpoints} were scored"
    elapsed = max(end for _, end in rows) - min(begin for begin, _ in rows)
    return {
        "efficiency of the queue": checkpoints * SECONDS / (workers * elapsed),
        "CPU milliseconds of the daemon for each evaluation": 1000 * used / checkpoints,
        "MiB resident, the most": resident,
    }


def _ran(command: list[str], environment: dict[str, str], log: Path) -> tuple[float, float]:
    """Run the daemon to its end; returns its CPU seconds, without its workers', and MiB."""
    used = resident = 0.0
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output
        )
        while daemon.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()
                used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                pages = int(fields[21])
                resident = max(resident, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            time.sleep(0.2)
    assert daemon.returncode == 0, log.read_text()[-2000:]
    return used, resident


def _evaluations(database: Path) -> list[tuple[float, float]]:
    """When each evaluation began and ended, in seconds."""
    sql = "SELECT julianday(started_at) * 86400, julianday(evaluated_at) * 86400 FROM evaluations"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return [(begin, end) for begin, end in connection.execute(sql)]
