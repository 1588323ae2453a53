"""Examine: all checks of a run, in two rounds; the second needs what the first found."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from watcher.config import Settings
from watcher.config.policies import boards
from watcher.doctor import cadence, device, folders, service, space, state, training
from watcher.doctor.event_files import event_files
from watcher.doctor.finding import Finding
from watcher.doctor.fitting import to_check
from watcher.doctor.limits import Check, look_at
from watcher.doctor.settings import doubtful
from watcher.errors import ConfigError, CorruptCheckpoint, ModelDirError, StoreError
from watcher.evaluation.device import choose
from watcher.evaluation.gpus import list_gpus
from watcher.launch.processes import Trainer, at_work, trainer_on, trainers
from watcher.sources.local import LocalFolder
from watcher.types import FoundCheckpoint

CHECK_SECONDS = 10.0
# Two calls of nvidia-smi, which takes its time where the driver is not kept loaded.
_DEVICE_SECONDS = 45.0
_DEFAULT_EVERY_N = 1000
_READ_CHECKPOINTS = 20


def examine(
    settings: Settings,
    time_limit: float,
    tell: Callable[[str], None] = lambda text: None,
    device_source: str = "as set",
) -> list[Finding]:
    """Look at everything around a run, and return what was found.

    Writes nothing but two empty files that it removes again, in the run's own `pins/` if there is
    one. Returns after both time limits at the latest.

    Args:
        settings: The run's.
        time_limit: Seconds for the training environment's answer; other checks have ten.
        tell: Called now and then with how far that is.
        device_source: How the setting `device` came about.
    """
    running: list[Trainer] = []
    first = look_at(
        [
            Check("settings", lambda: doubtful(settings), CHECK_SECONDS),
            Check("trainer", lambda: _find(running), CHECK_SECONDS),
        ]
    )
    first += folders.working_directory(settings, running)
    settings = at_work(settings, running)
    answer = training.Answer()

    def ask() -> list[Finding]:
        nonlocal answer
        where, check = _device(settings, running), to_check(settings)
        answer = training.ask(settings, where, time_limit, tell, check)
        return [*training.environment(answer.facts), *answer.findings]

    mounts = Path("/proc/self/mountinfo")
    first += look_at(
        [
            # It keeps its own time, and needs a little more to end what it started.
            Check("environment", ask, time_limit + _DEVICE_SECONDS + 10),
            Check("model_dir", lambda: folders.model_dir(settings, running), CHECK_SECONDS),
            Check(
                "file system",
                lambda: folders.file_system(settings, mounts.read_text()),
                CHECK_SECONDS,
            ),
            Check("database", lambda: state.database(settings.run.state_path), CHECK_SECONDS),
            Check("metric", lambda: state.metric(settings), CHECK_SECONDS),
            Check("promoted", lambda: state.promoted(settings), CHECK_SECONDS),
            Check(
                "device",
                lambda: device.device(settings, list_gpus(), running, source=device_source),
                _DEVICE_SECONDS,
            ),
            Check("tensorboard", lambda: event_files(settings), CHECK_SECONDS),
            Check("systemd", lambda: service.units(settings), CHECK_SECONDS),
        ]
    )
    facts = answer.facts
    return first + look_at(
        [
            Check("coco backend", lambda: training.coco_backend(facts), CHECK_SECONDS),
            Check("pace", lambda: _pace(settings, running, facts.get("num_steps")), CHECK_SECONDS),
            Check("disk space", lambda: _room(settings, facts.get("num_steps")), CHECK_SECONDS),
        ]
    )


def _find(running: list[Trainer]) -> list[Finding]:
    running += trainers()
    return []


def _device(settings: Settings, running: Sequence[Trainer]) -> str:
    """Return the device that the training environment is asked about."""
    if settings.carrier.device == "cpu":
        return "cpu"
    listing = list_gpus()
    try:
        taken = device.trainers_gpus(running, listing)
        return choose(settings.carrier.device, listing, taken=taken)[0].device
    except ConfigError:  # the check of the device tells it
        return "cpu"


def _recorded(settings: Settings) -> state.RunState:
    try:
        return state.load(settings.run.state_path) or state.RunState({})
    except StoreError:  # the check of the database tells it
        return state.RunState({})


def _pace(settings: Settings, running: Sequence[Trainer], steps: int | None) -> list[Finding]:
    known = pace(settings, running, steps)
    return [*cadence.saving(known), *cadence.keeping_up(known)]


def pace(settings: Settings, running: Sequence[Trainer], steps: int | None) -> cadence.Pace:
    """Return how fast checkpoints come and are dealt with, as far as that is known.

    Args:
        settings: The run's.
        running: The trainers that are seen.
        steps: Of the whole training, as pipeline.config says; None when unknown.
    """
    recorded = _recorded(settings)
    found = _found(settings)
    trainer = trainer_on(settings.run.model_path, running)
    typed = trainer and trainer.num_train_steps
    if trainer:
        every_n, source = trainer.checkpoint_every_n, f"trainer {trainer.pid}"
        steps = typed or steps
    elif recorded.steps:
        every_n, source = recorded.steps, "as the recorded checkpoints lie"
    elif there := _steps_between(found):
        every_n, source = there, "as the checkpoints in MODEL_DIR lie"
    else:
        every_n, source = _DEFAULT_EVERY_N, "the OD API's default"
    return cadence.Pace(
        every_n,
        source,
        steps or None,
        cadence.save_seconds(found),
        recorded.eval_seconds,
        workers=settings.carrier.device.count(",") + 1,
        queue_policy=settings.retention.queue_policy,
        # A trainer that is at work here has written the times itself.
        doubt=cadence.doubt(found, every_n, None if trainer else recorded.found_seconds),
        steps_name="--num_train_steps" if typed else "num_steps",
    )


def _found(settings: Settings) -> list[FoundCheckpoint]:
    try:
        return LocalFolder(settings.run.model_path).scan()
    except ModelDirError:  # the check of the folder tells it
        return []


def _steps_between(found: Sequence[FoundCheckpoint]) -> int | None:
    """Read the last checkpoints' steps, and return how far they lie apart."""
    steps = {}
    ordered = sorted(found, key=lambda checkpoint: checkpoint.save_counter)
    for checkpoint in ordered[-_READ_CHECKPOINTS:]:
        # One that is broken, unfinished or gone by now is told when it is evaluated.
        with contextlib.suppress(OSError, CorruptCheckpoint):
            source = LocalFolder(checkpoint.prefix.parent)
            steps[checkpoint.save_counter] = source.format.global_step(checkpoint.prefix) or 0
    return cadence.step_between(steps)


def _room(settings: Settings, steps: int | None) -> list[Finding]:
    recorded = _recorded(settings)
    found = _found(settings)
    sizes = [sum(part[1] for part in checkpoint.signature) for checkpoint in found]
    places = [board.policy.top_k for board in boards(settings)]
    more = settings.retention.keep_last or 0
    every = cadence.rounded(recorded.steps or _steps_between(found) or _DEFAULT_EVERY_N)
    endless = any(place < 0 for place in places) or settings.retention.keep_every_steps
    demand = space.Demand(
        checkpoint_bytes=max(sizes, default=None),
        kept=None if endless else sum(places) + more,
        held=recorded.promoted,
        waiting=recorded.waiting,
        max_waiting_bytes=settings.retention.waiting_policy.max_bytes,
        present=len(found),
        expected=steps // every if steps else None,
    )
    return space.room(demand, shutil.disk_usage(folders.present(settings.run.state_path)).free)
