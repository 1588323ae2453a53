"""A real `checkpoint-watcher run` process on a temporary model_dir, for the tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FAKE_TRAINER = ROOT / "tests" / "helpers" / "fake_trainer.py"
STUB = ROOT / "tests" / "workers" / "stub_worker.py"
CLI = [sys.executable, "-m", "watcher"]
# Beside the trainer of any other test a worker would be given what others leave of the CPU, and
# get next to nothing of a busy one.
PEACE_OFF = {"CHECKPOINT_WATCHER_PEACE": "off"}
# Event files are asked for by the tests that look at them: each is a process of its own.
_QUICK = {
    "CHECKPOINT_WATCHER_EVICT_SECONDS": "0.2",
    "CHECKPOINT_WATCHER_TENSORBOARD": "false",
    **PEACE_OFF,
}


def saves_of(name: str) -> list[str]:
    """Return the saves that a row of the history tells of: one, or those of `ckpt-3..ckpt-7`."""
    first, _, last = name.partition("..")
    numbers = [int(end.removeprefix("ckpt-")) for end in (first, last or first)]
    return [f"ckpt-{number}" for number in range(numbers[0], numbers[1] + 1)]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Return the first true value of `condition`; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def alive(pid: int) -> bool:
    """True while a process runs or is stopped; one that only waits to be reaped is dead."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends while it is read
        return False
    return state != "Z"


def cli(
    *arguments: object, seconds: float = 120, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of checkpoint-watcher to its end, in a folder."""
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=seconds,
    )


class Watcher:
    """A model_dir, and the daemon on it; `start` may be called again after `stop` or `kill`."""

    def __init__(self, folder: Path) -> None:
        self.model_dir = folder / "model_dir"
        self.model_dir.mkdir(exist_ok=True)
        self.pipeline = folder / "pipeline.config"
        self.pipeline.write_text("the stub evaluator does not read it\n")
        self.log = folder / "run.log"
        self.evaluated = folder / "evaluated.log"
        self.database = self.model_dir / "watcher" / "watcher.db"
        self.best_dir = self.model_dir / "best"
        self.sentinel = self.model_dir / "EARLY_STOP"
        # Put before the command: `unshare ...` or `strace -D ...`, to run it under a fault.
        self.prefix: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def command(self, *flags: object) -> list[str]:
        """The command line of the daemon."""
        run = ["run", self.model_dir, "--pipeline-config", self.pipeline, "--python", STUB]
        return [*self.prefix, *CLI, *map(str, [*run, *flags])]

    def start(self, *flags: object, **environment: object) -> subprocess.Popen[bytes]:
        """Start the daemon with the stub evaluator; the environment steers the stub."""
        steer = {name: str(value) for name, value in environment.items()}
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command(*flags),
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    **_QUICK,
                    "STUB_LOG": str(self.evaluated),
                    "STUB_PYTHON": sys.executable,
                    **steer,
                },
            )
        self._processes.append(process)
        return process

    def adopt(self, process: subprocess.Popen[bytes]) -> None:
        """Let `end` kill a process that was started in another way."""
        self._processes.append(process)

    def run(self, *flags: object, **environment: object) -> int:
        """Run the daemon until all is done, and return its exit code."""
        process = self.start("--exit-when-idle", 0.2, *flags, **environment)
        return process.wait(timeout=120)

    def stop(self) -> int:
        """Ask the daemon to end, and return its exit code."""
        daemon = self._processes[-1]
        daemon.terminate()
        return daemon.wait(timeout=120)

    def end(self) -> None:
        """Kill whatever this started and still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()

    def query(self, sql: str, *arguments: object) -> list[dict[str, Any]]:
        """Ask the live database, read-only, as a user would."""
        with contextlib.closing(self._reading()) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute(sql, arguments)]

    def _reading(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=60)

    def states(self) -> dict[str, str]:
        """Name to state of every checkpoint ever seen; a name seen twice keeps the later."""
        if not self.database.exists():
            return {}
        try:
            rows = self.query("SELECT checkpoint, state FROM history")
        except sqlite3.OperationalError:  # created but not migrated yet
            return {}
        return {row["checkpoint"]: row["state"] for row in rows}

    def status(self) -> dict[str, Any]:
        """What the daemon last said of itself, empty when it does not run."""
        with contextlib.suppress(sqlite3.OperationalError, IndexError):
            status: dict[str, Any] = json.loads(self.query("SELECT status FROM runs")[0]["status"])
            return status
        return {}

    def leaderboard(self) -> list[str]:
        """Names on the board, best first."""
        return [row["checkpoint"] for row in self.query("SELECT checkpoint FROM leaderboard")]

    def best_files(self) -> set[str]:
        """Names of the files in best/."""
        return {path.name for path in self.best_dir.iterdir()} if self.best_dir.exists() else set()

    def stop_notice(self) -> dict[str, Any]:
        """The content of the sentinel."""
        content: dict[str, Any] = json.loads(self.sentinel.read_text())
        return content

    def evaluations(self) -> list[str]:
        """Names that the stub was asked to evaluate, in order."""
        return self.evaluated.read_text().split() if self.evaluated.exists() else []
