"""How the daemon's cost grows with a run: three sizes each, and the exponent.

A cost that is proportional to size ** exponent is constant at 0 and linear at 1. Each size is
measured in a process of its own, with the stub evaluator, so that only the daemon is measured.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fake_bundle import FLOAT, GRAPH_KEY, SUFFIX, Entry, Tensor, build_index, int64, make_part
from fake_bundle import object_graph as graph_of
from watching import CLI

from benchmarks.scale import filled, loop, new_run, resident_mib, states, train_on
from benchmarks.table import Row
from watcher.runtime.loop import Daemon
from watcher.store import Store

PARTS = ("evaluations", "backlog")
EVALUATIONS = (1_000, 10_000, 100_000)
ARRIVING = 100
WAITING = (20, 200, 2_000)
CHECKPOINT_BYTES = 300_000_000
BUDGET = "3GB"
SMALL = {
    "EVALUATIONS": (10, 20),
    "ARRIVING": 5,
    "WAITING": (2, 4),
    "CHECKPOINT_BYTES": 4_000,
}

Figures = dict[str, float]


def run(part: str) -> list[Row]:
    """Runs one of PARTS."""
    waiting = f"checkpoints of {CHECKPOINT_BYTES / 1e6:g} MB waiting, budget {BUDGET}"
    measure, sizes, what = {
        "evaluations": (_evaluations, EVALUATIONS, "evaluations in the database"),
        "backlog": (_backlog, WAITING, waiting),
    }[part]
    return rows_of([_apart(measure, size) for size in sizes], sizes, what)


def rows_of(found: Sequence[Figures], sizes: Sequence[int], what: str) -> list[Row]:
    """A row for each figure, with what it was at each size and how it grows."""
    return [
        Row(
            name,
            ", ".join(f"{figures[name]:.3g}" for figures in found),
            f"{', '.join(f'{size:,}' for size in sizes)} {what}",
            _growth(sizes, [figures[name] for figures in found]),
        )
        for name in found[0]
    ]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log(cost) over log(size), by least squares."""
    line = statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, costs)])
    return line.slope


def _growth(sizes: Sequence[int], costs: Sequence[float]) -> str:
    return f"exponent {exponent(sizes, costs):.2f}" if min(costs) > 0 else ""


def _apart(measure: Callable[[Path, int], Figures], size: int) -> Figures:
    """Measure in a new process, whose memory is that of this size alone."""
    with (
        tempfile.TemporaryDirectory(dir=Path.cwd()) as folder,
        multiprocessing.get_context("fork").Pool(1) as pool,
    ):
        return pool.apply(measure, (Path(folder), size))


def _evaluations(folder: Path, size: int) -> Figures:
    """100 checkpoints arrive in a run that has scored so many before."""
    settings = filled(folder / "model_dir", size)
    os.environ["STUB_SECONDS"] = "0.02"
    steps: list[float] = []
    began: list[float] = []

    def note(daemon: Daemon, store: Store, seconds: float) -> None:
        steps.append(seconds)
        if not began and not daemon._intake.more and daemon._pool.was_ready:
            began.append(time.process_time())

    trainer = train_on(settings.run.model_path, size, ARRIVING)
    loop(settings, note)
    used = time.process_time() - began[0]
    assert trainer.wait() == 0
    database = settings.run.state_path / "watcher.db"
    scored = states(settings)["scored"]
    assert scored == size + ARRIVING
    model_dir = str(settings.run.model_path)
    return {
        "CPU milliseconds of the daemon for each further evaluation": 1000 * used / ARRIVING,
        "milliseconds, a step of the loop at the median": 1000 * statistics.median(steps),
        "MiB resident at the end": resident_mib(),
        **{
            f"CPU seconds of `{name}`": _command(name, model_dir, *rest)
            for name, *rest in (
                *(("status",), ("best",), ("leaderboard",), ("history", "--json")),
                *(("metrics", "--categories"), ("compare", "ckpt-1", "ckpt-2")),
            )
        },
        "CPU seconds of `plot`": _command("plot", model_dir, "--output", str(folder / "p.svg")),
        "bytes of the database for each evaluation": database.stat().st_size / scored,
    }


def _command(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*CLI, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _backlog(folder: Path, size: int) -> Figures:
    """So many checkpoints lie there at the start, and no more than the budget may wait."""
    settings = new_run(folder / "model_dir", max_pinned_bytes=BUDGET)
    _write_sparse(settings.run.model_path, size)
    os.environ["STUB_SECONDS"] = "0.02"
    steps: list[float] = []
    began = time.process_time()
    loop(settings, lambda daemon, store, seconds: steps.append(seconds))
    used = time.process_time() - began
    counts = states(settings)
    assert sum(counts.values()) == size and counts["scored"] >= 1, counts
    return {
        "CPU milliseconds of the daemon for each checkpoint": 1000 * used / size,
        "seconds, the longest step of the loop": max(steps),
        "MiB resident at the end": resident_mib(),
        "scored": counts["scored"],
    }


def _write_sparse(model_dir: Path, size: int) -> None:
    """Write checkpoints whose large tensor is a hole in its file, and has a true checksum."""
    large = f"model/large/kernel{SUFFIX}"
    shape = (CHECKPOINT_BYTES // 4,)
    (hole,) = make_part({large: Tensor(FLOAT, shape, bytes(CHECKPOINT_BYTES))}).entries.values()
    for number in range(1, size + 1):
        small = {f"step{SUFFIX}": int64(100 * number), f"save_counter{SUFFIX}": int64(number)}
        small[GRAPH_KEY] = graph_of([*small, large])
        part = make_part(small)
        entries: dict[str | bytes, Entry] = dict(part.entries)
        entries[large] = Entry(**{**vars(hole), "shard": 1})
        name = model_dir / f"ckpt-{number}"
        Path(f"{name}.data-00000-of-00002").write_bytes(part.data)
        with Path(f"{name}.data-00001-of-00002").open("wb") as file:
            file.truncate(CHECKPOINT_BYTES)
        Path(f"{name}.index").write_bytes(build_index(2, entries))
