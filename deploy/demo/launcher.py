"""Runs the demo: an unmodified trainer, checkpoint-watcher beside it, and early stopping.

`launcher.py --training-python INTERPRETER` writes everything under `build/demo/` and replaces what
an earlier run left there. The trainer reads no file, so what acts on the watcher's EARLY_STOP is
this script: it ends the trainer, lets the watcher evaluate what is left, and shows the outcome.
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
from contextlib import ExitStack, closing
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
PIPELINE_CONFIG = DATA / "pipeline.config"
DATABASE = MODEL_DIR / "watcher" / "watcher.db"
SENTINEL = MODEL_DIR / "EARLY_STOP"

# The learning rate has decayed to nothing at DECAY_STEPS, long before the trainer would end.
NUM_STEPS = 5000
DECAY_STEPS = 800
PATIENCE = 3
MIN_DELTA = 0.005

TRAINER_GRACE_SECONDS = 10.0
WATCHER_GRACE_SECONDS = 15.0
DRAIN_LIMIT_SECONDS = 180.0
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
        run(args.training_python)
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
        help="an interpreter with TensorFlow and the Object Detection API",
    )
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


def run(python: Path) -> None:
    """Runs trainer and watcher until early stopping, and leaves neither behind."""
    console.print(f"training; its log is {TRAINER_LOG}")
    with ExitStack() as stack:
        log = stack.enter_context(TRAINER_LOG.open("wb"))
        # In a session of its own: a Ctrl-C reaches this script and the watcher, which end in order.
        trainer = subprocess.Popen(
            trainer_command(python), stdout=log, stderr=log, start_new_session=True
        )
        stack.callback(stop_trainer, trainer)
        watcher = subprocess.Popen(watcher_command(python))
        stack.callback(stop_watcher, watcher)
        wait_for_sentinel(trainer, watcher)
        stop_trainer(trainer)
        wait_until_drained(watcher)
        stop_watcher(watcher)
    if watcher.returncode:
        raise DemoError(f"the watcher ended with status {watcher.returncode}")


def trainer_command(python: Path) -> Sequence[str | Path]:
    return [
        *(python, "-m", "object_detection.model_main_tf2"),
        *("--pipeline_config_path", PIPELINE_CONFIG, "--model_dir", MODEL_DIR),
        *("--checkpoint_every_n", "100", "--alsologtostderr"),
    ]


def watcher_command(python: Path) -> Sequence[str | Path]:
    return [
        *(Path(sys.executable).with_name("checkpoint-watcher"), "run", MODEL_DIR),
        *("--pipeline-config", PIPELINE_CONFIG, "--python", python, "--device", "cpu"),
        *("--patience", str(PATIENCE), "--min-delta", str(MIN_DELTA), "--top-k", "3"),
        "--wait-for-model-dir",
    ]


def wait_for_sentinel(trainer: subprocess.Popen[bytes], watcher: subprocess.Popen[bytes]) -> None:
    """Returns when the sentinel is there or the trainer is through."""
    while not SENTINEL.exists():
        if watcher.poll() is not None:
            raise DemoError(f"the watcher ended early with status {watcher.returncode}")
        if trainer.poll() is not None:
            if trainer.returncode:
                raise DemoError(f"the trainer ended with status {trainer.returncode}: {log_tail()}")
            return
        time.sleep(0.2)


def log_tail() -> str:
    lines = TRAINER_LOG.read_text(errors="replace").splitlines()
    return f"see {TRAINER_LOG}" + "".join(f"\n  {line}" for line in lines[-8:])


def stop_trainer(trainer: subprocess.Popen[bytes]) -> None:
    """Ends the trainer and what it started; it has no state of its own to save."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        # The group is there as long as its leader was not waited for.
        if trainer.poll() is not None:
            return
        os.killpg(trainer.pid, number)
        try:
            trainer.wait(TRAINER_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def stop_watcher(watcher: subprocess.Popen[bytes]) -> None:
    if watcher.poll() is not None:
        return
    watcher.terminate()
    try:
        watcher.wait(WATCHER_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        watcher.kill()
        watcher.wait()


def wait_until_drained(watcher: subprocess.Popen[bytes]) -> None:
    """Returns when every checkpoint the trainer has left ended in a recorded outcome."""
    deadline = time.monotonic() + DRAIN_LIMIT_SECONDS
    while not drained():
        if watcher.poll() is not None:
            raise DemoError(f"the watcher ended early with status {watcher.returncode}")
        if time.monotonic() > deadline:
            raise DemoError(f"the watcher was not through after {DRAIN_LIMIT_SECONDS:.0f} s")
        time.sleep(0.2)


def drained() -> bool:
    states = dict(ask("SELECT checkpoint, state FROM history"))
    saved = {path.stem for path in MODEL_DIR.glob("ckpt-*.index")}
    return saved <= states.keys() and not {"pending", "leased"} & set(states.values())


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


def ending() -> str:
    if not SENTINEL.exists():
        return "the trainer ran to its end"
    return f"early stop: {json.loads(SENTINEL.read_text())['message']}"


if __name__ == "__main__":
    sys.exit(main())
