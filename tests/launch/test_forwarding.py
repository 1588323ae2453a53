"""Which signals of the launcher go on to the trainer, and which it has got by itself."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Launch, children, kill_group, python, trainer_of
from watching import alive, wait_until

from watcher.launch.forwarding import Forwarding

pytestmark = pytest.mark.slow

# Ends by SIGUSR2, and by no other signal.
COUNTS = """
import signal, sys
def told(number, _): print(signal.Signals(number).name, flush=True)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): signal.signal(number, told)
def leave(*_): print("end", flush=True); sys.exit(5)
signal.signal(signal.SIGUSR2, leave)
print("ready", flush=True)
while True: signal.pause()
"""


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    run = Launch(tmp_path)
    yield run
    run.end()


def printed(launch: Launch) -> list[str]:
    return launch.out.read_text().split()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_trainer_gets_a_signal_once_where_each_process_is_signalled(
    launch: Launch, number: signal.Signals
):
    launcher = launch.start(trainer=python(COUNTS))
    wait_until(lambda: "ready" in printed(launch), "the trainer is ready")
    launcher.send_signal(signal.SIGSTOP)  # so that a pause between two of them counts for nothing
    for pid in (launcher.pid, *children(launcher.pid)):
        os.kill(pid, number)
    launcher.send_signal(signal.SIGCONT)
    wait_until(lambda: number.name in printed(launch), "the trainer has got it")
    launcher.send_signal(signal.SIGUSR2)  # which goes on after what came before it
    assert launcher.wait(timeout=60) == 5
    assert printed(launch) == ["ready", number.name, "end"]


def test_a_signal_that_only_the_launcher_gets_goes_on_each_time(launch: Launch):
    launcher = launch.start(trainer=python(COUNTS))
    wait_until(lambda: "ready" in printed(launch), "the trainer is ready")
    for count in (1, 2):
        launcher.terminate()
        wait_until(lambda n=count: printed(launch).count("SIGTERM") == n, f"it has got {count}")
    launcher.send_signal(signal.SIGUSR2)
    assert launcher.wait(timeout=60) == 5


def test_a_lookout_ends_with_its_launcher_also_with_a_killed_one(launch: Launch):
    launcher = launch.start(
        trainer=python("print('ready', flush=True); import time; time.sleep(600)")
    )
    wait_until(lambda: "ready" in printed(launch), "the trainer is ready")
    trainer = trainer_of(launcher.pid)
    (lookout,) = set(children(launcher.pid)) - {trainer}
    try:
        launcher.kill()
        launcher.wait()
        wait_until(lambda: not alive(lookout), "the lookout has ended")
    finally:
        kill_group(trainer)
    wait_until(lambda: not alive(trainer), "the trainer is gone, and its lock")
    launcher = launch.start(trainer=python(COUNTS))
    wait_until(lambda: "ready" in printed(launch), "the trainer is ready")
    (lookout,) = set(children(launcher.pid)) - {trainer_of(launcher.pid)}
    launcher.send_signal(signal.SIGUSR2)
    assert launcher.wait(timeout=60) == 5
    assert not alive(lookout)


# -- by the clock


@pytest.fixture
def forwarding() -> Iterator[Forwarding]:
    with Forwarding(contextlib.nullcontext) as kept:
        yield kept


def fell(forwarding: Forwarding, number: signal.Signals) -> None:
    lookout = forwarding.lookout
    assert lookout is not None
    os.kill(lookout, number)
    wait_until(lambda: not alive(lookout), "the lookout has fallen")


def test_a_signal_goes_on_half_a_second_later_unless_the_lookout_gets_it_too(
    forwarding: Forwarding,
):
    forwarding.take(signal.SIGTERM, 10.0)
    assert forwarding.due(10.4) == [] and forwarding.seconds_left(10.4) == pytest.approx(0.1)
    assert forwarding.due(10.5) == [signal.SIGTERM, signal.SIGCONT]
    forwarding.take(signal.SIGTERM, 20.0)
    fell(forwarding, signal.SIGTERM)
    assert forwarding.due(20.3) == [signal.SIGCONT]
    assert forwarding.due(99.0) == []


def test_a_launcher_that_comes_late_to_look_still_sees_who_has_got_it(forwarding: Forwarding):
    forwarding.take(signal.SIGTERM, 10.0)
    fell(forwarding, signal.SIGTERM)
    assert forwarding.due(17.0) == [signal.SIGCONT]


def test_a_lookout_that_fell_long_ago_or_of_another_signal_holds_nothing_back(
    forwarding: Forwarding,
):
    first = forwarding.lookout
    fell(forwarding, signal.SIGUSR1)
    assert forwarding.due(10.0) == [] and forwarding.lookout != first
    forwarding.take(signal.SIGTERM, 10.1)
    forwarding.take(signal.SIGUSR1, 20.0)
    assert forwarding.due(20.0) == [signal.SIGTERM, signal.SIGCONT]
    assert forwarding.due(20.5) == [signal.SIGUSR1]


def test_a_terminals_new_size_goes_on_at_once(forwarding: Forwarding):
    forwarding.take(signal.SIGWINCH, 10.0)
    assert forwarding.due(10.0) == [signal.SIGWINCH]


def test_under_slurm_it_is_two_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with Forwarding(contextlib.nullcontext) as forwarding:
        forwarding.take(signal.SIGTERM, 10.0)
        assert forwarding.due(11.9) == []
        assert forwarding.due(12.0) == [signal.SIGTERM, signal.SIGCONT]


def test_what_one_trainer_has_not_got_is_not_sent_to_the_next(forwarding: Forwarding):
    forwarding.take(signal.SIGUSR1, 10.0)
    forwarding.forget()
    assert forwarding.due(99.0) == []
