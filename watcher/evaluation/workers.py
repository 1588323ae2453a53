"""Workers: the supervisors of a run, one a device, made from its settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from watcher.config import Settings
from watcher.config.carrier import LocalSettings
from watcher.config.devices import DeviceTable
from watcher.config.evaluator import ModelGardenSettings
from watcher.config.run import RunSettings
from watcher.errors import ConfigError
from watcher.evaluation.device import Choice, choose
from watcher.evaluation.device_lock import DeviceLock, LockFolders, other_evaluators
from watcher.evaluation.far import FarWorker
from watcher.evaluation.far_device import FarDevice
from watcher.evaluation.gpus import list_gpus_for
from watcher.evaluation.messages import PROTOCOL, Start
from watcher.evaluation.model_garden import ModelGarden
from watcher.evaluation.od_api import ObjectDetection
from watcher.evaluation.peace import MOST_REST, REST, Peace
from watcher.evaluation.session import Limits
from watcher.evaluation.snapshot import Snapshot
from watcher.evaluation.supervise import Supervisor
from watcher.evaluation.worker import Worker, device_environment
from watcher.files.scratch import Scratch
from watcher.protocols import Evaluator

_log = structlog.get_logger(__name__)


def make_supervisors(
    settings: Settings,
    interpreter: str,
    snapshot: Snapshot,
    scratch: Scratch,
    environment: Mapping[str, str] = os.environ,
    device_source: str = "as set",
    trainer_is_near: Callable[[], bool] = lambda: False,
) -> list[Supervisor]:
    """Choose the devices and return a supervisor for each; no worker is started yet.

    Args:
        settings: The run's; of four sections, for here a worker is put together.
        interpreter: Of the training environment, an absolute path.
        snapshot: What every worker of the run reads.
        scratch: Where the workers' temporary folders lie.
        environment: The watcher's own.
        device_source: How the setting `device` came about.
        trainer_is_near: Says whether a trainer runs on this machine.

    Raises:
        ConfigError: a GPU that is named is not there.
    """
    carrier, run, devices = settings.carrier, settings.run, settings.carrier.devices
    choices: list[Choice] = []
    if devices.here:
        listing = list_gpus_for(devices.here)
        choices = choose(
            devices.here,
            listing,
            visible=environment.get("CUDA_VISIBLE_DEVICES"),
            evaluators=other_evaluators(carrier.device_lock_dir, listing),
            source=device_source,
        )
    evaluator = _of_kind(settings, interpreter, snapshot)
    request = _request(settings, evaluator, snapshot, scratch)
    supervisors = []
    for number, choice in enumerate(choices):
        _log.info("device", device=choice.device, reason=choice.reason)
        made = _supervisor(carrier, evaluator, run, choice, number, request, scratch)
        made.peace = _peace(carrier, choice, trainer_is_near)
        supervisors.append(made)
    for number, table in enumerate(devices.there, len(choices)):
        _log.info("device", device=table.name, launcher=" ".join(table.launching))
        far = _far_supervisor(carrier, evaluator, run, table, number, request)
        if carrier.peace == "max":
            far.peace = Peace(lambda: True, MOST_REST)
        supervisors.append(far)
    return supervisors


def _peace(carrier: LocalSettings, choice: Choice, trainer_is_near: Callable[[], bool]) -> Peace:
    """Return whether a worker is to leave the CPU to others."""
    if carrier.peace == "max":
        return Peace(lambda: True, MOST_REST)
    # Who sets a niceness means it; and a GPU that waits for its share of the CPU helps nobody.
    gives_way = carrier.peace == "auto" and carrier.nice is None and not choice.is_gpu
    return Peace(trainer_is_near, REST) if gives_way else Peace()


def far_request(
    settings: Settings, snapshot: Snapshot, table: DeviceTable
) -> tuple[FarDevice, Start]:
    """Return a device of another host as it is reached, and what its worker is asked at the start.

    Raises:
        ConfigError: its launcher or this machine's interpreter is not there.
    """
    interpreter = table.python or settings.carrier.interpreter()
    evaluator = _of_kind(settings, interpreter, snapshot)
    request = _request(settings, evaluator, snapshot, Scratch())
    return _far_device(table, interpreter, settings.run.name), request


def require_launcher(table: DeviceTable) -> None:
    """Raise ConfigError where the launcher of another host's device is not there."""
    launcher = table.launching[0]
    if shutil.which(launcher) is None:
        raise ConfigError(
            f"the launcher of {table.name} ({launcher}) does not exist or cannot be executed",
            hint="launcher in its [[device]] begins with a program of this machine, such as ssh",
        )


def _request(
    settings: Settings, evaluator: Evaluator, snapshot: Snapshot, scratch: Scratch
) -> Start:
    return Start(
        protocol=PROTOCOL,
        kind=evaluator.kind,
        options=evaluator.options,
        threads=settings.evaluator.threads,
        nice=settings.carrier.nice,
        replicates=settings.evaluator.replicates,
        snapshot=snapshot.files(),
        artefacts_dir=scratch.artefacts(),
    )


def _of_kind(settings: Settings, interpreter: str, snapshot: Snapshot) -> Evaluator:
    match settings.evaluator:
        case ModelGardenSettings() as garden:
            return ModelGarden(garden, settings.run.model_path, interpreter, snapshot)
        case od_api:
            return ObjectDetection(od_api, settings.exports, interpreter, snapshot)


def _supervisor(
    carrier: LocalSettings,
    evaluator: Evaluator,
    run: RunSettings,
    choice: Choice,
    number: int,
    request: Start,
    scratch: Scratch,
) -> Supervisor:
    lock = _lock(carrier.device_lock_dir, run.name, choice) if choice.is_gpu else None
    environment = device_environment(choice.device)
    log = _log_of(run, number)
    command, folder = evaluator.command, carrier.working_path
    on_it = {"device": choice.device, "device_shared": choice.shared}
    return Supervisor(
        spawn=lambda: Worker(command, environment, log, lock, scratch, folder),
        start_request=msgspec.structs.replace(request, **on_it),
        limits=_limits(carrier),
        device=choice.label,
        lock=lock,
        log=log,
    )


def _far_supervisor(
    carrier: LocalSettings,
    evaluator: Evaluator,
    run: RunSettings,
    table: DeviceTable,
    number: int,
    request: Start,
) -> Supervisor:
    device = _far_device(table, table.python or evaluator.command[0], run.name)
    log = _log_of(run, number)
    return Supervisor(
        spawn=lambda: FarWorker(device, log),
        start_request=request,
        limits=_limits(carrier),
        device=table.name,
        # Only GPUs are taken in turn.
        lock=device if table.device != "cpu" else None,
        far=True,
        host=device.status,
        log=log,
    )


def _far_device(table: DeviceTable, python: str, run: str) -> FarDevice:
    require_launcher(table)
    return FarDevice(table, python, run)


def _log_of(run: RunSettings, number: int) -> Path:
    # The first has the name that the only one has.
    return run.state_path / (f"worker-{number}.log" if number else "worker.log")


def _limits(carrier: LocalSettings) -> Limits:
    return Limits(
        start_seconds=carrier.start_timeout,
        stall_seconds=carrier.stall_timeout,
        retry_seconds=carrier.retry_seconds,
        memory_bytes=carrier.worker_memory_bytes,
        turn_seconds=carrier.device_turn_seconds,
    )


def _lock(lock_dir: str | None, run: str, choice: Choice) -> DeviceLock | None:
    folders = LockFolders(lock_dir)
    if not folders.usable():
        _log.warning(
            "the device is not locked: there is no folder for it; --device-lock-dir names one",
            device=choice.label,
        )
        return None
    return DeviceLock(folders, choice.device, label=choice.label, run=run)
