"""Examine: all checks of a run, in two rounds; the second needs what the first found."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from watcher.config import Settings
from watcher.config.carrier import LocalSettings
from watcher.config.garden_params import params_file
from watcher.config.policies import boards
from watcher.doctor import cadence, device, folders, hosts, noise, service, space, state, training
from watcher.doctor.event_files import event_files
from watcher.doctor.finding import Finding
from watcher.doctor.fitting import to_check
from watcher.doctor.limits import Check, look_at
from watcher.doctor.settings import doubtful
from watcher.errors import ConfigError, CorruptCheckpoint, ModelDirError, StoreError
from watcher.evaluation.device import choose
from watcher.evaluation.gpus import list_gpus
from watcher.launch.kinds import evaluated_by
from watcher.launch.processes import Trainer, at_work, trainer_on, trainers
from watcher.launch.trainer_kind import Schedule
from watcher.sources.choice import CheckpointSource, open_source
from watcher.types import FoundCheckpoint

# Two calls of nvidia-smi, which takes its time where the driver is not kept loaded.
_DEVICE_SECONDS = 45.0
_READ_CHECKPOINTS = 20
_MOUNTS = Path("/proc/self/mountinfo")


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
    found = look_at(
        [
            Check("settings", lambda: doubtful(settings)),
            Check("trainer", lambda: _find(running)),
        ]
    )
    found += folders.working_directory(settings.run, settings.carrier, running)
    if trainer := trainer_on(settings.run.model_path, running):
        said = trainer.kind.remarks(trainer.arguments)
        found += [Finding("trainer", "note", f"trainer {trainer.pid}: {one}") for one in said]
    settings = at_work(settings, running)
    source = open_source(settings.source, settings.run.origin, settings.run.evaluator)
    answer = training.Answer()

    def ask() -> list[Finding]:
        nonlocal answer
        check = to_check(settings.run, settings.evaluator, source)
        where = _device(settings.carrier, running)
        answer = training.ask(
            settings.run, settings.evaluator, settings.carrier, where, time_limit, tell, check
        )
        known = training.environment(answer.facts, settings.run.evaluator)
        found = [*known, *answer.findings]
        # Whether a file is there can be told without an environment that works.
        if not any(one.check == "pipeline" for one in found):
            found += training.lacking(settings.run, settings.evaluator, settings.carrier)
        return found

    # It keeps its own time, and needs a little more to end what it started.
    asking = Check("environment", ask, time_limit + _DEVICE_SECONDS + 10)
    around = _surroundings(settings, source, running, device_source)
    found += look_at([asking, *_hosts(settings, time_limit), *around])
    return found + look_at(_outlook(settings, source, running, answer.facts))


def _surroundings(
    settings: Settings, source: CheckpointSource, running: Sequence[Trainer], device_source: str
) -> list[Check]:
    """Return the checks beside the training environment's, which ask nothing of it."""
    run, devices = settings.run, settings.carrier.devices
    here = Check(
        "device",
        lambda: device.device(str(devices.here), list_gpus(), running, source=device_source),
        _DEVICE_SECONDS,
    )
    return [
        *_places(settings, source, running),
        Check("database", partial(state.database, run.state_path)),
        Check("metric", partial(state.metric, settings)),
        Check("promoted", partial(state.promoted, run.state_path)),
        *([here] if devices.here else []),
        Check("tensorboard", partial(event_files, settings.exports, run.eval_path)),
        Check("systemd", partial(service.units, run.model_path)),
    ]


def _hosts(settings: Settings, time_limit: float) -> list[Check]:
    """Return a check for each device of another host, which goes there."""
    there = settings.carrier.devices.there
    present = _recorded(settings.run.state_path).fingerprint if there else None
    return [
        Check(
            "host",
            lambda table=table: [hosts.host(settings, table, present, time_limit)],  # type: ignore[misc]
            time_limit + 10,
        )
        for table in there
    ]


def _places(
    settings: Settings, source: CheckpointSource, running: Sequence[Trainer]
) -> list[Check]:
    """Return the checks of where checkpoints come from, and where they go."""
    run, found = settings.run, settings.source
    place = settings.exports.published_to
    if place or run.place:
        # With its library, which no run on a folder needs.
        from watcher.doctor import bucket
    published = [Check("publish", lambda: bucket.publishing(place, found))] if place else []
    if run.place:
        return [
            Check("model_dir", lambda: bucket.model_dir(source, found)),
            Check("state folder", lambda: folders.local_state(run, _MOUNTS.read_text())),
            *published,
        ]
    return [
        Check("model_dir", partial(folders.model_dir, run, found, running)),
        Check("file system", lambda: folders.file_system(run, source, _MOUNTS.read_text())),
        *published,
    ]


def _outlook(
    settings: Settings,
    source: CheckpointSource,
    running: Sequence[Trainer],
    facts: Mapping[str, Any],
) -> list[Check]:
    """Return the checks that need what the training environment answered."""
    return [
        Check("coco backend", partial(training.coco_backend, facts)),
        Check("noise", partial(noise.noise, settings, facts)),
        Check("pace", partial(_pace, settings, running, facts)),
        Check("disk space", partial(_room, settings, running, source, facts)),
    ]


def _find(running: list[Trainer]) -> list[Finding]:
    running += trainers()
    return []


def _device(carrier: LocalSettings, running: Sequence[Trainer]) -> str:
    """Return the device that the training environment is asked about."""
    if carrier.device_here == "cpu":
        return "cpu"
    listing = list_gpus()
    try:
        taken = device.trainers_gpus(running, listing)
        return choose(carrier.device_here, listing, taken=taken)[0].device
    except ConfigError:  # the check of the device tells it
        return "cpu"


def _recorded(state_dir: Path) -> state.RunState:
    try:
        return state.load(state_dir) or state.RunState({})
    except StoreError:  # the check of the database tells it
        return state.RunState({})


def _pace(
    settings: Settings, running: Sequence[Trainer], facts: Mapping[str, Any]
) -> list[Finding]:
    known = pace(settings, running, facts)
    return [*cadence.saving(known), *cadence.keeping_up(known)]


def pace(settings: Settings, running: Sequence[Trainer], facts: Mapping[str, Any]) -> cadence.Pace:
    """Return how fast checkpoints come and are dealt with, as far as that is known.

    Args:
        settings: The run's.
        running: The trainers that are seen.
        facts: What the training environment said of the configuration.
    """
    recorded = _recorded(settings.run.state_path)
    source = open_source(settings.source, settings.run.origin, settings.run.evaluator)
    found = _found(source)
    trainer = trainer_on(settings.run.model_path, running)
    schedule = _schedule(settings, trainer, facts)
    if trainer and schedule.every is not None:
        schedule = replace(schedule, source=f"trainer {trainer.pid}")
    elif not schedule.is_set and recorded.steps:
        origin = "as the recorded checkpoints lie"
        schedule = replace(schedule, every=recorded.steps, source=origin)
    elif not schedule.is_set and (there := _steps_between(found, source)):
        origin = "as the checkpoints in MODEL_DIR lie"
        schedule = replace(schedule, every=there, source=origin)
    return cadence.Pace(
        schedule,
        cadence.save_seconds(found),
        recorded.eval_seconds,
        workers=settings.carrier.device.count(",") + 1,
        queue_policy=settings.retention.queue_policy,
        # A trainer that is at work here has written the times itself.
        doubt=cadence.doubt(found, schedule.interval, None if trainer else recorded.found_seconds),
        faster=evaluated_by(settings.run.evaluator).faster,
    )


def _schedule(settings: Settings, trainer: Trainer | None, facts: Mapping[str, Any]) -> Schedule:
    """Return when the run's trainer saves, as far as its command and configuration tell."""
    kind = trainer.kind if trainer else evaluated_by(settings.run.evaluator)
    if settings.run.evaluator == "model-garden":
        configuration = params_file(settings.run.model_path)
    else:
        configuration = settings.carrier.working_path / settings.value("pipeline_config")
    arguments = trainer.arguments if trainer else ()
    folder = trainer.path(".") if trainer else settings.carrier.working_path
    return kind.schedule(arguments, configuration, folder, facts)


def _found(source: CheckpointSource) -> list[FoundCheckpoint]:
    """Return what is there, each with the number of its save, as far as names tell that."""
    try:
        found = source.scan()
    except ModelDirError:  # the check of the folder tells it
        return []
    if source.format.counts_saves:
        return found
    return [replace(one, save_counter=place) for place, one in enumerate(found, start=1)]


def _steps_between(found: Sequence[FoundCheckpoint], source: CheckpointSource) -> int | None:
    """Read the last checkpoints' steps, and return how far they lie apart."""
    steps = {}
    for checkpoint in found[-_READ_CHECKPOINTS:]:
        # One that is broken, unfinished or gone by now is told when it is evaluated.
        with contextlib.suppress(OSError, CorruptCheckpoint):
            steps[checkpoint.save_counter] = source.format.global_step(checkpoint.prefix) or 0
    return cadence.step_between(steps)


def _room(
    settings: Settings,
    running: Sequence[Trainer],
    source: CheckpointSource,
    facts: Mapping[str, Any],
) -> list[Finding]:
    recorded = _recorded(settings.run.state_path)
    found = _found(source)
    sizes = [sum(part[1] for part in checkpoint.signature) for checkpoint in found]
    places = [board.policy.top_k for board in boards(settings.run, settings.ranking)]
    more = settings.retention.keep_last or 0
    known = pace(settings, running, facts)
    plan = cadence.plan(known)
    endless = any(place < 0 for place in places) or settings.retention.keep_every_steps
    demand = space.Demand(
        checkpoint_bytes=max(sizes, default=None),
        kept=None if endless else sum(places) + more,
        held=recorded.promoted,
        waiting=recorded.waiting,
        max_waiting_bytes=settings.retention.waiting_policy.max_bytes,
        present=len(found),
        expected=plan.saves if plan else None,
        trainer_keeps=known.schedule.keeps,
    )
    return space.room(demand, shutil.disk_usage(folders.present(settings.run.state_path)).free)
