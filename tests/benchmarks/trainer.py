"""The trainer's speed with nothing, with the watcher, and with the OD API's own loop beside it.

Everything is started first and then stopped (SIGSTOP). One trainer runs through; at each of its
log lines, 100 steps apart, another neighbour may go on (SIGCONT). The order turns round after
each cycle, so that a drift of the machine hits all alike. All of it shares two cores.
"""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from evaluator_client import environment, run_program
from watching import CLI, wait_until

from benchmarks.od_run import (
    HERE,
    OdLoop,
    TrainingRun,
    od_python,
)
from benchmarks.table import Row, goal

CORES = 2
# Each cycle gives each neighbour one stretch of 100 steps.
CYCLES = int(os.environ.get("BENCH_CYCLES", "4"))
WARM_UP = 2
BACKLOG = 100
START_SECONDS = 300
STEP = re.compile(r"Step (\d+) per-step time")
NOTHING, WAITING, EVALUATING, OD_API = "nothing", "waiting", "evaluating", "od_api"


class Neighbour:
    """A process and its descendants, that can be stopped for a while."""

    def __init__(self, process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
        self._pid = process.pid
        self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        """Send a signal to all of it."""
        for pid in descendants(self._pid):
            os.kill(pid, number)


def descendants(pid: int) -> list[int]:
    """Return the process and all it started, itself first."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        children += (thread / "children").read_text().split()
    found = [pid]
    for child in dict.fromkeys(map(int, children)):
        found += descendants(child)
    return found


def steps(run: TrainingRun) -> list[Row]:
    """Steps a second of the unmodified trainer beside each neighbour."""
    prefix = run.checkpoints()[1]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:CORES]))
    try:
        with ExitStack() as stack:
            trainer_dir, backlog_dir = run.folder / "model_dir", run.folder / "backlog"
            trainer_dir.mkdir()
            backlog_dir.mkdir()
            _fill(run, prefix, backlog_dir)
            waiting = _daemon(run, trainer_dir, stack, [])
            quiet = ["--nice", "19", "--threads", "1"]
            evaluating = _daemon(run, backlog_dir, stack, quiet)
            loop = OdLoop(run, "nice", "-n", "19", ahead=50 * [prefix])
            stack.callback(loop.end)
            neighbours = {
                OD_API: Neighbour(loop.process),
                WAITING: _ready(waiting, trainer_dir),
                EVALUATING: _ready(evaluating, backlog_dir),
            }
            seconds = _measure(_trainer(run, trainer_dir, stack), neighbours)
            scored = _scored(backlog_dir)
    finally:
        os.sched_setaffinity(0, cores)
    return _rows(seconds, scored)


def _fill(run: TrainingRun, prefix: Path, folder: Path) -> None:
    """Fill a folder with checkpoints enough for the watcher to evaluate without pause."""
    run_program(od_python(), HERE / "copies.py", prefix, folder, BACKLOG, cwd=run.folder)


def _daemon(
    run: TrainingRun, model_dir: Path, stack: ExitStack, flags: list[str]
) -> subprocess.Popen[bytes]:
    command = [*CLI, "run", str(model_dir), "--pipeline-config", str(run.pipeline)]
    command += ["--python", od_python(), "--log-format", "human", *flags]
    with model_dir.with_suffix(".log").open("wb") as log:
        daemon = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(), cwd=run.folder
        )
    stack.callback(_end, daemon)
    return daemon


def _ready(daemon: subprocess.Popen[bytes], model_dir: Path) -> Neighbour:
    log = model_dir.with_suffix(".log")
    what = f"worker of {model_dir.name} ready"
    wait_until(lambda: b"worker ready" in log.read_bytes(), what, START_SECONDS)
    return Neighbour(daemon)


def _trainer(run: TrainingRun, model_dir: Path, stack: ExitStack) -> Iterator[str]:
    options = ["--model_dir", str(model_dir), "--num_train_steps", "1000000"]
    options += ["--checkpoint_every_n", "1000000"]
    trainer = subprocess.Popen(
        [od_python(), *run.trainer(), *options, "--alsologtostderr"],
        cwd=run.folder,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    stack.callback(_end, trainer)
    assert trainer.stderr
    return iter(trainer.stderr)


def _measure(lines: Iterator[str], neighbours: dict[str, Neighbour]) -> dict[str, list[float]]:
    """Return seconds for 100 steps beside each neighbour, stretch by stretch."""
    marks = _marks(lines)
    for _ in range(WARM_UP):
        last = next(marks)
    order = [NOTHING, EVALUATING, WAITING, OD_API]
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for cycle in range(CYCLES):
        for name in order if cycle % 2 == 0 else reversed(order):
            beside = neighbours.get(name)
            if beside:
                beside.signal(signal.SIGCONT)
            mark = next(marks)
            if beside:
                beside.signal(signal.SIGSTOP)
            seconds[name].append(mark - last)
            last = mark
    return seconds


def _marks(lines: Iterator[str]) -> Iterator[float]:
    """Give the time of each new step logged: two handlers of the trainer print each line twice."""
    last = ""
    for line in lines:
        found = STEP.search(line)
        if found and found[1] != last:
            last = found[1]
            yield time.perf_counter()


def _scored(model_dir: Path) -> int:
    """Return how many checkpoints were scored; there must be more to score."""
    command = [*CLI, "status", str(model_dir), "--json"]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    states: dict[str, int] = json.loads(output)["states"]
    assert states.get("pending"), f"the watcher ran out of checkpoints: {states}"
    return states.get("scored", 0)


def _rows(seconds: dict[str, list[float]], scored: int) -> list[Row]:
    rate = {name: 100 * len(values) / sum(values) for name, values in seconds.items()}
    alone = rate[NOTHING]
    spread = statistics.pstdev(seconds[NOTHING]) / statistics.mean(seconds[NOTHING])
    rows = []
    for name, what, wanted in (
        (WAITING, "the daemon waiting beside it", 0.99),
        (
            EVALUATING,
            f"the watcher evaluating {scored} checkpoints, `--nice 19 --threads 1`",
            0.92,
        ),
        (OD_API, "the OD API's own loop evaluating, `nice -n 19`", None),
    ):
        rows.append(
            Row(
                f"trainer on {CORES} cores, {what}",
                f"{rate[name]:.1f} steps/s",
                f"alone {alone:.1f} steps/s (+-{100 * spread:.0f} % between stretches)",
                goal(rate[name] / alone, "of alone", at_least=wanted),
            )
        )
    return rows


def _end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Kill the process and what it started, stopped or not."""
    if process.poll() is None:
        for pid in reversed(descendants(process.pid)):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()
