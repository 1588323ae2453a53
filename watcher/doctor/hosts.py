"""Hosts: whether devices of other hosts evaluate, seen by going there and starting a worker."""

from __future__ import annotations

import select
import tempfile
import time
from pathlib import Path

from watcher.config import Settings
from watcher.config.devices import DeviceTable
from watcher.doctor.finding import Finding
from watcher.errors import ConfigError, HostTrouble, WatcherError
from watcher.evaluation import frames, messages
from watcher.evaluation.far import FarWorker
from watcher.evaluation.snapshot import take_snapshot
from watcher.evaluation.workers import far_request

_CHECK = "host"
_THERE = "ssh to it by hand, as the same user, has to reach the agent without a question"


def host(settings: Settings, table: DeviceTable, present: str | None, limit: float) -> Finding:
    """Have a worker get ready on a device of another host, and end it.

    Args:
        settings: The run's.
        table: The device.
        present: The fingerprint that counts in the run, None where there is none.
        limit: Seconds that it may take.
    """
    run = settings.run
    with tempfile.TemporaryDirectory(prefix="checkpoint-watcher-doctor-") as folder:
        try:
            working = settings.carrier.working_path
            snapshot = take_snapshot(settings.evaluator, run.model_path, Path(folder), working)
            device, request = far_request(settings, snapshot, table)
            worker = FarWorker(device, Path(folder, "worker.log"))
        except (ConfigError, HostTrouble) as error:
            return Finding(_CHECK, "error", f"{table.name}: {error.message}", error.hint)
        try:
            worker.send(request)
            return _look(worker, table.name, present, limit)
        finally:
            worker.kill()
            if worker.ending:
                worker.ending.join()  # doctor ends without waiting for any thread


def _look(worker: FarWorker, name: str, present: str | None, limit: float) -> Finding:
    deadline, doing, versions = time.monotonic() + limit, "connecting", ""
    while (left := deadline - time.monotonic()) > 0:
        select.select(worker.filenos(), [], [], left)
        try:
            for message in worker.receive():
                match message:
                    case frames.Waits(reason=str(reason)):
                        return Finding(_CHECK, "note", f"{name} is reached, and {reason}")
                    case messages.Phase(name=phase):
                        doing = phase
                    case messages.Hello():
                        has = message.versions
                        known = [one for one in ("python", "tensorflow") if one in has]
                        versions = ", ".join(f"{one} {has[one]}" for one in known)
                    case messages.Error(message=text):
                        return Finding(_CHECK, "error", f"{name}: {text}", message.hint)
                    case messages.Ready():
                        return _judge(message, name, present, versions)
        except WatcherError as error:
            hint = error.hint or (_THERE if isinstance(error, HostTrouble) else None)
            return Finding(_CHECK, "error", f"{name}: {error.message}", hint)
    said = f"{name}: no worker was ready within {limit:g} s, while {doing}"
    return Finding(_CHECK, "warning", said, "give --time-limit more seconds")


def _judge(ready: messages.Ready, name: str, present: str | None, versions: str) -> Finding:
    if present and ready.fingerprint != present:
        return Finding(
            _CHECK,
            "error",
            f"{name} measures otherwise ({ready.fingerprint[:8]}) than the run does"
            f" ({present[:8]}): its records, label map or packages differ",
            "make them the same as on this machine; a worker there would not be used",
        )
    with_ = f" with {versions}" if versions else ""
    said = f"{name} is reached, and evaluates {ready.images} images on {ready.device}{with_}"
    return Finding(_CHECK, "ok", said)
