"""How a training ended, and what to do next: the launcher's last lines. Pure but for what reads."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

import msgspec

from watcher.config import LaunchSettings
from watcher.errors import StoreError
from watcher.launch.command import interpreter
from watcher.launch.decide import describe
from watcher.launch.files import last_words
from watcher.launch.kinds import evaluated_by
from watcher.promotion.promote import read_board
from watcher.store.reading import open_reader

# Importing TensorFlow and building the model take less, on a slow machine too.
_AT_ONCE_SECONDS = 60.0
_SHELL_BASE = 128


class Ending(msgspec.Struct, frozen=True):
    """How one trainer process ended.

    Attributes:
        returncode: As `Group.poll` gives it.
        early: We ended it, for an early stop.
        progressed: It came further than the trainers before it, see `Progress`.
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


class Unsaved(msgspec.Struct, frozen=True):
    """What was foreseen before the start of what the trainer will not save.

    Attributes:
        remedy: What saves it; empty where that is not known.
        lost: Steps after the last checkpoint, 0 where they are few or not known.
    """

    remedy: str = ""
    lost: int = 0


class Summary(msgspec.Struct, frozen=True):
    """What the launcher knows once all is over.

    Attributes:
        ending: Of the last trainer, None when none was started.
        asked: The signal by which somebody wanted the end.
        fruitless: The trainer failed at once, and there is nothing new to evaluate.
        watched: A watcher was to run beside it.
        watcher_lasts: That one was not given up.
        gave_up: Why not all is evaluated, None where all is or nobody waited for it.
        unsaved: What was foreseen; None where nobody could see what was saved.
        saved: Something was saved.
        trained: A trained checkpoint was.
        code: The launcher's exit code.
        stopped_by: What the sentinel says, None while there is none.
    """

    ending: Ending | None
    asked: signal.Signals | None
    fruitless: bool
    watched: bool
    watcher_lasts: bool
    gave_up: str | None
    unsaved: Unsaved | None
    saved: bool
    trained: bool
    code: int
    stopped_by: str | None


def last_lines(summary: Summary, settings: LaunchSettings, command: Sequence[str]) -> list[str]:
    """Say how the trainer ended, what is lost, which is the best, and what to do next."""
    ending, watched = summary.ending, summary.watched
    stopped = summary.code == 0 and summary.stopped_by is not None
    lines = []
    if ending and not ending.early and (watched or ending.returncode):
        lines += _how_it_ended(ending, summary, settings.trainer.trainer_log)
    if summary.gave_up:
        lines.append(f"not all is evaluated: {summary.gave_up}")
    if ending and not (ending.early or ending.returncode or summary.asked):
        lines += _what_is_unsaved(summary)
    if stopped and ending and watched:  # it was told before the queue was finished
        lines.append(f"stopped early: {summary.stopped_by}")
    best = stopped or (watched and not summary.fruitless)
    lines += (said := _the_best(settings.run.best_path) if best else [])
    if stopped or (watched and summary.code == 0):
        resume = stopped and ending is not None  # else that is said already
        lines += _what_to_do(settings, command, export=bool(said), resume=resume)
    if watched and not summary.fruitless:
        lines += _what_the_run_holds(settings.run.state_path, summary)
    return lines


def _how_it_ended(ending: Ending, summary: Summary, log: str | None) -> list[str]:
    said = how(ending)
    if summary.asked:
        said += f"; {summary.asked.name} was passed on"
    elif summary.fruitless:
        said += f", before any {'trained' if summary.saved else 'new'} checkpoint"
        said += ": no watcher goes on without it" if summary.watcher_lasts else ""
    if log and ending.returncode and not summary.asked and (words := last_words(log)):
        return [said, f"{log} ends: {words}"]
    return [said]


def _what_is_unsaved(summary: Summary) -> list[str]:
    """Say what a trainer that ended well has not saved, unless it may save elsewhere."""
    unsaved = summary.unsaved
    if unsaved is None or not (unsaved.remedy or summary.saved or summary.watched):
        return []
    if summary.trained and not unsaved.lost:
        return []
    said = f"the last {unsaved.lost} steps were not saved"
    said = said if summary.trained else "no trained checkpoint was saved"
    return [f"{said}; {unsaved.remedy}" if unsaved.remedy else said]


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


def _the_best(best_dir: Path) -> list[str]:
    """Say which is the first place of `best.json`, and where; nothing while there is none."""
    board = read_board(best_dir)
    first = board.checkpoints[0] if board and board.checkpoints else None
    if first is None or first.score is None:
        return []
    name = first.checkpoint
    said = f"the best is {name} (step {first.global_step}, score {first.score:.6g})"
    return [f"{said}: {best_dir / name}"]


def with_reason(failure: str, state_dir: Path) -> str:
    """Add to how the watcher ended the reason that it recorded, where it did."""
    with contextlib.suppress(StoreError), open_reader(state_dir) as reader:
        if reason := reader.status().get("ended"):
            return f"{failure}: {reason}"
    return failure


def _what_the_run_holds(state_dir: Path, summary: Summary) -> list[str]:
    """Say what its scores do not measure, and what is left for the next start."""
    lines = []
    with contextlib.suppress(StoreError), open_reader(state_dir) as reader:
        if said := reader.unmeasured():
            lines.append(f"! {said}")
        waiting = reader.waiting() + reader.states().get("leased", 0)
        # After an early stop the same command starts nothing: `_what_to_do` says what does.
        cut_off = summary.asked or (summary.ending and summary.ending.returncode)
        ended = summary.ending and cut_off and summary.stopped_by is None
        if waiting and ended:
            noun = "checkpoint waits" if waiting == 1 else "checkpoints wait"
            again = "the same command again trains on from there, and evaluates them"
            lines.append(f"{waiting} {noun} to be evaluated: {again}")
        elif ended and summary.saved:
            lines.append("the same command again trains on from there")
    return lines


def _what_to_do(
    settings: LaunchSettings, command: Sequence[str], *, export: bool, resume: bool
) -> list[str]:
    """Say how the best is exported, and how training goes on."""
    lines = []
    kind = evaluated_by(settings.run.evaluator)
    if export and (exporter := kind.export(settings.run, settings.evaluator)):
        words = [interpreter(command) or settings.carrier.python or "python", "-m", *exporter]
        lines.append(f"to export it: {shlex.join(words)}")
    if resume:
        again = shlex.join(["checkpoint-watcher", "resume", str(settings.run.model_path)])
        lines.append(f"to train on: `{again}`, then the same command again")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
