"""The app: the daemon from its settings to its end, as `checkpoint-watcher run` starts it.

Apart from the command, whose help and completion are to answer without the daemon's libraries.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import structlog

from watcher.config import Loaded, Settings, shown
from watcher.control.channel import ControlChannel
from watcher.control.copied import refuse_copy
from watcher.control.rebuild import refuse_lost
from watcher.errors import (
    ConfigError,
    StoreError,
    StoreLost,
    WatcherError,
    WorkerRefused,
)
from watcher.evaluation.preflight import refuse_unmeasured
from watcher.evaluation.snapshot import take_snapshot
from watcher.evaluation.workers import make_supervisors
from watcher.files.mounts import mount_now
from watcher.files.scratch import Scratch
from watcher.heartbeat import Heartbeat
from watcher.ingest.intake import Intake
from watcher.launch.processes import at_work, trainers
from watcher.promotion.projection import Projector
from watcher.runtime.inputs import check_inputs
from watcher.runtime.logs import LiveView, configure_logs
from watcher.runtime.loop import Daemon
from watcher.runtime.opening import open_store
from watcher.runtime.output import end_outputs, output_of
from watcher.runtime.sharing import Sharing
from watcher.runtime.waiting import OVER, wait_for_trainer
from watcher.runtime.wakeup import WakeUp
from watcher.service import listen, told_of
from watcher.sources.choice import CheckpointSource, open_source
from watcher.store import PINS_NAME, Store
from watcher.store.lock import hold_lock
from watcher.systemd.notify import Notifier, Service

_log = structlog.get_logger(__name__)


class _Signals:
    """Passes on what asks the process to end, from its start to its end.

    Attributes:
        wakeup: Of the loop, which may begin later.
    """

    def __init__(self, service: Service) -> None:
        self.wakeup = WakeUp()
        self._service = service
        self._ending = [signal.SIGTERM, signal.SIGINT]
        # The terminal is closed; whoever started it with nohup wants it to go on.
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            self._ending.append(signal.SIGHUP)
        for number in self._ending:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, lambda *_: self.wakeup.finish())

    def _stop(self, *_: object) -> None:
        self.wakeup.stop()
        self._service.stopping()

    def ignore(self) -> None:
        """Heed none any more: whoever asks from now on asks for what is being done.

        Python's own end lets signals kill again, and the exit code would tell of that.
        """
        for number in (*self._ending, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)


def run_daemon(
    load: Callable[[], Loaded[Settings]], describe_absent: Callable[[Path], str]
) -> None:
    """Run the daemon until it is stopped, idle, or cannot go on.

    Args:
        load: Returns the settings; called again when the database, which says what the last start
            was given, was locked at first.
        describe_absent: Says of a path that it is not there and is waited for.

    Raises:
        WatcherError: it cannot begin, or cannot go on; the message says why.
    """
    service = Service(Notifier.from_environment(os.environ))
    signals = _Signals(service)

    errors = output_of(sys.stderr)

    def say_waiting(path: Path) -> None:
        errors.write(f"{describe_absent(path)}\n")

    with ExitStack() as stack:
        stack.callback(end_outputs)
        stack.enter_context(service)
        state: object = None
        while state is not OVER:
            state = _run(load(), service, signals, state, say_waiting)


def _run(
    loaded: Loaded[Settings],
    service: Service,
    signals: _Signals,
    params: object,
    say_waiting: Callable[[Path], None],
) -> object:
    """Run to the end; returns something else when all that counts can be loaded only now.

    Args:
        loaded: The settings.
        service: Is told what is waited for.
        signals: What asks to end.
        params: What it returned before: of which params.yaml the settings are.
        say_waiting: See `run_daemon`.
    """
    settings, wakeup = _in_time_for(service, loaded.settings), signals.wakeup
    check_inputs(settings.evaluator, settings.carrier)
    sharing = Sharing(settings.run.group, settings.run.state_path, settings.run.best_path)
    with ExitStack() as stack:
        run, endpoints = settings.run, None
        if (
            not run.place and not run.model_path.is_dir()
        ):  # a run that waits for it is asked how it is, too
            endpoints = listen(settings, stack)
        present = wait_for_trainer(settings, params, wakeup, service, say_waiting)
        # What it says counts, and the settings are loaded again; or it is over.
        if present != params:
            return present
        source = open_source(settings.source, run.origin, run.evaluator)
        source.require(may_be_empty=settings.source.wait_for_model_dir)
        inherited = "working_directory" in loaded.inherited
        settings = at_work(settings, trainers(), inherited=inherited)
        _refuse_state_elsewhere(run.state_path, of_bucket=run.place is not None)
        _make_state_folder(run.state_path)
        stack.enter_context(hold_lock(run.state_path / "lock"))
        refuse_lost(run.state_path, run.best_path, source.format)
        refuse_copy(settings)
        # After the lock: another watcher of this MODEL_DIR has the port as well.
        endpoints = endpoints or listen(settings, stack)
        stack.enter_context(sharing).begin()
        live = _wants_live(settings.service.log_format)
        configure_logs(settings.service.log_format, run.state_path, live=live)
        store = _open(settings, source, stack, signals, service)
        if store is None or loaded.unread:
            return OVER if store is None else params
        stack.push(partial(_record_end, store))
        _warn_of_mount(run.state_path)
        _tell_last_start(loaded)
        refuse_unmeasured(settings, store.ledger, store.ledger.settings())
        view = stack.enter_context(LiveView(run.state_path, live))
        service.watch(run.state_path)
        told = told_of(settings, stack, endpoints)
        # Each is called after every turn of the loop, and must return at once. The view comes last:
        # where the database cannot be read it raises.
        audience = [*told, service.turned, lambda _: sharing.keep(), lambda _: view.refresh()]
        scratch = stack.enter_context(Scratch())
        daemon = _build(settings, loaded, store, source, scratch, wakeup, audience)
        stack.callback(signals.ignore)
        daemon.run()
    return OVER


def _open(
    settings: Settings,
    source: CheckpointSource,
    stack: ExitStack,
    signals: _Signals,
    service: Service,
) -> Store | None:
    """Open the database until `stack` is closed, and pin meanwhile; None for a signal first."""
    run, grace = settings.run, settings.source.patience(remote=bool(settings.run.place))
    pins_dir = run.state_path / PINS_NAME
    with contextlib.closing(Intake(source, pins_dir, None, grace_seconds=grace)) as intake:
        opened = open_store(
            run, intake, signals.wakeup, grace_seconds=grace, waiting=service.waiting
        )
    return opened and stack.enter_context(opened)


def _tell_last_start(loaded: Loaded[Settings]) -> None:
    here = {"working_directory": str(Path.cwd())}  # no news where it is the same
    told = [
        f"{name} {shown(value)}"
        for name, value in sorted(loaded.inherited.items())
        if here.get(name) != value
    ]
    if told:
        _log.info("as at the last start", settings=", ".join(told))
    if loaded.forgotten:
        _log.warning(
            "given at the last start and not now; not remembered, since passwords may be in it",
            settings=", ".join(loaded.forgotten),
        )


def _record_end(store: Store, _: object, error: BaseException | None, __: object) -> None:
    """Say in the database that the run ended and why, so that it is not taken for a kill."""
    if not isinstance(error, Exception) or isinstance(error, StoreLost):
        return  # in peace, or with a database in which nobody would find it
    reason = error.message if isinstance(error, WatcherError) else f"{error!r}"
    with contextlib.suppress(StoreError):
        lasting = isinstance(error, ConfigError | WorkerRefused)
        store.ledger.record_end(reason, time.time(), refused=os.getpid() if lasting else None)


def _in_time_for(service: Service, settings: Settings) -> Settings:
    """Make the loop turn as often as its watchdog asks for, and show where it hung if it does."""
    if service.turn_seconds == math.inf:
        return settings
    faulthandler.enable()  # the watchdog's signal is SIGABRT
    rescan = min(settings.source.rescan_seconds, service.turn_seconds)
    return settings.replaced(rescan_seconds=rescan)


def _make_state_folder(state_dir: Path) -> None:
    for folder in (state_dir, state_dir / PINS_NAME):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot create {folder}: {error.strerror}",
                hint="the watcher must be able to write there, or set --state-dir",
            ) from error
    if not os.access(state_dir, os.W_OK | os.X_OK):
        raise StoreError(
            f"cannot write into {state_dir}",
            hint="the watcher must be able to write there, or set --state-dir",
        )


def _refuse_state_elsewhere(state_dir: Path, *, of_bucket: bool) -> None:
    """Raise ConfigError where SQLite would lose what it writes, or pins be uploaded again."""
    mount = mount_now(state_dir)
    if mount and (mount.is_bucket or (mount.is_remote and of_bucket)):
        raise ConfigError(
            f"state_dir ({state_dir}) is on {mount.kind}, not on a disk of this machine",
            hint="give --state-dir a folder on a local disk",
        )


def _warn_of_mount(state_dir: Path) -> None:
    """Say that the database is where several machines may reach it."""
    mount = mount_now(state_dir)
    if mount and mount.is_remote:
        _log.warning(
            f"the database is on {mount.kind}: no watcher on another machine may use it, readers"
            " and the watcher wait for each other; --state-dir puts it on a local disk"
        )


def _wants_live(log_format: str) -> bool:
    return sys.stdout.isatty() if log_format == "auto" else log_format == "live"


def _build(
    settings: Settings,
    loaded: Loaded[Settings],
    store: Store,
    source: CheckpointSource,
    scratch: Scratch,
    wakeup: WakeUp,
    audience: Sequence[Callable[[Heartbeat], None]],
) -> Daemon:
    run, carrier = settings.run, settings.carrier
    snapshot = take_snapshot(
        settings.evaluator, run.model_path, run.state_path, carrier.working_path
    )
    supervisors = make_supervisors(
        settings,
        carrier.interpreter(),
        snapshot,
        scratch,
        device_source=loaded.source("device"),
        trainer_is_near=lambda: bool(trainers()),
    )
    projector = Projector(settings, store, source, run.name)
    intake = Intake(
        source,
        run.state_path / PINS_NAME,
        store.queue,
        grace_seconds=settings.source.patience(remote=bool(run.place)),
        policy=settings.retention.waiting_policy,
        retain_policy=settings.retention.policy,
        verified=projector.verified,
    )

    def show(heartbeat: Heartbeat) -> None:
        for look in audience:
            look(heartbeat)

    return Daemon(
        settings,
        store,
        intake,
        projector,
        supervisors,
        snapshot=snapshot,
        channel=ControlChannel(run.state_path),
        given={"working_directory": "where it was started", **loaded.given},
        on_step=show,
        wakeup=wakeup,
    )
