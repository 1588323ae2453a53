"""Processes: which trainers run on this machine, as far as /proc shows them to us."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from watcher.config import Settings
from watcher.launch.command import flag_value
from watcher.launch.kinds import trainer_among
from watcher.launch.trainer_kind import TrainerKind

# A Python's own options, and a program that starts another one, come before the trainer.
_FIRST_WORDS = 5


class Trainer(msgspec.Struct, frozen=True):
    """A trainer that runs.

    Attributes:
        model_dir: Where it writes, absolute and with links resolved.
        kind: Which trainer it is.
        arguments: Its own.
        visible: Its CUDA_VISIBLE_DEVICES, None when not set; `unknown` when we may not look.
        folder: Where it was started; None when we may not look, or it is none of ours.
        started_at: When, as Unix time; 0 where that cannot be told.
    """

    pid: int
    model_dir: Path
    kind: TrainerKind
    arguments: tuple[str, ...]
    visible: str | None
    folder: Path | None = None
    started_at: float = 0.0

    def path(self, given: str) -> Path:
        """Return a path of its arguments, from where it was started."""
        return (self.folder or Path("/")) / given


def trainer_on(model_dir: Path, running: Iterable[Trainer]) -> Trainer | None:
    """Return the first trainer that writes into a MODEL_DIR."""
    here = model_dir.resolve()
    return next((trainer for trainer in running if trainer.model_dir == here), None)


def is_yet_to_write(file: Path, trainer: Trainer | None) -> bool:
    """Tell whether a file that a trainer writes when it starts is still that of the one before."""
    try:
        return trainer is not None and file.stat().st_mtime < trainer.started_at
    except OSError:
        return False


def at_work(settings: Settings, running: Iterable[Trainer], *, inherited: bool = False) -> Settings:
    """Return settings that say where relative paths begin: as set, with the trainer, or here.

    What is `inherited` from the last start gives way to a trainer that runs, and counts while it
    is there.
    """
    trainer = trainer_on(settings.run.model_path, running)
    found = trainer and trainer.folder
    if settings.carrier.working_directory and not (
        inherited and (found or not settings.carrier.working_path.is_dir())
    ):
        return settings
    folder = found or Path.cwd()
    return settings.replaced(working_directory=str(folder))


def trainers(proc: Path = Path("/proc")) -> list[Trainer]:
    """List the running trainers whose model_dir can be told, oldest process id first."""
    found = []
    for folder in sorted(proc.glob("[0-9]*"), key=lambda path: int(path.name)):
        if trainer := _trainer(folder, strings(folder / "cmdline") or []):
            found.append(trainer)
    return found


def strings(file: Path) -> list[str] | None:
    """Return the texts that a process has in `cmdline` or `environ`; None where we may not look."""
    try:
        return file.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None


def training_of(words: Sequence[str]) -> tuple[TrainerKind, tuple[str, ...]] | None:
    """Return what a Python's command line trains with, and its arguments; None if it does not.

    What only evaluates is none.
    """
    if not words or not Path(words[0]).name.startswith("python"):
        return None
    found = trainer_among(words[1:], _FIRST_WORDS)
    return found if found and found[0].trains(found[1]) else None


def command_of(pid: int) -> str:
    """Return the command line of a process, empty when it is gone or hidden."""
    return " ".join(strings(Path(f"/proc/{pid}/cmdline")) or []).strip()


def _trainer(folder: Path, words: Sequence[str]) -> Trainer | None:
    kind, arguments = training_of(words) or (None, ())
    given = flag_value(arguments, "model_dir")
    if not kind or not given:
        return None
    started_in: Path | None = None
    try:
        started_in = (folder / "cwd").readlink()
        model_dir = (started_in / given).resolve()
    except OSError:
        model_dir = Path(given)
    return Trainer(
        pid=int(folder.name),
        model_dir=model_dir,
        kind=kind,
        # A command line in /proc ends with an empty word.
        arguments=arguments[:-1] if arguments[-1:] == ("",) else arguments,
        visible=value_of(folder, "CUDA_VISIBLE_DEVICES", hidden="unknown"),
        # In a container it has folders of its own.
        folder=started_in if started_in and started_in.is_dir() else None,
        started_at=_started_at(folder),
    )


def _started_at(folder: Path) -> float:
    try:
        ticks = int((folder / "stat").read_text().rpartition(")")[2].split()[19])
        uptime = float((folder.parent / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def value_of(folder: Path, variable: str, *, hidden: str) -> str | None:
    """Return a variable of a process, by its folder in /proc; `hidden` where we may not look."""
    if (variables := strings(folder / "environ")) is None:
        return hidden
    found = (one.partition("=") for one in variables)
    return next((value for name, _, value in found if name == variable), None)
