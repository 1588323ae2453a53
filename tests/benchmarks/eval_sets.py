"""How the worker's cost grows with the eval set: three sizes each, and the exponent.

SSD MobileNet v2 0.25 at 128 px on the CPU, as it was initialised. The largest sets take a quarter
of an hour each, and up to a GiB of disk beside the memory that is shown.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from evaluator_client import PROGRAMS, ROOT, Client

from benchmarks.growth import Figures, rows_of
from benchmarks.od_run import ask, od_python, python_path
from benchmarks.scale import resident_mib
from benchmarks.table import Row

PARTS = ("small", "large")
# Of 64 px, and of 640.
SMALL_IMAGES = (1_250, 8_000, 50_000)
LARGE_IMAGES = (312, 1_250, 5_000)
WARM = 2
SMALL = {"SMALL_IMAGES": (20, 40), "LARGE_IMAGES": (4, 8), "WARM": 1}


def run(part: str) -> list[Row]:
    """Runs one of PARTS."""
    sizes, pixels = {"small": (SMALL_IMAGES, 64), "large": (LARGE_IMAGES, 640)}[part]
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=build) as folder, python_path(None):
            found.append(_measure(Path(folder), size, pixels))
    return rows_of(found, sizes, f"images of {pixels} px")


def _measure(folder: Path, size: int, pixels: int) -> Figures:
    """A worker starts on an eval set of so many images, and evaluates."""
    pipeline = folder / "pipeline.config"
    pipeline.write_text((PROGRAMS / "ssd_fixed.config").read_text())
    prefix = ask("many.py", folder, size, pixels, pipeline, cwd=folder)
    with Client(od_python(), folder, TMPDIR=str(folder)) as client:
        began = time.perf_counter()
        ready = client.start(pipeline)
        start = time.perf_counter() - began
        assert ready["type"] == "ready" and ready["images"] == size, ready
        client.evaluate(prefix)  # traces what reads a checkpoint
        first, seconds = resident_mib(client.process.pid, "VmRSS"), []
        for _ in range(WARM):
            began = time.perf_counter()
            client.evaluate(prefix)
            seconds.append(time.perf_counter() - began)
        grown = resident_mib(client.process.pid, "VmRSS") - first
        most = resident_mib(client.process.pid, "VmHWM")
    return {
        "seconds until the worker is ready": start,
        "seconds a checkpoint, warm": min(seconds),
        "MiB of the worker at most": most,
        f"MiB more after {WARM} further checkpoints": grown,
        "MiB of the eval set's files": (folder / "val.tfrecord").stat().st_size / 2**20,
        "kept decoded in memory, 1 for yes": ready["details"]["eval_set_kept"] == "memory",
    }
