"""Runs the demo: an unmodified trainer, checkpoint-watcher beside it, and early stopping.

`launcher.py --training-python INTERPRETER [--trainer model-garden]` writes everything under
`build/demo/` and replaces what an earlier run left there. The work is one command,
`checkpoint-watcher train --watch`; what this adds is a data set before it and a look at the outcome
after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
# Relative, and every process is started in ROOT: the paths people see are short.
BUILD = Path("build/demo")
DATA = BUILD / "data"
MODEL_DIR = BUILD / "model_dir"
TRAINER_LOG = BUILD / "trainer.log"
# What each trainer is started with, but for where it saves.
TRAINERS: dict[str, Sequence[str | Path]] = {
    "od-api": [
        *("-m", "object_detection.model_main_tf2", "--alsologtostderr"),
        *("--pipeline_config_path", DATA / "pipeline.config", "--checkpoint_every_n", "100"),
    ],
    "model-garden": [
        *("-m", "official.vision.train", "--mode=train"),
        *("--experiment=retinanet_resnetfpn_coco", f"--config_file={DATA / 'retinanet.yaml'}"),
    ],
}
DATABASE = MODEL_DIR / "watcher" / "watcher.db"
SENTINEL = MODEL_DIR / "EARLY_STOP"

# The learning rate has decayed to nothing at DECAY_STEPS, long before the trainer would end.
NUM_STEPS = 5000
DECAY_STEPS = 800
PATIENCE = 3
MIN_DELTA = 0.005

QUESTION = "SELECT checkpoint, global_step, score, path FROM best"

console = Console(highlight=False)


class DemoError(Exception):
    """Raised when the demo cannot go on; the message is for the person who started it."""


def main() -> int:
    """Runs the demo and returns its exit status."""
    args = parse_args()
    os.chdir(ROOT)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    started = time.monotonic()
    try:
        prepare(args.training_python)
        run(args.training_python, args.trainer)
        show_outcome(time.monotonic() - started)
    except KeyboardInterrupt:
        return 130
    except DemoError as error:
        console.print(f"[red]demo failed:[/red] {escape(str(error))}")
        return 1
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs the demo of checkpoint-watcher.")
    parser.add_argument(
        "--training-python",
        type=lambda text: Path(text).absolute(),
        default=ROOT / ".venv-od" / "bin" / "python",
        metavar="INTERPRETER",
        help="an interpreter with TensorFlow, the Object Detection API and Model Garden",
    )
    parser.add_argument("--trainer", choices=list(TRAINERS), default="od-api")
    return parser.parse_args()


def leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def prepare(python: Path) -> None:
    """Empties `build/demo/` and draws the data set."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    console.print(f"drawing a data set into {DATA}")
    arguments = [f"--num-steps={NUM_STEPS}", f"--decay-steps={DECAY_STEPS}"]
    script = Path(__file__).with_name("make_dataset.py")
    drawn = subprocess.run([python, script, DATA, *arguments], stdout=subprocess.DEVNULL)
    if drawn.returncode:
        raise DemoError(f"{script.name} ended with status {drawn.returncode}")


def run(python: Path, trainer: str) -> None:
    """Trains and watches until early stopping ends it."""
    console.print(f"training; its log is {TRAINER_LOG}")
    launcher = subprocess.Popen([*launcher_command(), "--", *trainer_command(python, trainer)])
    try:
        code = launcher.wait()
    except BaseException:
        # It ends the trainer and the watcher, and then itself.
        launcher.terminate()
        launcher.wait()
        raise
    if code:
        raise DemoError(f"`checkpoint-watcher train` ended with code {code}: {log_tail()}")


def launcher_command() -> Sequence[str | Path]:
    return [
        *(Path(sys.executable).with_name("checkpoint-watcher"), "train", "--watch"),
        *("--device", "cpu", "--patience", str(PATIENCE), "--min-delta", str(MIN_DELTA)),
        *("--top-k", "3", "--run-name", "demo", "--trainer-log", TRAINER_LOG),
    ]


def trainer_command(python: Path, trainer: str) -> Sequence[str | Path]:
    return [python, *TRAINERS[trainer], f"--model_dir={MODEL_DIR}"]


def log_tail() -> str:
    if not TRAINER_LOG.exists():
        return "what it said is above"
    lines = TRAINER_LOG.read_text(errors="replace").splitlines()
    return f"see {TRAINER_LOG}" + "".join(f"\n  {line}" for line in lines[-8:])


def ask(query: str) -> list[tuple[Any, ...]]:
    """Returns the rows of a query; the database is opened for reading only."""
    with closing(sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True, timeout=10)) as database:
        return database.execute(query).fetchall()


def show_outcome(seconds: float) -> None:
    rows = ask("SELECT rank, checkpoint, global_step, score FROM leaderboard")
    if not rows:
        raise DemoError(f"no checkpoint was scored; see {TRAINER_LOG}")
    table = Table("rank", "checkpoint", "step", "mAP", title="Leaderboard", title_justify="left")
    for rank, checkpoint, step, score in rows:
        table.add_row(str(rank), str(checkpoint), str(step), f"{score:.4f}")
    console.print()
    console.print(table)
    console.print(f"{escape(ending())}; {seconds:.0f} s in all", soft_wrap=True)
    console.print(f"best checkpoints: {MODEL_DIR / 'best'}")
    console.print(f"database:         {DATABASE}")
    console.print(f'ask it:           sqlite3 {DATABASE} "{QUESTION}"', soft_wrap=True)
    for row in ask(QUESTION):
        console.print("                  " + "|".join(str(value) for value in row), soft_wrap=True)
    program = Path(sys.executable).with_name("checkpoint-watcher").relative_to(ROOT)
    console.print(f"see it:           {program} plot {MODEL_DIR}")
    console.print(
        f"                  {program} web {MODEL_DIR} --datasette .venv-web/bin/python",
        soft_wrap=True,
    )


def ending() -> str:
    if not SENTINEL.exists():
        return "the trainer ran to its end"
    return f"early stop: {json.loads(SENTINEL.read_text())['message']}"


if __name__ == "__main__":
    sys.exit(main())
