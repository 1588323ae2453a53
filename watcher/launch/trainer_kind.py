"""What differs from one trainer to another, as one shape; `od_trainer`, `garden_trainer` have it.

All of it is told by a command line and by the files it names: no trainer is imported or asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from watcher.config.run import RunSettings
from watcher.config.settings import EvaluatorSettings


class Schedule(msgspec.Struct, frozen=True):
    """How long a trainer trains and when it saves.

    Attributes:
        every: Steps between two saves, as they are set or else by default; None when unknown.
        source: Where that is known from.
        is_set: They are set, and no default.
        steps: Of the whole training, None when unknown.
        steps_name: What sets those.
        every_name: What sets the steps between two saves.
        set_every: The same as it is typed, before the number.
        loop: It looks each so many steps whether it is time to save.
        loop_name: What sets that, in words that follow the number; empty where nothing does.
        saves_at_end: It saves after the first loop and after the last step, too. Else it trains
            whole loops, and nothing is saved before a whole interval is over.
        keeps: The checkpoints that it leaves, None for all.
    """

    every: int | None
    source: str
    is_set: bool
    steps: int | None
    steps_name: str
    every_name: str
    set_every: str
    loop: int
    loop_name: str = ""
    saves_at_end: bool = False
    keeps: int | None = None

    @property
    def interval(self) -> int:
        """Return how many steps lie between two saves."""
        return self.rounded(self.every or 0)

    def rounded(self, every: int) -> int:
        """Return how many steps would lie between two saves if it were told so many."""
        return max(1, -(-every // self.loop)) * self.loop


class Mistyped(msgspec.Struct, frozen=True):
    """A word that was probably meant as a flag of the trainer, which passes over it.

    Attributes:
        typed: The flag as typed, without its value.
        name: The flag that was probably meant.
        meant: What to type, with the value.
    """

    typed: str
    name: str
    meant: str


class TrainerKind(Protocol):
    """A program that trains, by what can be told of it from outside."""

    @property
    def program(self) -> str:
        """What people call it."""

    @property
    def suite(self) -> str:
        """What it is a part of, by the name that people use."""

    @property
    def evaluator(self) -> str:
        """The kind of evaluation that its checkpoints are for."""

    @property
    def packages(self) -> Sequence[str]:
        """What it cannot start without, beside the module that it is."""

    @property
    def evaluates_with(self) -> Sequence[str]:
        """The packages that an interpreter needs to evaluate its checkpoints."""

    @property
    def configuration(self) -> str:
        """What its file of settings is called."""

    @property
    def faster(self) -> str:
        """The watcher's flags that make an evaluation faster, each with a comma behind it."""

    @property
    def side_folders(self) -> Sequence[str]:
        """Folders in MODEL_DIR into which it saves by itself, and which nobody else looks at."""

    def runs(self, program: str, arguments: Sequence[str]) -> bool:
        """Tell whether a module or script that a Python was given is this trainer."""

    def started_as(self, program: str) -> TrainerKind:
        """Return it with what the module or script that it is tells of it."""

    def trains(self, arguments: Sequence[str]) -> bool:
        """Tell whether it trains, and does not only evaluate."""

    def settings(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the watcher's settings that its arguments tell, as they stand there."""

    def mistyped(self, arguments: Sequence[str]) -> list[Mistyped]:
        """Return the words that are nearly flags, where it would not complain of them itself."""

    def missing(self, arguments: Sequence[str], wrong: Sequence[Mistyped]) -> Mistyped | None:
        """Return the mistyped flag for want of which it cannot train, None for none."""

    def schedule(
        self,
        arguments: Sequence[str],
        configuration: Path | None,
        folder: Path,
        known: Mapping[str, Any],
    ) -> Schedule:
        """Return when it saves.

        Args:
            arguments: Its own, none where it does not run.
            configuration: The file that holds what the arguments do not say.
            folder: Where relative paths in the arguments begin.
            known: What the training environment said of the configuration.
        """

    def export(self, run: RunSettings, evaluator: EvaluatorSettings) -> list[str]:
        """Return the module that exports the best, with its arguments; nothing if not known."""

    def remarks(self, arguments: Sequence[str]) -> list[str]:
        """Say what there is to know of a running one, as the ends of sentences about it."""

    def foretold(
        self, arguments: Sequence[str], configuration: Path | None, folder: Path
    ) -> list[str]:
        """Say what of the training will be in vain, whatever its steps."""


def number(text: str | None) -> int | None:
    """Return the number that a flag has, None where it has none."""
    return int(text) if text and text.isdecimal() else None
