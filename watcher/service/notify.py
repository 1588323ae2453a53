"""Notify: tells others of a new best, an early stop, what is degraded and what failed.

The loop only shows each of its turns. Channels, a thread each, compare how the run stands with what
they were told; `notified.json` in the state folder keeps that over a restart.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog

from watcher import __version__
from watcher.config.run import RunSettings
from watcher.config.service import ServiceSettings
from watcher.errors import ConfigError, StoreError
from watcher.files.atomic_io import replace_file
from watcher.heartbeat import Heartbeat
from watcher.service.channel import Channel, Deliver
from watcher.service.notices import Notice, Situation, Told, best_key, ended
from watcher.service.program import run_program
from watcher.store.database_file import DATABASE_NAME
from watcher.store.facts import FactReader

FILE_NAME = "notified.json"
CLOSE_SECONDS = 4.0

_log = structlog.get_logger(__name__)

_SENDER = [sys.executable, "-P", str(Path(__file__).with_name("deliver.py"))]
_NOT_INSTALLED, _NO_ADDRESS = 2, 3
_CHECK_SECONDS = 60.0
_TYPES = {
    "best": "success",
    "stop": "info",
    "degraded": "warning",
    "recovered": "success",
    "failed": "failure",
}
# These may pass by themselves, and are told only when they last.
_PASSING = ("store", "problem", "tensorboard")
_LASTING_SECONDS = 10.0
_WAKE_SECONDS = 10.0


class Notifications:
    """All channels of a run; a context manager. Entered without any, it does nothing."""

    def __init__(
        self,
        run: RunSettings,
        service: ServiceSettings,
        *,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the channels from the settings and what they were told from the state folder.

        Raises:
            ConfigError: a program does not exist, an address is none, or apprise is missing.
            StoreError: the database cannot be read.
        """
        self._steady = steady
        self._confirmed = service.notify_confirmed
        self._run = run.name
        self._model_dir = str(run.model_path)
        self._database = run.state_path / DATABASE_NAME
        self._file = run.state_path / FILE_NAME
        self._lock = threading.Lock()
        self._heartbeat: Heartbeat | None = None
        self._since: dict[str, float] = {}
        self._key: object = None
        self._woken = 0.0
        self._run_uuid = ""
        self._all_told: dict[str, Told] = {}
        self._channels: list[Channel] = []
        ways = _ways(service, run.name, self._payload)
        if ways:
            self._begin(ways)

    def _begin(self, ways: Sequence[tuple[str, str, Deliver]]) -> None:
        with FactReader(self._database) as reader:
            run, best, event = reader.run(), reader.best(), reader.last_event()
        self._run_uuid = run["uuid"]
        # A channel that is new is told what comes from now on, not all there ever was.
        fresh = Told(best=best_key(best), event=event)
        before = self._read()
        for name, key, deliver in ways:
            told = before.get(key, fresh)
            if told.event > event:  # the database was made anew
                told = msgspec.structs.replace(told, event=event)
            self._all_told[key] = told
            self._channels.append(Channel(name, key, deliver, told, self._look, self._keep))
        for key, told in self._all_told.items():
            self._keep(key, told)

    def show(self, heartbeat: Heartbeat) -> None:
        """Take one turn of the loop; returns at once."""
        if not self._channels:
            return
        steady, degraded = self._steady(), heartbeat.degraded
        self._since = {what: self._since.get(what, steady) for what in degraded}
        self._heartbeat = heartbeat
        seen = ("worker", "checkpoint", "stop", "watch", "pins", "problem", "tensorboard")
        key = ([heartbeat.status.get(name) for name in seen], sorted(degraded))
        if key != self._key or steady - self._woken > _WAKE_SECONDS:
            self._key, self._woken = key, steady
            for channel in self._channels:
                channel.wake()

    def counts(self) -> Mapping[tuple[str, str], int]:
        """Return how many there were: (channel, outcome) to number."""
        found: Counter[tuple[str, str]] = Counter()
        for channel in self._channels:
            found.update({(channel.name, what): n for what, n in channel.counts.items()})
        return found

    def __enter__(self) -> Self:
        for channel in self._channels:
            channel.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        last = ended(error) if isinstance(error, Exception) else None
        for channel in self._channels:
            channel.close(last)
        deadline = time.monotonic() + CLOSE_SECONDS
        for channel in self._channels:
            channel.join(max(deadline - time.monotonic(), 0.0))
        late = [channel for channel in self._channels if channel.is_alive()]
        for channel in late:
            channel.give_up()
        for channel in late:
            channel.join(1.0)
            _log.warning("a notice was not delivered before the end", channel=channel.name)

    # -- what channels ask for, in their own threads

    def _look(self, told: Told) -> Situation:
        heartbeat = self._heartbeat
        status: Mapping[str, Any] = heartbeat.status if heartbeat else {}
        stop = status.get("stop")
        steady = self._steady()
        degraded = {
            what: why
            for what, why in (heartbeat.degraded if heartbeat else {}).items()
            if what not in _PASSING
            or steady - self._since.get(what, steady) >= _LASTING_SECONDS
            or what in told.degraded
        }
        # What keeps best/ from being written may keep the decision from being made.
        decided = bool(status) and (stop is not None or not status.get("problem"))
        try:
            with FactReader(self._database) as reader:
                event = reader.last_event()
                failures, best = reader.failures(told.event, event), reader.best()
                recovered = reader.recovered() if "device" in told.degraded else None
                sure = not self._confirmed or self._is_better(reader, best, told)
        except StoreError:
            return Situation(readable=False, stop=stop, decided=decided, degraded=degraded)
        return Situation(best, failures, event, True, stop, decided, degraded, recovered, sure)

    def _is_better(self, reader: FactReader, best: dict[str, Any] | None, told: Told) -> bool:
        """Tell whether a best is better than that which was told, beyond the eval set's noise."""
        before, _, metric = (told.best or "").partition(" ")
        if best is None or before in ("", best["sha256"]) or metric != best["metric"]:
            return True
        return reader.surely_better(best["sha256"], before)

    def _keep(self, key: str, told: Told) -> None:
        with self._lock:
            self._all_told[key] = told
            content = {"schema": 1, "run": self._run_uuid, "told": self._all_told}
            try:
                replace_file(self._file, msgspec.json.encode(content) + b"\n")
            except OSError as error:
                _log.debug("cannot keep what was told", reason=str(error))

    def _read(self) -> dict[str, Told]:
        """Return what was told to which channel of this run before."""
        try:
            content = msgspec.json.decode(self._file.read_bytes())
            if content["run"] != self._run_uuid:
                return {}
            return msgspec.convert(content["told"], dict[str, Told])
        except (OSError, msgspec.MsgspecError, KeyError, TypeError):
            return {}

    def _payload(self, notice: Notice) -> bytes:
        """Return what a command reads, as docs/how-to/notifications.md describes it."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said = {
            "schema": 1,
            "event": notice.event,
            "title": notice.title,
            "message": notice.message,
            "run": self._run,
            "run_uuid": self._run_uuid,
            "model_dir": self._model_dir,
            "at": now,
            "version": __version__,
        }
        return msgspec.json.encode({**said, **notice.details}) + b"\n"


def _ways(
    service: ServiceSettings, run: str, payload: Callable[[Notice], bytes]
) -> list[tuple[str, str, Deliver]]:
    """Return each channel's name, key and what delivers."""
    ways: list[tuple[str, str, Deliver]] = []
    seconds = service.notify_seconds
    if service.notify_command:
        command = list(service.notify_command)
        _check_program(command[0])
        ways.append(("command", _digest(command), _by_command(command, seconds, payload)))
    if service.notify:
        _check_addresses(service.notify)
    for url in dict.fromkeys(service.notify):
        ways.append(("apprise", _digest([url]), _by_apprise(url, seconds, run)))
    return ways


def _check_program(program: str) -> None:
    if shutil.which(program) is not None:
        return
    if os.sep in program and Path(program).is_file():
        raise ConfigError(
            f"notify_command ({program}) may not be executed",
            hint=f"`{shlex.join(['chmod', '+x', program])}` makes it a program",
        )
    wrong = "does not exist or is a folder" if os.sep in program else "is not in PATH"
    raise ConfigError(
        f"notify_command ({program}) {wrong}",
        hint="it is a program and its arguments, not a line for a shell",
    )


def _by_command(command: list[str], seconds: float, payload: Callable[[Notice], bytes]) -> Deliver:
    return lambda notice, given_up: run_program(command, payload(notice), seconds, given_up)


def _by_apprise(url: str, seconds: float, run: str) -> Deliver:
    def deliver(notice: Notice, given_up: Callable[[], bool]) -> str | None:
        said = {
            "urls": [url],  # not an argument: it may hold a password, and `ps` shows those
            "title": f"{run}: {notice.title}",
            "body": notice.message,
            "type": _TYPES[notice.event],
        }
        return run_program(_SENDER, msgspec.json.encode(said), seconds, given_up)

    return deliver


def _check_addresses(urls: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            _SENDER,
            input=msgspec.json.encode({"urls": urls}),
            capture_output=True,
            timeout=_CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return  # a busy machine; what is wrong shows when the first notice is sent
    if done.returncode == _NOT_INSTALLED:
        raise ConfigError(
            "notify needs apprise, which is not installed where the watcher runs",
            hint="pip install 'checkpoint-watcher[notify]'",
        )
    if done.returncode == _NO_ADDRESS:
        number = int(done.stderr.split()[-1])
        scheme = urls[number - 1].partition(":")[0][:20]
        raise ConfigError(
            f"notify: address {number} ({scheme}:...) is none that apprise knows",
            hint="see the apprise documentation for the form of each service's address",
        )


def _digest(parts: Sequence[str]) -> str:
    """Return a name for a channel that does not show what it is made of, passwords for example."""
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]
