"""Processes: which trainers run on this machine, as far as /proc shows them to us."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from watcher.config import Settings
from watcher.launch.command import flag_value

_TRAINER = "model_main_tf2"


@dataclass(frozen=True, slots=True)
class Trainer:
    """A running model_main_tf2.

    Attributes:
        model_dir: Where it writes, absolute and with links resolved.
        checkpoint_every_n: The flag, 1000 when it is not given.
        num_train_steps: The flag, None when it is not given.
        visible: Its CUDA_VISIBLE_DEVICES, None when not set; `unknown` when we may not look.
        folder: Where it was started; None when we may not look, or it is none of ours.
    """

    pid: int
    model_dir: Path
    checkpoint_every_n: int
    num_train_steps: int | None
    visible: str | None
    folder: Path | None = None


def trainer_on(model_dir: Path, running: Iterable[Trainer]) -> Trainer | None:
    """Return the first trainer that writes into a MODEL_DIR."""
    here = model_dir.resolve()
    return next((trainer for trainer in running if trainer.model_dir == here), None)


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
        words = strings(folder / "cmdline") or []
        if is_trainer(words) and (trainer := _trainer(folder, words)):
            found.append(trainer)
    return found


def strings(file: Path) -> list[str] | None:
    """Return the texts that a process has in `cmdline` or `environ`; None where we may not look."""
    try:
        return file.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None


def is_trainer(words: list[str]) -> bool:
    """True for the command line of a Python that trains with the OD API, not only evaluates."""
    if not words or not Path(words[0]).name.startswith("python"):
        return False
    runs = any(
        word.removesuffix(".py").rpartition("/")[2].endswith(_TRAINER) for word in words[1:6]
    )
    return runs and not flag_value(words, "checkpoint_dir")


def command_of(pid: int) -> str:
    """Return the command line of a process, empty when it is gone or hidden."""
    return " ".join(strings(Path(f"/proc/{pid}/cmdline")) or []).strip()


def _trainer(folder: Path, words: list[str]) -> Trainer | None:
    given = flag_value(words, "model_dir")
    if not given:
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
        checkpoint_every_n=_number(flag_value(words, "checkpoint_every_n")) or 1000,
        num_train_steps=_number(flag_value(words, "num_train_steps")),
        visible=value_of(folder, "CUDA_VISIBLE_DEVICES", hidden="unknown"),
        # In a container it has folders of its own.
        folder=started_in if started_in and started_in.is_dir() else None,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def value_of(folder: Path, variable: str, *, hidden: str) -> str | None:
    """Return a variable of a process, by its folder in /proc; `hidden` where we may not look."""
    if (variables := strings(folder / "environ")) is None:
        return hidden
    found = (one.partition("=") for one in variables)
    return next((value for name, _, value in found if name == variable), None)
