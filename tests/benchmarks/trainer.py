"""The trainer's speed with nothing, with the watcher, and with the OD API's own loop beside it.

Everything is started first and then stopped (SIGSTOP). One trainer runs through; at each of its
log lines, 100 steps apart, another neighbour may go on (SIGCONT), between two stretches alone. The
order turns round after each cycle, so that a drift of the machine hits all alike. All of it shares
two cores.

BENCH_PEACE=all tries ways that were not taken beside those that were.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
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
# Each cycle gives each neighbour one stretch of 100 steps, beside one alone: until the standard
# error of all is small enough, or so often.
CYCLES = int(os.environ.get("BENCH_CYCLES", "30"))
ENOUGH = 0.01
FEWEST_CYCLES = 6
WARM_UP = 2
BACKLOG = 150
START_SECONDS = 300
ALONE_SECONDS = 20
# The watcher looks for a trainer that often.
SEEN_SECONDS = 32
STEP = re.compile(r"Step (\d+) per-step time")
NOTHING, WAITING, OD_API = "nothing", "waiting", "od_api"


@dataclass(frozen=True)
class Way:
    """A way to evaluate beside the trainer: flags, environment, and what is put before."""

    name: str
    flags: tuple[str, ...]
    at_least: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()


WAYS = [
    Way("by default (`--peace auto`)", (), 0.95),
    Way("`--peace max`", ("--peace", "max"), 0.98),
]
OTHER_WAYS = [
    Way("`--peace off`", ("--peace", "off")),
    Way("by default, `--threads 1`", ("--threads", "1")),
    Way("by default, on one of the two cores", (), before=("taskset", "-c", "{last}")),
    Way("by default, oneDNN off", (), environment={"TF_ENABLE_ONEDNN_OPTS": "0"}),
    Way("by default, `--eval-batch-size 1`", ("--eval-batch-size", "1")),
]


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
    ways = WAYS + (OTHER_WAYS if os.environ.get("BENCH_PEACE") == "all" else [])
    prefix = run.checkpoints()[1]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(cores)[:CORES]))
    try:
        with ExitStack() as stack:
            trainer_dir, backlog = run.folder / "model_dir", run.folder / "backlog"
            trainer_dir.mkdir()
            backlog.mkdir()
            _fill(run, prefix, backlog)
            waiting = _daemon(run, trainer_dir, stack, Way(WAITING, ()))
            folders = {way.name: _copy(backlog, number) for number, way in enumerate(ways)}
            daemons = {way.name: _daemon(run, folders[way.name], stack, way) for way in ways}
            loop = OdLoop(run, "nice", "-n", "19", ahead=50 * [prefix])
            stack.callback(loop.end)
            neighbours = {
                OD_API: Neighbour(loop.process),
                WAITING: _ready(waiting, trainer_dir),
                **{name: _ready(daemon, folders[name]) for name, daemon in daemons.items()},
            }
            trainer, lines = _trainer(run, trainer_dir, stack)
            measured = _measure(lines, neighbours, folders)
            measured.alone = _alone(trainer, neighbours, folders)
    finally:
        os.sched_setaffinity(0, cores)
    return _rows(measured, ways)


def _copy(backlog: Path, number: int) -> Path:
    """Return a folder of its own with the same checkpoints; their bytes lie there once."""
    return Path(shutil.copytree(backlog, f"{backlog}_{number}", copy_function=os.link))


def _fill(run: TrainingRun, prefix: Path, folder: Path) -> None:
    """Fill a folder with checkpoints enough for the watcher to evaluate without pause."""
    run_program(od_python(), HERE / "copies.py", prefix, folder, BACKLOG, cwd=run.folder)


def _daemon(
    run: TrainingRun, model_dir: Path, stack: ExitStack, way: Way
) -> subprocess.Popen[bytes]:
    last = str(max(os.sched_getaffinity(0)))
    command = [word.format(last=last) for word in way.before]
    command += [*CLI, "run", str(model_dir), "--pipeline-config", str(run.pipeline)]
    command += ["--python", od_python(), "--log-format", "human", *way.flags]
    with model_dir.with_suffix(".log").open("wb") as log:
        daemon = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**environment(), **way.environment},
            cwd=run.folder,
        )
    stack.callback(_end, daemon)
    return daemon


def _ready(daemon: subprocess.Popen[bytes], model_dir: Path) -> Neighbour:
    log = model_dir.with_suffix(".log")
    what = f"worker of {model_dir.name} ready"
    wait_until(lambda: b"worker ready" in log.read_bytes(), what, START_SECONDS)
    return Neighbour(daemon)


def _trainer(
    run: TrainingRun, model_dir: Path, stack: ExitStack
) -> tuple[subprocess.Popen[str], Iterator[str]]:
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
    return trainer, iter(trainer.stderr)


@dataclass
class Measured:
    """What came out.

    Attributes:
        seconds: Of 100 steps beside each neighbour, stretch by stretch.
        before: Of the 100 steps alone that came before or after each of those.
        scored: Checkpoints that each way scored, and the seconds it had for that.
        alone: The same with the trainer stopped.
    """

    seconds: dict[str, list[float]]
    before: dict[str, list[float]]
    scored: dict[str, tuple[float, float]] = field(default_factory=dict)
    alone: dict[str, tuple[float, float]] = field(default_factory=dict)

    def ratio(self, name: str) -> float:
        """The trainer's speed as a share of that alone: of all stretches together."""
        return sum(self.before[name]) / sum(self.seconds[name])

    def error(self, name: str) -> float:
        """The standard error of `ratio`, by the jackknife: each stretch left out in turn."""
        alone, beside = self.before[name], self.seconds[name]
        whole = [
            (sum(alone) - one) / (sum(beside) - other)
            for one, other in zip(alone, beside, strict=True)
        ]
        count, mean = len(whole), statistics.mean(whole)
        return math.sqrt((count - 1) / count * sum((one - mean) ** 2 for one in whole))


def _measure(
    lines: Iterator[str], neighbours: dict[str, Neighbour], folders: dict[str, Path]
) -> Measured:
    marks = _marks(lines)
    for name in folders:  # which see the trainer, and step back, at their next checkpoint
        neighbours[name].signal(signal.SIGCONT)
    for _ in range(WARM_UP):
        last = next(marks)
    time.sleep(SEEN_SECONDS)
    for name in folders:
        neighbours[name].signal(signal.SIGSTOP)
    last = next(marks)
    last = next(marks)
    found = Measured({name: [] for name in neighbours}, {name: [] for name in neighbours})
    done = {name: _images(folder) for name, folder in folders.items()}
    for cycle in range(CYCLES):
        for name in list(neighbours) if cycle % 2 == 0 else reversed(neighbours):
            mark = next(marks)
            found.before[name].append(mark - last)
            neighbours[name].signal(signal.SIGCONT)
            last, mark = mark, next(marks)
            neighbours[name].signal(signal.SIGSTOP)
            found.seconds[name].append(mark - last)
            last = mark
        if cycle + 1 >= FEWEST_CYCLES and all(found.error(one) < ENOUGH for one in folders):
            break
    for name, folder in folders.items():
        found.scored[name] = _images(folder) - done[name], sum(found.seconds[name])
    return found


def _alone(
    trainer: subprocess.Popen[str], neighbours: dict[str, Neighbour], folders: dict[str, Path]
) -> dict[str, tuple[float, float]]:
    """Return what each way does while the trainer is stopped."""
    os.kill(trainer.pid, signal.SIGSTOP)
    found = {}
    for name, folder in folders.items():
        before = _images(folder)
        neighbours[name].signal(signal.SIGCONT)
        time.sleep(ALONE_SECONDS)
        neighbours[name].signal(signal.SIGSTOP)
        found[name] = _images(folder) - before, float(ALONE_SECONDS)
    os.kill(trainer.pid, signal.SIGCONT)
    return found


def _marks(lines: Iterator[str]) -> Iterator[float]:
    """Give the time of each new step logged: two handlers of the trainer print each line twice."""
    last = ""
    for line in lines:
        found = STEP.search(line)
        if found and found[1] != last:
            last = found[1]
            yield time.perf_counter()


def _images(model_dir: Path) -> float:
    """Return how many checkpoints were evaluated, with the part of the one that runs."""
    command = [*CLI, "status", str(model_dir), "--json"]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    states: dict[str, int] = said["states"]
    assert states.get("pending"), f"the watcher ran out of checkpoints: {states}"
    status = said["status"]
    part = status["done"] / status["total"] if status.get("total") else 0.0
    return states.get("scored", 0) + part


def _rows(measured: Measured, ways: Sequence[Way]) -> list[Row]:
    wanted: dict[str, tuple[str, float | None]] = {
        WAITING: ("the daemon waiting beside it", 0.99),
        **{way.name: (f"the watcher evaluating, {way.name}", way.at_least) for way in ways},
        OD_API: ("the OD API's own loop evaluating, `nice -n 19`", None),
    }
    rows = []
    for name, (what, at_least) in wanted.items():
        ratio, error = measured.ratio(name), measured.error(name)
        rate = 100 / statistics.mean(measured.seconds[name])
        alone = 100 / statistics.mean(measured.before[name])
        rows.append(
            Row(
                f"trainer on {CORES} cores, {what}",
                f"{rate:.1f} steps/s{_pace(measured, name)}",
                f"alone {alone:.1f} steps/s",
                goal(ratio, f"of alone, +-{error:.3f}", at_least=at_least),
            )
        )
    return rows


def _pace(measured: Measured, name: str) -> str:
    """Say how much slower the evaluation is than without a trainer."""
    if name not in measured.scored:
        return ""
    (beside, seconds), (done, without) = measured.scored[name], measured.alone[name]
    took, alone = (
        f"{time / count:.1f} s" if count else f"more than {time:.0f} s"
        for time, count in ((seconds, beside), (without, done))
    )
    return f", a checkpoint in {took} (without the trainer {alone})"


def _end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Kill the process and what it started, stopped or not."""
    if process.poll() is None:
        for pid in reversed(descendants(process.pid)):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()
