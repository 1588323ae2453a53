"""What an early stop of `checkpoint-watcher train` waits for, and whom it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from collections.abc import Iterator

import pytest
from fake_trainer import Killed, Manager, model_tensors
from folder_source import source_of
from launching import Launch, leftovers, python
from watching import alive, cli, wait_until

from watcher.launch.early_stop import EarlyStop
from watcher.launch.folder_lock import Heirs
from watcher.launch.group import Group
from watcher.launch.saves import Checkpoints, SaveWatch
from watcher.launch.say import Teller
from watcher.launch.sentinel import Sentinel

pytestmark = pytest.mark.slow


class Elsewhere:
    """A trainer that a wrapper starts in a session of its own."""

    def __init__(self, launch: Launch) -> None:
        self._file = launch.folder / "elsewhere"

    def command(self, trainer: list[str]) -> list[str]:
        """The wrapper's command line."""
        noted = ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self._file), *trainer]
        return ["setsid", "--wait", *noted]

    @property
    def pid(self) -> int:
        """Process id of the trainer itself."""
        return int(self._file.read_text())

    def end(self) -> None:
        """Kill it, if it was ever started and still runs."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(self.pid, signal.SIGKILL)


@pytest.fixture
def launch(tmp_path) -> Iterator[Launch]:
    run = Launch(tmp_path)
    yield run
    run.end()


@pytest.fixture
def elsewhere(launch: Launch) -> Iterator[Elsewhere]:
    trainer = Elsewhere(launch)
    yield trainer
    trainer.end()


# -- whom it ends


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_an_early_stop_ends_a_trainer_in_another_session_than_its_wrapper_between_two_saves(
    launch: Launch, elsewhere: Elsewhere, pause: float
):
    run = launch.identify()
    saving = launch.saving("--saves", 10_000, "--interval", 0.2, "--index-pause", pause)
    launcher = launch.start(trainer=elsewhere.command(saving))
    launch.saved(3)
    launch.say_stop(run)
    assert launcher.wait(timeout=60) == 0
    assert not alive(elsewhere.pid)
    assert leftovers(launch) == []
    assert f"outside of its process group ({elsewhere.pid}) and is ended there" in launch.said()


def test_one_in_another_session_that_ignores_sigterm_is_killed_after_the_grace(
    launch: Launch, elsewhere: Elsewhere
):
    run = launch.identify()
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True)"
    trainer = elsewhere.command(python(f"{deaf}; time.sleep(600)"))
    launcher = launch.start("--stop-grace-seconds", 0.5, trainer=trainer)
    wait_until(lambda: "ready" in launch.out.read_text(), "the trainer is ready")
    launch.say_stop(run)
    assert launcher.wait(timeout=60) == 0
    assert not alive(elsewhere.pid)


def test_before_a_restart_what_a_crashed_wrapper_left_in_another_session_is_ended(
    launch: Launch, elsewhere: Elsewhere
):
    background = elsewhere.command(python("import time; time.sleep(600)"))
    crash = '"$@" & while ! [ -s "$0" ]; do sleep 0.05; done; exit 1'
    wrapper = ["sh", "-c", crash, str(launch.folder / "elsewhere"), *background]
    launcher = launch.start("--restarts", 1, "--restart-seconds", 600, trainer=wrapper)
    wait_until(lambda: "it is started again in" in launch.said(), "it waits for the next start")
    assert not alive(elsewhere.pid)
    launcher.terminate()
    assert launcher.wait(timeout=60) == 128 + signal.SIGTERM


# It holds the lock where nobody looks for it, as one does that we may not look into.
UNSEEN = """
import os, sys, time
from pathlib import Path
from fake_trainer import Manager, model_tensors
here = Path(sys.argv[1])
for number in range(3, 64):
    if os.path.exists(link := f"/proc/self/fd/{number}") and os.path.samefile(link, here):
        os.dup2(number, number + 64)
        os.close(number)
manager = Manager(here)
for step in (100, 200, 300):
    manager.save(step, model_tensors(1000, step))
while not os.path.exists(sys.argv[2]): time.sleep(0.05)
manager.save(400, model_tensors(1000, 400))
"""


def test_a_trainer_that_cannot_be_ended_keeps_its_watcher_until_it_ends_and_that_is_code_1(
    launch: Launch, elsewhere: Elsewhere
):
    goes_on = launch.folder / "go"
    trainer = elsewhere.command(python(UNSEEN, launch.model_dir, goes_on))
    scores = {"ckpt-1": 0.5, "ckpt-2": 0.4, "ckpt-3": 0.3}
    flags = launch.watching("--patience", 2, "--stop-grace-seconds", 1)
    launcher = launch.start(*flags, trainer=trainer, STUB_SCORES=json.dumps(scores))
    wait_until(lambda: "the trainer cannot be ended" in launch.said(), "that is told")
    assert alive(elsewhere.pid)
    assert launcher.poll() is None
    goes_on.touch()
    assert launcher.wait(timeout=60) == 1
    shown = cli("history", launch.model_dir, "--json")
    states = {row["checkpoint"]: row["state"] for row in json.loads(shown.stdout)}
    assert states["ckpt-4"] == "scored"


# -- what it waits for

NAMES_NONE = """
import sys, time
from pathlib import Path
from fake_trainer import model_tensors, write_checkpoint
for number in range(1, 1000):
    write_checkpoint(Path(sys.argv[1]), f"ckpt-{number}", 100 * number, model_tensors(1000, number))
    time.sleep(1)
"""


def test_an_early_stop_is_obeyed_though_no_state_file_names_saves_that_come_often(launch: Launch):
    run = launch.identify()
    launcher = launch.start("--grace-seconds", 600, trainer=python(NAMES_NONE, launch.model_dir))
    launch.saved(1)
    launch.say_stop(run)
    assert launcher.wait(timeout=60) == 0
    said = launch.said()
    assert said.count("the early stop waits for a save in progress: ") == 1
    assert "which the file `checkpoint` does not name yet" in said


def test_what_holds_up_an_early_stop_for_long_is_told(launch: Launch):
    run = launch.identify()
    hang = "import sys, time, pathlib; (pathlib.Path(sys.argv[1]) / 'ckpt-3_temp').mkdir()"
    trainer = python(f"{hang}; time.sleep(600)", launch.model_dir)
    launcher = launch.start("--grace-seconds", 10, trainer=trainer)
    wait_until((launch.model_dir / "ckpt-3_temp").exists, "the save has begun")
    launch.say_stop(run)
    assert launcher.wait(timeout=60) == 0
    assert "the early stop waits for a save in progress: ckpt-3_temp" in launch.said()


# -- how closely it looks


@pytest.fixture
def sleeping() -> Iterator[Group]:
    group = Group(["sleep", "600"])
    yield group
    group.send(signal.SIGKILL)
    group.reap()


@pytest.mark.parametrize("is_far", [False, True])
def test_while_the_next_checkpoint_is_waited_for_it_looks_closely_only_once_a_save_has_begun(
    launch: Launch, sleeping: Group, is_far: bool
):
    run, folder = launch.identify(), launch.model_dir
    manager = Manager(folder)
    manager.save(100, model_tensors(1000, 1))
    checkpoints = Checkpoints(source_of(folder), folder)
    sentinel = Sentinel(launch.sentinel, launch.database.parent, folder / "best")
    saves = SaveWatch(checkpoints, patience_seconds=30)
    stop = EarlyStop(
        *(sentinel, checkpoints, saves, Teller(lambda text: None)),
        at_checkpoint=True,
        is_far=is_far,
        steady=lambda: 0.0,
    )
    heirs = Heirs(None)
    rarely = 1.0 if is_far else 0.5
    assert not stop.is_sent(sleeping, heirs) and stop.look_seconds == 0.5
    launch.say_stop(run)
    assert not stop.is_sent(sleeping, heirs) and stop.look_seconds == rarely
    with pytest.raises(Killed):
        manager.save(200, model_tensors(1000, 2), die_at="temp")
    assert not stop.is_sent(sleeping, heirs) and stop.look_seconds == 0.05
    manager.save(200, model_tensors(1000, 2))
    assert stop.is_sent(sleeping, heirs)


def test_a_sentinel_is_judged_again_only_when_it_changes_or_the_database_is_another(launch: Launch):
    run = launch.identify()
    launch.say_stop(run)
    sentinel = Sentinel(launch.sentinel, launch.database.parent, launch.model_dir / "best")
    assert sentinel.look().kind == "valid"
    with contextlib.closing(sqlite3.connect(launch.database)) as database:
        database.execute("UPDATE runs SET uuid = 'another'")
        database.commit()
    assert sentinel.look().kind == "valid"  # nothing was read
    launch.say_stop(run)
    assert sentinel.look().kind == "stale"
    launch.say_stop("another")
    assert sentinel.look().kind == "valid"
    launch.database.rename(launch.folder / "old.db")
    launch.identify()
    assert sentinel.look().kind == "stale"
    launch.sentinel.unlink()
    assert sentinel.look().kind == "none"
