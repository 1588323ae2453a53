"""What `train` tells of the trainer's COMMAND before it starts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from watcher.config import LaunchSettings
from watcher.doctor import cadence
from watcher.doctor.folders import step_reached
from watcher.errors import ConfigError
from watcher.launch import od_trainer
from watcher.launch.command import flag_value, python_command
from watcher.launch.ending import Unsaved
from watcher.launch.say import say
from watcher.sources.choice import CheckpointSource

_DEFAULT_EVERY_N = 1000
# A smaller part of the training is not worth a word.
_MUCH = 0.05


def refuse_mistyped(command: Sequence[str]) -> None:
    """Tell of flags that model_main_tf2 does not know and that look like those it knows.

    Raises:
        ConfigError: it cannot train for want of one of them.
    """
    python = python_command(command)
    if not (python and python.is_od_trainer):
        return
    wrong = od_trainer.mistyped(python.arguments)
    if lacking := od_trainer.missing(python.arguments, wrong):
        raise ConfigError(
            f"the trainer's command has {lacking.typed}, which model_main_tf2 does not know,"
            f" and no --{lacking.name}",
            hint=f"did you mean {lacking.meant}?",
        )
    for one in wrong:
        say(f"{one.typed} is no flag of model_main_tf2, which passes over it: {one.meant}?")


def tell_ahead(
    command: Sequence[str], settings: LaunchSettings, source: CheckpointSource
) -> Unsaved:
    """Tell what of the training will be in vain; returns what there is to say of it at the end.

    Of classes that the model has no place for nothing is learned. The OD API does not save as often
    as it is told, where that is no multiple of 100 steps, and it does not save at the end.
    """
    python = python_command(command)
    if not (python and python.is_od_trainer):
        return Unsaved()
    given = flag_value(command, "pipeline_config_path") or settings.value("pipeline_config")
    pipeline = od_trainer.read_pipeline(Path(given)) if given else ""
    if said := od_trainer.never_detected(pipeline):
        say(said)
    if flag_value(command, "checkpoint_dir"):
        return Unsaved()
    return _foresee_saves(command, od_trainer.num_steps(pipeline), source)


def _foresee_saves(
    command: Sequence[str], num_steps: int | None, source: CheckpointSource
) -> Unsaved:
    every = _number(flag_value(command, "checkpoint_every_n"))
    if every and cadence.rounded(every) != every:
        say(cadence.rounding(every, "the trainer's command"))
    typed = _number(flag_value(command, "num_train_steps"))
    pace = cadence.Pace(
        every or _DEFAULT_EVERY_N,
        "the trainer's command" if every else "the OD API's default",
        typed or num_steps,
        begun=step_reached(source),
        steps_name="--num_train_steps" if typed else "num_steps",
    )
    plan = cadence.plan(pace)
    if plan is None:
        saving = f"the trainer saves every {cadence.rounded(pace.every_n)} steps, not at the end"
        return Unsaved(f"{saving}: pass --checkpoint_every_n, or train for more steps")
    if not plan.remedy or 0 < plan.lost < _MUCH * (plan.ends - plan.begins):
        return Unsaved()
    say(f"{cadence.unsaved(pace, plan)}: {plan.remedy}")
    return Unsaved(plan.remedy, plan.lost if plan.saves else 0)


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
