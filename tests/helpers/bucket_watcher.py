"""A real `checkpoint-watcher run` process on a folder of a bucket, for the tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

from buckets import KEYS, Run
from fake_trainer import model_tensors, write_checkpoint
from watching import CLI, STUB, Watcher, wait_until


class BucketWatcher(Watcher):
    """The daemon on a folder of a bucket, with a state folder here."""

    def __init__(self, folder: Path, run: Run) -> None:
        super().__init__(folder)
        self.model_dir.rmdir()
        self.run_there, self.state = run, folder / "state"
        self.database = self.state / "watcher.db"
        self.best_dir, self.sentinel = self.state / "best", self.state / "EARLY_STOP"
        self.trainer = folder / "trainer"

    def command(self, *flags: object) -> list[str]:
        run = self.run_there
        words = [run.url, "--state-dir", self.state, "--pipeline-config", self.pipeline]
        words += ["--python", STUB, "--endpoint-url", run.proxy.endpoint, "--poll-seconds", 1]
        words += ["--anonymous"] if run.server.scheme == "gs" else []
        return [*CLI, "run", *map(str, [*words, *flags])]

    def start(self, *flags: object, **environment: object) -> subprocess.Popen[bytes]:
        return super().start(*flags, **{**KEYS, **environment})

    def save(self, number: int, size: int = 20_000) -> None:
        """Save a checkpoint there, as the trainer does."""
        tensors = model_tensors(size, number)
        self.run_there.save(write_checkpoint(self.trainer, f"ckpt-{number}", number * 100, tensors))

    def scored(self, *numbers: int) -> None:
        names = {f"ckpt-{number}" for number in numbers}
        wait_until(
            lambda: names <= {n for n, state in self.states().items() if state == "scored"},
            f"{names} are scored",
        )

    def problem(self) -> str:
        return str(self.status().get("problem") or "")
