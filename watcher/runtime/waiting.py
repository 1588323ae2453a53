"""Waiting: for MODEL_DIR and for what a trainer that has just started writes into it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from watcher.config import Settings
from watcher.config.evaluator import InputFile, ModelGardenSettings, is_file
from watcher.config.source import SourceSettings
from watcher.errors import ConfigError, ModelDirError
from watcher.launch.processes import is_yet_to_write, trainer_on, trainers
from watcher.runtime.inputs import refuse_before_waiting
from watcher.runtime.wakeup import WakeUp
from watcher.systemd.notify import Service

# TensorFlow and Model Garden are imported by then.
_OWN_PARAMS_SECONDS = 180.0
# What is being written is written by then.
_SETTLED_SECONDS = 0.2
OVER = object()


def wait_for_trainer(
    settings: Settings,
    params: object,
    wakeup: WakeUp,
    service: Service,
    say_waiting: Callable[[Path], None],
) -> object:
    """Wait for MODEL_DIR and, of Model Garden, for the configuration that the trainer writes.

    Args:
        settings: Those of the run.
        params: Of which params.yaml they are.
        wakeup: Says when a signal came.
        service: Is told what is waited for.
        say_waiting: Is called once with each path that is not there and is waited for.

    Returns:
        Of which params.yaml the settings are to be, None where there is none to be had; `OVER`
        when a signal came first. Another than `params` is returned once it is settled.

    Raises:
        ModelDirError: MODEL_DIR is not there, and not to be waited for.
        ConfigError: what else the run needs is not there.
    """
    run, evaluator = settings.run, settings.evaluator
    if not run.place:
        _require_parent(run.model_path, settings.source)
        if not run.model_path.is_dir():
            refuse_before_waiting(run, evaluator, settings.carrier)
            say_waiting(run.model_path)
        if not _wait_for_model_dir(run.model_path, wakeup, service):
            return OVER
    if not isinstance(evaluator, ModelGardenSettings):
        return None
    if not _wait_for_params(settings, evaluator, wakeup, service, say_waiting):
        return OVER
    present = _state(evaluator.inputs(run.model_path))
    if present != params:
        time.sleep(_SETTLED_SECONDS)
    return present


def _require_parent(folder: Path, source: SourceSettings) -> None:
    """Raise ModelDirError for a MODEL_DIR that is neither there nor to be waited for."""
    if folder.exists() and not folder.is_dir():
        raise ModelDirError(f"model_dir {folder} is not a folder", hint="give a folder")
    if not folder.exists() and not (source.wait_for_model_dir and folder.parent.is_dir()):
        raise ModelDirError(
            f"model_dir {folder} does not exist",
            hint="start the trainer first, or wait for it with --wait-for-model-dir"
            if folder.parent.is_dir()
            else f"{folder.parent} does not exist either; is the path right?",
        )


def _wait_for_model_dir(folder: Path, wakeup: WakeUp, service: Service) -> bool:
    """Return True once model_dir is there, False when a signal came first."""
    while not folder.is_dir() and not (wakeup.stop_asked or wakeup.finish_asked):
        service.waiting(f"waiting for {folder}")
        time.sleep(0.2)
    return folder.is_dir() and not wakeup.stop_asked


def _wait_for_params(
    settings: Settings,
    garden: ModelGardenSettings,
    wakeup: WakeUp,
    service: Service,
    say_waiting: Callable[[Path], None],
) -> bool:
    """Return True once the experiment's configuration is there, False when a signal came first.

    That of a trainer which has just started is waited for, be there one of the job before. Not for
    ever: clocks may differ, and a trainer of one's own may write none.
    """
    run = settings.run
    needed = [one for one in garden.inputs(run.model_path) if one.required]
    lacking = next((one for one in needed if not is_file(one.path)), None)
    if lacking and (garden.config_file or not settings.source.wait_for_model_dir):
        raise ConfigError(
            f"{lacking.setting} ({lacking.path}) does not exist or is not a file",
            hint="the trainer writes params.yaml into MODEL_DIR when it starts: start it first,"
            " wait for it with --wait-for-model-dir, or give its --config-file",
        )
    if lacking:
        refuse_before_waiting(run, settings.evaluator, settings.carrier)
        say_waiting(Path(lacking.path))
    path, deadline = Path(needed[0].path), time.monotonic() + _OWN_PARAMS_SECONDS
    while not is_file(str(path)) or (
        not garden.config_file
        and time.monotonic() < deadline
        and is_yet_to_write(path, trainer_on(run.model_path, trainers()))
    ):
        if wakeup.stop_asked or wakeup.finish_asked:
            break
        service.waiting(f"waiting for the trainer to write {path}")
        time.sleep(0.2)
    return is_file(str(path)) and not wakeup.stop_asked


def _state(files: Sequence[InputFile]) -> object:
    """Return what differs once one of the files was written anew."""
    found = []
    for one in files:
        with contextlib.suppress(OSError):
            status = Path(one.path).stat()
            found.append((one.path, status.st_mtime_ns, status.st_size, status.st_ino))
    return found
