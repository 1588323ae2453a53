"""How a training ended, and what to do next: the launcher's last lines. Pure but for what reads."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from watcher.config import LaunchSettings
from watcher.errors import StoreError
from watcher.files.atomic_io import read_regular
from watcher.launch.command import interpreter
from watcher.launch.decide import describe
from watcher.promotion.promote import BOARD_FILE
from watcher.store.reading import open_reader

# Importing TensorFlow and building the model take less, on a slow machine too.
_AT_ONCE_SECONDS = 60.0
_SHELL_BASE = 128


@dataclass(frozen=True, slots=True)
class Ending:
    """How one trainer process ended.

    Attributes:
        returncode: As `Group.poll` gives it.
        early: We ended it, for an early stop.
        progressed: It saved a checkpoint.
        seconds: How long it lasted.
    """

    returncode: int
    early: bool
    progressed: bool
    seconds: float

    @property
    def failed_at_once(self) -> bool:
        """True for a failure before there was anything new to evaluate."""
        failed = self.returncode != 0 and not self.early
        return failed and not self.progressed and self.seconds < _AT_ONCE_SECONDS


@dataclass(frozen=True, slots=True)
class Unsaved:
    """What was foreseen before the start of what the trainer will not save.

    Attributes:
        remedy: What saves it; empty where that is not known.
        lost: Steps after the last checkpoint, 0 where they are few or not known.
    """

    remedy: str = ""
    lost: int = 0


def what_is_unsaved(unsaved: Unsaved, *, trained: bool) -> str | None:
    """Say what a trainer that ended well has not saved, None for nothing.

    Args:
        unsaved: What was foreseen.
        trained: It saved a trained checkpoint.
    """
    if trained and not unsaved.lost:
        return None
    said = f"the last {unsaved.lost} steps were not saved"
    said = said if trained else "no trained checkpoint was saved"
    return f"{said}; {unsaved.remedy}" if unsaved.remedy else said


def how(ending: Ending) -> str:
    """Say how the trainer ended, and after how long."""
    said = f"the trainer {describe(ending.returncode)} after {_duration(ending.seconds)}"
    number = -ending.returncode
    if ending.returncode > _SHELL_BASE:  # as a shell, or a container, passes a signal on
        number = ending.returncode - _SHELL_BASE
        if number in set(signal.Signals):
            said += f", as for {signal.Signals(number).name}"
    if number == signal.SIGKILL:
        said += ": often the kernel's out-of-memory killer, see `dmesg`"
    return said


@dataclass(frozen=True, slots=True)
class Best:
    """The first place of best/: its name, step and score, and its prefix there."""

    name: str
    global_step: int
    score: float
    prefix: Path

    def __str__(self) -> str:
        return (
            f"the best is {self.name} (step {self.global_step}, score {self.score:.6g}):"
            f" {self.prefix}"
        )


def the_best(best_dir: Path) -> Best | None:
    """Read the first place from best.json, which all may read; None while there is none."""
    try:
        board = msgspec.json.decode(read_regular(best_dir / BOARD_FILE))
        first = board["checkpoints"][0]
        return Best(
            str(first["checkpoint"]),
            int(first["global_step"]),
            float(first["score"]),
            best_dir / str(first["saved_as"]),
        )
    except (OSError, msgspec.DecodeError, KeyError, IndexError, TypeError, ValueError):
        return None


def with_reason(failure: str, state_dir: Path) -> str:
    """Add to how the watcher ended the reason that it recorded, where it did."""
    with contextlib.suppress(StoreError), open_reader(state_dir) as reader:
        if reason := reader.run()["status"].get("ended"):
            return f"{failure}: {reason}"
    return failure


def after_the_end(
    settings: LaunchSettings, command: Sequence[str], best: Best | None, *, resume: bool
) -> list[str]:
    """Say which checkpoint is the best, how it is exported, and how training goes on.

    Args:
        settings: Those of the launcher.
        command: The trainer's.
        best: The best so far.
        resume: Say how an early stop is withdrawn.
    """
    lines = [str(best)] if best else []
    if best and settings.evaluator.pipeline_config:
        words = [interpreter(command) or settings.carrier.python or "python"]
        words += ["-m", "object_detection.exporter_main_v2", "--input_type", "image_tensor"]
        words += ["--pipeline_config_path", settings.evaluator.pipeline_config]
        words += ["--trained_checkpoint_dir", str(settings.run.best_path)]
        words += ["--output_directory", "exported"]
        lines.append(f"to export it: {shlex.join(words)}")
    if resume:
        again = shlex.join(["checkpoint-watcher", "resume", str(settings.run.model_path)])
        lines.append(f"to train on: `{again}`, then the same command again")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
