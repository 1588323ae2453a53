"""What the benchmarks of the evaluator share: a training run and the fast COCO backends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from evaluator_client import PROGRAMS, ROOT, draw_shapes, environment, run_program

HERE = Path(__file__).parent / "od"
BACKEND_LIST = ROOT / "deploy" / "requirements" / "coco-backends.txt"
UV = ROOT / ".venv" / "bin" / "uv"


def od_python() -> str:
    """The interpreter of the training environment."""
    return os.environ.get("CHECKPOINT_WATCHER_OD_PYTHON", str(ROOT / ".venv-od" / "bin" / "python"))


@contextlib.contextmanager
def python_path(folder: Path | None) -> Iterator[None]:
    """Give processes started meanwhile this PYTHONPATH, or none."""
    before = os.environ.pop("PYTHONPATH", None)
    if folder:
        os.environ["PYTHONPATH"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH", None)
        if before is not None:
            os.environ["PYTHONPATH"] = before


def fast_backends() -> Path:
    """Return the folder of the fast COCO backends, installed here where make did not."""
    backends = Path(od_python()).parents[1] / "coco-backends"
    if not (backends / "hotcoco").exists():
        command = [str(UV), "pip", "install", "--quiet", "--require-hashes", "--no-deps"]
        command += ["--python", od_python(), "--target", str(backends)]
        subprocess.run([*command, "-r", str(BACKEND_LIST)], check=True)
    return backends


def ask(program: str, *arguments: object, cwd: Path) -> Any:
    """Run one of the programs for the training interpreter and return its JSON answer."""
    return json.loads(run_program(od_python(), HERE / program, *arguments, cwd=cwd))


class EvaluatedRun(Protocol):
    """What the OD API's loop needs of a run."""

    @property
    def folder(self) -> Path:
        """Where it works."""

    @property
    def pipeline(self) -> Path:
        """The pipeline.config."""


class TrainingRun:
    """A small data set in a folder and an SSD MobileNet v2 0.25 at 128 px trained on it."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder = folder
        self.images = images
        train = {"images": 64, "empty_every": 0, "flags": False}
        draw_shapes(od_python(), folder, {"train": train, "val": {"images": images, "seed": 2}})
        config = (PROGRAMS / "ssd_fixed.config").read_text()
        for name in ("train.tfrecord", "val.tfrecord", "label_map.pbtxt"):
            config = config.replace(f'"{name}"', f'"{folder / name}"')
        self.config = config
        self.pipeline = self.write_pipeline("pipeline.config", config)
        self._prefixes: list[Path] = []

    def write_pipeline(self, name: str, config: str) -> Path:
        """Write another pipeline.config into the folder."""
        path = self.folder / name
        path.write_text(config)
        return path

    def checkpoints(self) -> list[Path]:
        """Prefixes of two checkpoints, of steps 100 and 200; trains on the first call."""
        if not self._prefixes:
            options = ["--model_dir", "trained", "--checkpoint_every_n", "100"]
            run_program(od_python(), *self.trainer(), *options, cwd=self.folder)
            self._prefixes = [self.folder / "trained" / name for name in ("ckpt-2", "ckpt-3")]
        return self._prefixes

    def trainer(self) -> list[str]:
        """Arguments of the interpreter that run the unmodified trainer."""
        module = ["-m", "object_detection.model_main_tf2"]
        return [*module, "--pipeline_config_path", str(self.pipeline)]


class OdLoop:
    """The OD API's own evaluation loop in a process, fed with one prefix after another.

    Attributes:
        until_first_image: Of the last evaluation, the seconds until its first image was through.
    """

    until_first_image: float

    def __init__(self, run: EvaluatedRun, *prefix_command: str, ahead: list[Path] | None = None):
        """Start it; with `ahead` it evaluates these without being asked, answers unread."""
        command = [*prefix_command, od_python(), str(HERE / "od_loop.py")]
        self._log = run.folder / "od_loop.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, str(run.pipeline), str(run.folder / "od_loop")],
                cwd=run.folder,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._line() == "ready"
        for prefix in ahead or ():
            self._send(prefix)

    def _line(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise EOFError(f"the OD API's loop ended: {self._log.read_text()[-2000:]}")
        return json.loads(line)

    def _send(self, prefix: Path) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{prefix}\n")
        self.process.stdin.flush()

    def metrics(self, prefix: Path) -> dict[str, float]:
        """Evaluate one checkpoint."""
        self._send(prefix)
        found: dict[str, float] = self._line()
        self.until_first_image = found.pop("until_first_image")
        return found

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.communicate()
