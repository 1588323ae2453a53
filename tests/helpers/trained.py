"""One real run for all tests that need one: unmodified trainer, watcher and launcher at once.

`model_main_tf2` is started by `checkpoint-watcher train`, and would go on for ever. The watcher
beside it has the real evaluator, and ends it by its sentinel. What the OD API's own loop gives for
two of the checkpoints is in `reference.json`, and its event files are in `reference/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evaluator_client import PROGRAMS, draw_shapes, environment, reference_metrics
from launching import trainer_of
from watching import CLI, Watcher, wait_until

IMAGES = 24
PICTURES = 3
REFERRED = ("ckpt-2", "ckpt-3")
SHAPES = {
    "train": {"images": 64, "empty_every": 0, "flags": False},
    "val": {"images": IMAGES, "seed": 2},
    # The same images without source_id, as some converters leave it.
    "anonymous": {"images": IMAGES, "seed": 2, "anonymous": True},
}


@dataclass(frozen=True)
class Trained:
    """The run, finished; nothing of it runs any more."""

    folder: Path
    python: str

    @property
    def model_dir(self) -> Path:
        """The trainer's folder, with the watcher's beside its checkpoints."""
        return self.folder / "model_dir"

    @property
    def pipeline(self) -> Path:
        """The pipeline.config of both sides, with absolute paths."""
        return self.folder / "pipeline.config"

    @property
    def reference(self) -> dict[str, dict[str, float]]:
        """What the OD API's own loop gives, by checkpoint."""
        found: dict[str, dict[str, float]] = json.loads(self._reference.read_text())
        return found

    @property
    def launcher_log(self) -> Path:
        """What the launcher and the trainer wrote."""
        return self.folder / "launcher.log"

    @property
    def first(self) -> Path:
        """The first three checkpoints, which the trainer may have rotated away since."""
        return self.folder / "first"

    @property
    def temporary(self) -> Path:
        """The temporary folder of the watcher, and so of its workers."""
        return self.folder / "temporary"

    @property
    def _reference(self) -> Path:
        return self.folder / "reference.json"

    def flags(self) -> list[object]:
        """The flags of `run` on it."""
        return ["--pipeline-config", self.pipeline, "--python", self.python]

    def make(self) -> None:
        """Train, watch, stop and refer, in an empty folder."""
        watcher = Watcher(self.folder)
        draw_shapes(self.python, self.folder, SHAPES)
        config = (PROGRAMS / "ssd_fixed.config").read_text()
        config = config.replace("train_config { batch_size: 8", "train_config { batch_size: 4")
        config = config.replace("num_visualizations: 0", f"num_visualizations: {PICTURES}")
        for name in ("train.tfrecord", "val.tfrecord", "label_map.pbtxt"):
            config = config.replace(f'"{name}"', f'"{self.folder / name}"')
        self.pipeline.write_text(config)
        try:
            flags = ["--top-k", 2, "--patience", 1, "--min-delta", 1]
            self.temporary.mkdir()
            variables = {"TMPDIR": self.temporary, "CHECKPOINT_WATCHER_TENSORBOARD": "true"}
            daemon = watcher.start(*self.flags(), *flags, **variables)
            # Or the trainer would rotate checkpoints away that are to be compared.
            wait_until(watcher.database.exists, "the watcher has begun")
            wait_until(lambda: watcher.status().get("worker") == "ready", "it is ready", 500)
            self._train(watcher)
            wait_until(lambda: drained(watcher), "all checkpoints have an outcome", 600)
            # It ends when all is projected, too.
            daemon.send_signal(signal.SIGUSR1)
            assert daemon.wait(60) == 0
        finally:
            watcher.end()
        prefixes = [self.first / name for name in REFERRED]
        written = ["--model-dir", self.folder / "reference"]
        metrics = reference_metrics(self.python, self.pipeline, *prefixes, *written)
        named = {Path(prefix).name: values for prefix, values in metrics.items()}
        self._reference.write_text(json.dumps(named))

    def _train(self, watcher: Watcher) -> None:
        command = [self.python, "-m", "object_detection.model_main_tf2"]
        command += ["--pipeline_config_path", str(self.pipeline), "--checkpoint_every_n", "100"]
        command += ["--model_dir", str(self.model_dir), "--num_train_steps", "100000"]
        launched = [*CLI, "train", "--stop-at-checkpoint", "--", *command]
        with self.launcher_log.open("wb") as log:
            # One thread: its compiler is most of the work, and threads that wait for it spin.
            variables = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
            launcher = subprocess.Popen(
                launched, stdout=log, stderr=log, env={**environment(), **variables}
            )
        try:
            self.first.mkdir()
            wait_until(lambda: self._hold() or launcher.poll() is not None, "they are there", 400)
            assert launcher.poll() is None, self.launcher_log.read_text()[-4000:]
            # Or it would be well ahead when it is told to stop, and all of it had to be evaluated.
            with paused(trainer_of(launcher.pid)):
                wait_until(watcher.sentinel.exists, "it is told to stop", 400)
            ended = launcher.wait(400)
        finally:
            launcher.terminate()  # which the trainer gets too
            launcher.wait()
        assert ended == 0, self.launcher_log.read_text()[-4000:]

    def _hold(self) -> bool:
        """Link the first checkpoints aside; returns whether all three are there.

        TensorFlow writes an index when the rest is there.
        """
        there = list(self.model_dir.glob("ckpt-[123].index"))
        for index in there:
            for path in self.model_dir.glob(f"{index.stem}.*"):
                with contextlib.suppress(FileExistsError):
                    (self.first / path.name).hardlink_to(path)
        return len(there) == 3


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stop a process for as long as that takes."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def drained(watcher: Watcher) -> bool:
    """Whether all that was saved has an outcome, and the training was told to stop."""
    saved = {path.stem for path in watcher.model_dir.glob("ckpt-*.index")}
    states = watcher.states()
    done = saved <= states.keys() and not {"pending", "leased"} & set(states.values())
    return done and watcher.sentinel.exists()
