"""Kinds: which trainers are known, and which one a command is."""

from __future__ import annotations

from collections.abc import Sequence

from watcher.launch.command import python_command
from watcher.launch.garden_trainer import GardenTrainer
from watcher.launch.od_trainer import OdTrainer
from watcher.launch.trainer_kind import TrainerKind

KINDS: tuple[TrainerKind, ...] = (OdTrainer(), GardenTrainer())


def kind_of(program: str, arguments: Sequence[str]) -> TrainerKind | None:
    """Return the trainer that a module or a script is, None for none that is known."""
    kind = next((kind for kind in KINDS if kind.runs(program, arguments)), None)
    return kind.started_as(program) if kind else None


def trainer_of(command: Sequence[str]) -> tuple[TrainerKind | None, tuple[str, ...]]:
    """Return the trainer that a command runs on this machine, and its own arguments."""
    python = python_command(command)
    if python is None:
        return None, ()
    return kind_of(python.program, python.arguments), python.arguments


def trainer_among(
    words: Sequence[str], most: int | None = None
) -> tuple[TrainerKind, tuple[str, ...]] | None:
    """Return the first trainer that one of some words names, and the words after it.

    Args:
        words: Of a command line.
        most: Of so many words at its beginning one has to name the trainer.
    """
    for position, word in enumerate(words[:most], start=1):
        arguments = tuple(words[position:])
        if kind := kind_of(word, arguments):
            return kind, arguments
    return None


def evaluated_by(evaluator: str | None) -> TrainerKind:
    """Return the trainer whose checkpoints a kind of evaluation is for; None is the default."""
    return next((kind for kind in KINDS if kind.evaluator == evaluator), KINDS[0])
