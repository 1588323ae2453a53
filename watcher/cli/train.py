"""`checkpoint-watcher train`: the trainer, stopped when it is time, and the watcher beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

from watcher.cli.completing import files
from watcher.cli.meant import refuse_run_folder
from watcher.cli.options import config_option, only_given_option, options_of
from watcher.cli.settings_help import SettingsCommand
from watcher.cli.sources import Sources, sources
from watcher.config import LaunchSettings, Settings, launch_doubts, names
from watcher.config.bucket import is_url
from watcher.config.evaluator import MODEL_GARDEN
from watcher.errors import ConfigError
from watcher.launch.command import flag_value, python_command, visible_devices
from watcher.launch.kinds import evaluated_by, trainer_among, trainer_of
from watcher.launch.say import SayLater, say

# The launcher ends the watcher itself, and makes model_dir.
_NOT_OURS = ("exit_when_idle", "wait_for_model_dir")
# What COMMAND of a Model Garden job tells of its configuration.
_TOLD = ("experiment", "config_file", "params_override", "garden_import")
# What the launcher uses of the watcher's settings; the others need a watcher.
_SHARED = {"model_dir", "state_dir", "best_dir", "sentinel", "grace_seconds"}
# What a sentinel in a bucket is read with.
_SHARED |= {"endpoint_url", "region", "anonymous", "poll_seconds"}


@click.command(
    cls=SettingsCommand,
    options_metavar="[OPTIONS] --",
    context_settings={"allow_interspersed_args": False},
)
@config_option(
    "Settings from a TOML file, which `run` can share; its keys are these flags with underscores."
)
@only_given_option
@options_of(LaunchSettings, without=_NOT_OURS)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=files)
def train(
    command: tuple[str, ...], settings_file: Path | None, only_given: bool, **flags: Any
) -> None:
    """Run the trainer's COMMAND, unmodified, and end it when EARLY_STOP says so.

    \b
    checkpoint-watcher train --watch --patience 5 -- \\
        python -m object_detection.model_main_tf2 \\
        --model_dir MODEL_DIR --pipeline_config_path PIPELINE.config

    On an early stop the save in progress is waited for, then the trainer's process group gets
    SIGTERM, and SIGKILL after --stop-grace-seconds. A sentinel of another run means nothing. With
    --watch, the watcher runs beside it with the same settings as `run`, and finishes its queue
    after the trainer ended. Where they are not set, MODEL_DIR, --pipeline-config and --python are
    read from COMMAND, of a Model Garden job --experiment, --config-file and --params-override too,
    and the watcher's other settings are as at its last start. Signals are passed
    on; output and input are the trainer's own.

    Exit codes: the trainer's, 128+N when signal N ended it, 0 after an early stop, also one of
    before. 1 as well when the watcher could not finish its queue, or for an error that the message
    explains; 3 when a trainer is already at work in MODEL_DIR.
    """
    from watcher.cli.trainer_command import refuse_mistyped, refuse_shells_words, tell_ahead
    from watcher.launch.modules import refuse_other_interpreter
    from watcher.sources.choice import open_source

    refuse_shells_words(command)
    refuse_mistyped(command)
    given = sources(flags, settings_file, only_given=only_given, defaults=_defaults(command))
    refuse_run_folder(*given.folders())
    settings = given.load(LaunchSettings).settings
    if settings.run.place:
        raise ConfigError(
            f"model_dir ({settings.run.model_dir}) is not a folder of this machine",
            hint="mount it, or give --model-dir a folder here, for locks and logs; --sentinel may"
            " be the URL of what `run --publish` of a watcher elsewhere writes",
        )
    _mention_other_folders(settings, command)
    source = open_source(settings.source, settings.run.origin, settings.run.evaluator)
    unsaved = tell_ahead(command, settings, source)
    for doubt in launch_doubts(settings):
        say(f"{doubt.message}: {doubt.hint}")
    refuse_other_interpreter(command, os.environ)
    watcher_command = None
    if settings.trainer.watch:
        watcher_command = _watcher_command(settings, command, given)
    else:
        _refuse_idle_settings(flags)
    with _sentinel_here(settings) as settings:
        sys.exit(_launch(settings, command, source, watcher_command, unsaved))


def _launch(
    settings: LaunchSettings,
    command: Sequence[str],
    source: Any,
    watcher_command: Sequence[str] | None,
    unsaved: Any,
) -> int:
    """Run the trainer to its end, and return the exit code."""
    from watcher.launch.launcher import Launcher

    launcher = partial(
        Launcher, settings, command, source, watcher_command=watcher_command, unsaved=unsaved
    )
    if not _has_live_view(settings):
        return launcher(say=say).run()
    later = SayLater(Path(settings.trainer.trainer_log or os.devnull))
    try:
        return launcher(say=later).run()
    finally:
        later.show()


@contextmanager
def _sentinel_here(settings: LaunchSettings) -> Iterator[LaunchSettings]:
    """Keep a sentinel that is an object of a bucket as a file of our own, which is obeyed."""
    url = settings.run.sentinel
    if not is_url(url):
        yield settings
        return
    if settings.trainer.watch:
        raise ConfigError(
            f"sentinel ({url}) is of a watcher elsewhere, and --watch starts one here",
            hint="leave out one of them",
        )
    from watcher.sources.mirror import Mirror

    path = settings.run.state_path / "EARLY_STOP.remote"
    with Mirror(str(url), settings.source, path, say):
        yield settings.replaced(sentinel=str(path))


def _has_live_view(settings: LaunchSettings) -> bool:
    """Return whether the watcher draws on the terminal, which a trainer's output would spoil."""
    if not (settings.trainer.watch and settings.trainer.trainer_log):
        return False
    return settings.service.log_format == "live" or (
        settings.service.log_format == "auto" and os.isatty(1)
    )


def _defaults(command: Sequence[str]) -> dict[str, Any]:
    from watcher.launch.modules import found_interpreter

    # Also behind programs that we do not know, or of a name that is none of a trainer's.
    kind, arguments = trainer_among(command) or (evaluated_by("od-api"), tuple(command))
    python = found_interpreter(command, os.environ)
    return {**kind.settings(arguments), **({"python": python} if python else {})}


def _mention_other_folders(settings: LaunchSettings, command: Sequence[str]) -> None:
    """Other folders than the trainer's are right in front of a container, and else a slip."""
    theirs = flag_value(command, "model_dir")
    if theirs and Path(theirs).absolute() != settings.run.model_path:
        say(f"model_dir is set to {settings.run.model_dir}, and the trainer's is {theirs}")
    python = python_command(command)
    if theirs is None and trainer_of(command)[0]:
        say(f"model_dir is set to {settings.run.model_dir}, and COMMAND has no --model_dir")

    given = settings.carrier.working_directory
    if given and python and Path(given).resolve() != Path.cwd().resolve():
        say(f"working_directory is set to {given}, and the trainer is started in {Path.cwd()}")


def _refuse_idle_settings(flags: Mapping[str, Any]) -> None:
    for name, value in flags.items():
        if value is not None and name in names(Settings) and name not in _SHARED:
            raise ConfigError(
                f"--{name.replace('_', '-')} is a setting of the watcher, and none is started",
                hint="add --watch, or give it to the `checkpoint-watcher run` that you started",
            )


def _watcher_command(settings: LaunchSettings, command: Sequence[str], given: Sources) -> list[str]:
    """Check what can be checked before there is a trainer, and return the watcher's command."""
    from watcher.evaluation.device_lock import other_evaluators
    from watcher.evaluation.gpus import list_gpus_for
    from watcher.launch.gpus import evaluation_device

    told = _evaluation(settings)
    settings.carrier.interpreter()
    wanted = settings.carrier.device_here
    listing = list_gpus_for(wanted)
    device = evaluation_device(
        wanted,
        visible_devices(command, os.environ),
        os.environ.get("CUDA_DEVICE_ORDER"),
        listing.gpus,
        other_evaluators(settings.carrier.device_lock_dir, listing),
    )
    if device.device != wanted:
        say(f"the watcher evaluates on {device.device}: {device.reason}")
    known: dict[str, Any] = {
        **told,
        "python": settings.carrier.python,
        "working_directory": settings.carrier.working_directory or str(Path.cwd()),
    }
    if device.device != wanted:
        there = [table.name for table in settings.carrier.devices.there]
        known["device"] = ",".join([device.device, *there])
    if settings.service.log_format == "auto" and not settings.trainer.trainer_log:
        known["log_format"] = "human"  # a live view and a trainer do not share a terminal
    # -P: a `watcher` in the folder we are started in is not this program.
    words = [sys.executable, "-P", "-m", "watcher", "run", str(settings.run.model_path)]
    if given.file:
        words += ["--config", str(given.file)]
    if given.only_given:
        words.append("--only-given")
    ours = [name for name in given.flags if name in names(Settings)]
    flags = {name: given.flags[name] for name in ours}
    return words + _as_flags({**flags, **known, "model_dir": None})


def _evaluation(settings: LaunchSettings) -> dict[str, Any]:
    """Return the settings that say what is evaluated, most of which COMMAND tells.

    Raises:
        ConfigError: a file that is needed is not there.
    """
    path = settings.value("pipeline_config")
    if settings.run.evaluator != MODEL_GARDEN:
        if not Path(path).is_file():
            wrong = f"({path}) does not exist or is not a file" if path else "is not set"
            raise ConfigError(
                f"pipeline_config {wrong}",
                hint="give --pipeline-config, or --pipeline_config_path in the trainer's command",
            )
        return {"pipeline_config": path}
    lacking = [one for one in settings.value("config_file") if not Path(one).is_file()]
    if lacking:
        raise ConfigError(
            f"config_file ({lacking[0]}) does not exist or is not a file",
            hint="give --config-file, or --config_file in the trainer's command",
        )
    # The trainer writes params.yaml some time after its start.
    told = {"evaluator": MODEL_GARDEN, "wait_for_model_dir": True}
    return {**told, **{name: settings.value(name) for name in _TOLD}}


def _as_flags(values: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            words += [f"--{flag}={item}" for item in value]
        elif value is not None:
            words.append(f"--{flag}={value}")
    return words
