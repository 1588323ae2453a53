"""A real `checkpoint-watcher train` process on a temporary model_dir, for the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from watching import CLI, FAKE_TRAINER, PEACE_OFF, ROOT, STUB, wait_until

from watcher.checkpoints.bundle import verify
from watcher.promotion.sentinel import write_sentinel
from watcher.store import Store

QUICK = {
    "CHECKPOINT_WATCHER_EVICT_SECONDS": "0",
    "CHECKPOINT_WATCHER_RESTART_SECONDS": "0.1",
    **PEACE_OFF,
}

# What is tested is this checkout, wherever the environment's own watcher lies.
HERE_FIRST = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers")))


def python(program: str, *arguments: object) -> list[str]:
    """A trainer that is a few lines of Python; it may import what tests import."""
    return [sys.executable, "-c", program, *map(str, arguments)]


class Launch:
    """A model_dir, and launchers on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model_dir = folder / "model_dir"
        self.sentinel = self.model_dir / "EARLY_STOP"
        self.database = self.model_dir / "watcher" / "watcher.db"
        self.pipeline = folder / "pipeline.config"
        self.pipeline.write_text("the stub evaluator does not read it\n")
        self.out, self.err = folder / "stdout", folder / "stderr"
        self.stub, self.cli = STUB, CLI
        self._processes: list[subprocess.Popen[bytes]] = []

    def saving(self, *options: object) -> list[str]:
        """The fake trainer's command line; without options it saves for a long time."""
        return [sys.executable, str(FAKE_TRAINER), str(self.model_dir), *map(str, options)]

    def command(self, *flags: object, trainer: list[str]) -> list[str]:
        """The launcher's command line."""
        options = ["train", "--model-dir", self.model_dir, *flags, "--", *trainer]
        return [*CLI, *map(str, options)]

    def watching(self, *flags: object) -> list[object]:
        """Flags that put a watcher with the stub evaluator beside it."""
        return ["--watch", "--pipeline-config", self.pipeline, "--python", STUB, *flags]

    def start(
        self, *flags: object, trainer: list[str], **environment: object
    ) -> subprocess.Popen[bytes]:
        """Start a launcher; what it and its trainer print is in `out` and `err`."""
        steer = {name: str(value) for name, value in environment.items()}
        with self.out.open("wb") as out, self.err.open("wb") as err:
            process = subprocess.Popen(
                self.command(*flags, trainer=trainer),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": HERE_FIRST, **QUICK, **steer},
            )
        self._processes.append(process)
        return process

    def run(self, *flags: object, trainer: list[str], **environment: object) -> int:
        """Run a launcher to its end, and return its exit code."""
        return self.start(*flags, trainer=trainer, **environment).wait(timeout=120)

    @property
    def last(self) -> subprocess.Popen[bytes]:
        """The launcher that was started last."""
        return self._processes[-1]

    def adopt(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start another process that ends with the test."""
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self._processes.append(process)
        return process

    def said(self) -> str:
        """What the launcher told, without the times."""
        lines = self.err.read_text().splitlines()
        return "\n".join(line.split("] ", 1)[1] for line in lines if "[launcher ]" in line)

    def identify(self) -> str:
        """Make the run's database, and return the run's identity."""
        self.database.parent.mkdir(parents=True, exist_ok=True)
        store = Store(self.database, run="run", model_dir=self.model_dir, now=time.time())
        store.close()
        return store.run_uuid

    def say_stop(self, run: str = "unknown") -> None:
        """Write a sentinel, as the watcher of that run would."""
        self.model_dir.mkdir(exist_ok=True)
        write_sentinel(self.sentinel, {"schema": 1, "run": run, "message": "no improvement"})

    def saved(self, count: int) -> None:
        """Wait until the trainer has saved so many checkpoints."""
        wait_until(lambda: len(list(self.model_dir.glob("*.index"))) >= count, f"{count} saves")

    def end(self) -> None:
        """Kill whatever this started and still runs."""
        for process in self._processes:
            if process.poll() is None:
                for child in children(process.pid):
                    kill_group(child)
                process.kill()
                process.wait()


def children(pid: int) -> list[int]:
    """The processes that a process has started and not waited for."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def trainer_of(launcher: int) -> int:
    """The trainer that a launcher without a watcher runs; its other child is its lookout."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in children(launcher)}
    (trainer,) = (pid for pid, name in names.items() if name != "cat")
    return trainer


def kill_group(pid: int) -> None:
    """Kill a process group, which may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def leftovers(launch: Launch) -> list[str]:
    """What only a save that was cut leaves, and checkpoints that are not whole or not listed."""
    odd = [path.name for path in launch.model_dir.glob("*_temp")]
    odd += [path.name for path in launch.model_dir.glob("checkpoint.tmp*")]
    state = (launch.model_dir / "checkpoint").read_text()
    for data in launch.model_dir.glob("*.data-*"):
        name = data.name.split(".")[0]
        verify(launch.model_dir / name)
        odd += [] if f'"{name}"' in state else [f"{name} is not in the state file"]
    return odd
