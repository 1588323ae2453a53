"""What `train` tells of the trainer's COMMAND before it starts it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from watcher.config import LaunchSettings
from watcher.doctor import cadence
from watcher.doctor.folders import step_reached
from watcher.errors import ConfigError
from watcher.launch.ending import Unsaved
from watcher.launch.kinds import trainer_of
from watcher.launch.say import say
from watcher.launch.trainer_kind import Schedule
from watcher.sources.choice import CheckpointSource

# A smaller part of the training is not worth a word.
_MUCH = 0.05


def refuse_shells_words(command: Sequence[str]) -> None:
    """Refuse what a shell alone would understand: no shell reads the trainer's command.

    Raises:
        ConfigError: it begins with a variable, or all of it is one word.
    """
    first = command[0]
    if shutil.which(first) is not None:
        return
    message = f"cannot start {first}: there is no such program"
    if re.match(r"[A-Za-z_]\w*=", first):
        raise ConfigError(
            message,
            hint=f"put {first} before checkpoint-watcher, where the trainer gets it too, or after"
            f" env: `-- env {shlex.join(command[:2])} ...`",
        )
    if len(command) == 1 and first.split()[1:]:
        raise ConfigError(
            message,
            hint="the whole command is one word: leave out the quotes around it, as in"
            f" `-- {first}`",
        )


def refuse_mistyped(command: Sequence[str]) -> None:
    """Tell of flags that the trainer does not know and that look like those it knows.

    Raises:
        ConfigError: it cannot train for want of one of them.
    """
    kind, arguments = trainer_of(command)
    if kind is None:
        return
    wrong = kind.mistyped(arguments)
    if lacking := kind.missing(arguments, wrong):
        raise ConfigError(
            f"the trainer's command has {lacking.typed}, which {kind.program} does not know,"
            f" and no --{lacking.name}",
            hint=f"did you mean {lacking.meant}?",
        )
    for one in wrong:
        say(f"{one.typed} is no flag of {kind.program}, which passes over it: {one.meant}?")


def tell_ahead(
    command: Sequence[str], settings: LaunchSettings, source: CheckpointSource
) -> Unsaved:
    """Tell what of the training will be in vain; returns what there is to say of it at the end.

    Of classes that the model has no place for nothing is learned. A trainer does not save as often
    as it is told, where that is no multiple of the steps that it runs at a time, and the OD API
    does not save at the end.
    """
    kind, arguments = trainer_of(command)
    if kind is None:
        return Unsaved()
    given = settings.value("pipeline_config")
    configuration = Path(given) if given else None
    for said in kind.foretold(arguments, configuration, Path()):
        say(said)
    if not kind.trains(arguments):
        return Unsaved()
    return _foresee_saves(kind.schedule(arguments, configuration, Path(), {}), source)


def _foresee_saves(schedule: Schedule, source: CheckpointSource) -> Unsaved:
    if schedule.is_set and schedule.interval != schedule.every:
        say(cadence.rounding(schedule))
    pace = cadence.Pace(schedule, begun=step_reached(source))
    plan = cadence.plan(pace)
    if plan is None:
        if schedule.saves_at_end:
            return Unsaved()
        saving = f"the trainer saves every {schedule.interval} steps, not at the end"
        return Unsaved(f"{saving}: pass --{schedule.every_name}, or train for more steps")
    if not plan.remedy or 0 < plan.lost < _MUCH * (plan.ends - plan.begins):
        return Unsaved()
    say(f"{cadence.unsaved(pace, plan)}: {plan.remedy}")
    return Unsaved(plan.remedy, plan.lost if plan.saves else 0)
