"""What the daemon costs: how soon a checkpoint is pinned, and what it takes while it waits."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fake_trainer import Manager, model_tensors
from watching import CLI, ROOT, Watcher, wait_until

from benchmarks.scale import resident_mib
from benchmarks.table import Row

SAVES = 100
SAVE_BYTES = 2_000_000
IDLE_SECONDS = 20.0


def run() -> list[Row]:
    """Runs the daemon with the stub evaluator, so that only the daemon is measured."""
    (ROOT / "build").mkdir(exist_ok=True)  # /tmp may be memory, and syncs nothing
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        watcher = Watcher(Path(folder))
        try:
            return [*_idle(watcher), *_latency(watcher), _answering(watcher)]
        finally:
            watcher.end()


def _idle(watcher: Watcher) -> list[Row]:
    daemon = watcher.start("--top-k", -1)
    wait_until(lambda: watcher.database.exists(), "the daemon works")
    time.sleep(2)
    before = _cpu_seconds(daemon.pid)
    time.sleep(IDLE_SECONDS)
    used = (_cpu_seconds(daemon.pid) - before) / IDLE_SECONDS
    return [
        Row("daemon, idle: resident memory", f"{resident_mib(daemon.pid):.0f} MiB"),
        Row(f"daemon, idle: CPU over {IDLE_SECONDS:.0f} s", f"{100 * used:.2f} % of a core"),
    ]


def _latency(watcher: Watcher) -> list[Row]:
    """The pin's folder gets its final name last, and the trainer's index was closed when written.

    Both times are the file system's, whose clock ticks with the kernel (1 to 4 ms).
    """
    manager = Manager(watcher.model_dir)
    milliseconds = []
    pins = watcher.model_dir / "watcher" / "pins"
    for number in range(1, SAVES + 1):
        tensors = model_tensors(SAVE_BYTES, number)
        prefix = manager.save(100 * number, tensors)
        closed = prefix.with_name(prefix.name + ".index").stat().st_mtime_ns
        name = prefix.name
        pinned = wait_until(
            lambda name=name: list(pins.glob(f"[!.]*/{name}.index")), f"{name} pinned"
        )
        milliseconds.append((pinned[0].parent.stat().st_ctime_ns - closed) / 1e6)
    cuts = statistics.quantiles(milliseconds, n=100)
    return [
        Row(
            f"index closed to pin done, {SAVES} saves of {SAVE_BYTES / 1e6:.0f} MB",
            f"median {statistics.median(milliseconds):.1f} ms, p99 {cuts[98]:.1f} ms",
        )
    ]


def _answering(watcher: Watcher) -> Row:
    def seconds(command: list[str]) -> float:
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    status = [*CLI, "status", str(watcher.model_dir)]
    ours = statistics.median(seconds(status) for _ in range(5))
    bare = statistics.median(seconds([sys.executable, "-c", "pass"]) for _ in range(5))
    return Row(
        f"`status` of a run of {SAVES} checkpoints",
        f"{ours:.2f} s",
        f"an empty Python program {bare:.2f} s",
        f"{ours / bare:.1f} times",
    )


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
