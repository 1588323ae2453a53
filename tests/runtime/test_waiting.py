"""Whatever the daemon waits for, it sleeps meanwhile: it runs beside a trainer.

A daemon for each state, all at the same time; the kernel says what each took of a core. A state is
brought about by a generator, which yields what to wait for before it goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from textwrap import dedent

import pytest
from fake_trainer import Manager, model_tensors
from faults import fork_daemon
from forks import Fork
from launching import children
from locks import locked
from two_gpus import FAKE
from watching import Watcher, wait_until

from watcher.evaluation.device_lock import DeviceLock, LockFolders

pytestmark = pytest.mark.slow

MEASURED_SECONDS = 2.5
MOST_OF_A_CORE = 0.05

Steps = Iterator[Callable[[], object]]


class Run(Watcher):
    """A run with a checkpoint, all of its own outside MODEL_DIR; its daemon is forked."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__(folder)
        self.folder = folder
        self.database = folder / "state" / "watcher.db"
        self.stack = ExitStack()
        self.trainer = Manager(self.model_dir, max_to_keep=None)
        self.save()

    def save(self) -> Path:
        number = self.trainer.save_counter + 1
        return self.trainer.save(100 * number, model_tensors(4000, number))

    def save_a_half(self) -> None:
        """Leave a checkpoint whose index is not finished."""
        index = self.save().with_suffix(".index")
        index.write_bytes(index.read_bytes()[:40])

    def begin(self, *flags: object, **environment: object) -> None:
        places = {"--state-dir": "state", "--best-dir": "best", "--kept-dir": "kept"}
        places |= {"--sentinel": "STOP", "--eval-dir": "eval"}
        own = [part for flag, name in places.items() for part in (flag, self.folder / name)]
        quick = {"CHECKPOINT_WATCHER_TENSORBOARD": "false", "STUB_LOG": self.evaluated}
        command = self.command(*own, "--retry-seconds", 0.2, *flags)[2:]
        self.daemon: Fork = fork_daemon(command, self.log, {**quick, **environment})
        self.stack.callback(self.daemon.wait)
        self.stack.callback(self.daemon.kill)

    def worker(self, *doing: str) -> bool:
        return self.status().get("worker") in doing

    def scored(self) -> bool:
        return self.states().get("ckpt-1") == "scored"

    def says(self, text: str) -> bool:
        return text in (self.status().get("problem") or "")

    def reads(self, text: str) -> bool:
        return text in self.log.read_text()

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.daemon.pid}/stat").read_text().rsplit(")", 1)[1].split()
        assert fields[0] != "Z", self.log.read_text()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- the states


def idle(run: Run) -> Steps:
    run.begin()
    yield run.scored


def idle_until_it_ends(run: Run) -> Steps:
    run.begin("--exit-when-idle", 300)
    yield run.scored


def waiting_for_model_dir(run: Run) -> Steps:
    shutil.rmtree(run.model_dir)
    run.begin("--wait-for-model-dir")
    yield run.log.exists


def starting_a_worker(run: Run) -> Steps:
    run.begin(STUB_MUTE=1)
    yield lambda: run.worker("starting")


def evaluating(run: Run) -> Steps:
    run.begin("--exit-when-idle", 0.1, STUB_SECONDS=600)
    yield lambda: run.worker("evaluating")


def finishing(run: Run) -> Steps:
    run.begin(STUB_SECONDS=600)
    yield lambda: run.worker("evaluating")
    run.daemon.kill(signal.SIGUSR1)


def metrics_while_another_is_due_again(run: Run) -> Steps:
    """What broke a worker is not given out beside another evaluation."""
    run.save()
    run.begin("--max-attempts", 99, STUB_CRASH="ckpt-1", STUB_METRICS_SECONDS=600)
    yield lambda: run.states() == {"ckpt-1": "pending", "ckpt-2": "leased"}


def a_worker_that_waits_to_restart(run: Run) -> Steps:
    dead = run.folder / "dead"
    run.begin("--retry-seconds", 60, STUB_DIE_IF=dead, STUB_HANG="ckpt-1")
    yield lambda: "ckpt-1" in run.evaluations()
    dead.touch()
    os.kill(children(run.daemon.pid)[0], signal.SIGKILL)
    yield lambda: run.worker("waiting to restart")


def waiting_for_a_device(run: Run) -> Steps:
    gpus, locks = run.folder / "gpus.json", run.folder / "locks"
    gpus.write_text('[{"uuid": "GPU-a0"}]')
    locks.mkdir()
    other = DeviceLock(LockFolders(str(locks)), "GPU-a0", label="", run="other")
    run.stack.enter_context(other.take())
    fake = {"PYTHONPATH": FAKE, "FAKE_NVML": gpus}
    run.begin("--device", "gpu:0", "--device-lock-dir", locks, **fake)
    yield lambda: run.worker("waiting for the device")


def a_database_that_is_locked(run: Run) -> Steps:
    run.begin()
    yield run.scored
    run.stack.enter_context(locked(run.database))
    run.save()
    yield lambda: run.reads("database is locked")


def a_database_that_is_locked_at_the_start(run: Run) -> Steps:
    run.begin()
    yield run.scored
    run.daemon.kill()
    run.daemon.wait()
    run.stack.pop_all()
    run.stack.enter_context(locked(run.database))
    run.begin()
    yield lambda: run.reads("waiting for the database")


def no_model_dir(run: Run) -> Steps:
    run.begin()
    yield run.scored
    run.model_dir.rename(run.folder / "gone")
    yield lambda: run.says("cannot list model_dir")


def no_model_dir_and_an_unfinished_checkpoint(run: Run) -> Steps:
    run.save_a_half()
    run.begin()
    yield run.scored
    run.model_dir.rename(run.folder / "gone")
    yield lambda: run.says("cannot list model_dir")


def an_unfinished_checkpoint(run: Run) -> Steps:
    run.save_a_half()
    run.begin("--grace-seconds", 300)
    yield run.scored


def a_pin_that_cannot_be_made(run: Run) -> Steps:
    run.begin("--exit-when-idle", 60, "--grace-seconds", 300)
    yield run.scored
    pins = run.database.parent / "pins"
    while not pins.is_file():  # the daemon may make the folder again in between
        with contextlib.suppress(OSError):
            shutil.rmtree(pins)
            pins.write_bytes(b"a file where the folder was")
    run.save()
    yield lambda: run.says("cannot pin ckpt-2")


def a_best_folder_that_cannot_be_made(run: Run) -> Steps:
    (run.folder / "file").touch()
    run.begin("--best-dir", run.folder / "file" / "best")
    yield lambda: run.scored() and run.says("file/best")


def a_writer_of_event_files_that_hangs(run: Run) -> Steps:
    mark, library = run.folder / "imported", run.folder / "library"
    library.mkdir()
    hang = """
        import os, pathlib, time
        parent = os.getppid()
        pathlib.Path({!r}).touch()
        while os.getppid() == parent:  # it ends with the daemon, which the test kills
            time.sleep(0.2)
    """
    (library / "tensorboardX.py").write_text(dedent(hang).format(str(mark)))
    run.begin(PYTHONPATH=library, CHECKPOINT_WATCHER_TENSORBOARD="true")
    yield mark.exists


STATES = (
    idle,
    idle_until_it_ends,
    waiting_for_model_dir,
    starting_a_worker,
    evaluating,
    finishing,
    metrics_while_another_is_due_again,
    a_worker_that_waits_to_restart,
    waiting_for_a_device,
    a_database_that_is_locked,
    a_database_that_is_locked_at_the_start,
    no_model_dir,
    no_model_dir_and_an_unfinished_checkpoint,
    an_unfinished_checkpoint,
    a_pin_that_cannot_be_made,
    a_best_folder_that_cannot_be_made,
    a_writer_of_event_files_that_hangs,
)


@pytest.fixture(scope="module")
def share_of_a_core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, float]]:
    """What the daemon takes in each state, all of them measured at once."""
    folder = tmp_path_factory.mktemp("waiting")
    with ExitStack() as ending:
        runs = {state.__name__: Run(folder / state.__name__) for state in STATES}
        for run in runs.values():
            ending.callback(run.stack.close)
        steps = {state.__name__: state(runs[state.__name__]) for state in STATES}
        awaited = {name: next(step) for name, step in steps.items()}

        def all_there() -> bool:
            for name, condition in list(awaited.items()):
                if condition():
                    awaited.pop(name)
                    awaited.update((name, more) for more in [*islice(steps[name], 1)])
            return not awaited

        try:
            wait_until(all_there, "all are in their state", 100)
        except AssertionError:
            pytest.fail(f"not in its state: {', '.join(awaited)}")
        time.sleep(1.0)  # what led there is done, unless the machine is slow: then it is by and by
        for _ in range(10):
            shares = measured(runs)
            if all(share < MOST_OF_A_CORE for share in shares.values()):
                break
        yield shares


def measured(runs: dict[str, Run]) -> dict[str, float]:
    """What each takes of a core, for a while."""
    began = time.monotonic()
    before = {name: run.cpu_seconds() for name, run in runs.items()}
    time.sleep(MEASURED_SECONDS)
    taken = {name: run.cpu_seconds() - before[name] for name, run in runs.items()}
    seconds = time.monotonic() - began
    return {name: round(cpu / seconds, 3) for name, cpu in taken.items()}


def test_a_problem_that_lasts_is_told_in_the_log_once(tmp_path: Path):
    run = Run(tmp_path / "run")
    with run.stack:
        state = a_pin_that_cannot_be_made(run)
        for condition in state:
            wait_until(condition, "the pin cannot be made")
        said = "cannot be done now, trying again"
        wait_until(lambda: run.reads(said), "the log says so")
        pins = run.database.parent / "pins"
        pins.unlink()
        wait_until(lambda: run.reads("found, pinned and promoted again"), "and that it is over")
        assert run.log.read_text().count(said) == 1
        assert "reason='cannot pin ckpt-2: Not a directory'" in run.log.read_text()


@pytest.mark.parametrize("state", [state.__name__ for state in STATES])
def test_the_daemon_sleeps_while_it_waits(share_of_a_core: dict[str, float], state: str):
    assert share_of_a_core[state] < MOST_OF_A_CORE
