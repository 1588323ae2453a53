"""Workers on other hosts: real watchers, and agents behind a real ssh and sshd on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from hosts import MISSING, Sshd, environment_there, far, write_settings
from watching import Watcher, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=str(MISSING))]

QUICK = ["--retry-seconds", 0.2]
Serve = Callable[..., Sshd]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts an sshd whose programs get the environment that is given."""
    started: list[Sshd] = []

    def start(**environment: object) -> Sshd:
        name = f"sshd-{len(started)}"
        started.append(Sshd(tmp_path / name, environment_there(**environment)))
        return started[-1]

    yield start
    for one in started:
        one.end()


def save(watcher: Watcher, count: int) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, count + 1):
        manager.save(100 * number, model_tensors(4000, number))


def scored(watcher: Watcher) -> set[str]:
    return {name for name, state in watcher.states().items() if state == "scored"}


def test_a_worker_on_another_host_evaluates_beside_one_at_home(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    there = tmp_path / "there"
    sshd = serve(STUB_LOG=there, STUB_SECONDS=0.2)
    settings = write_settings(tmp_path / "run.toml", [{"device": "cpu"}, far(sshd, "far-1")])
    save(watcher, 8)
    watcher.start("--config", settings, *QUICK, STUB_SECONDS=0.5)
    wait_until(lambda: len(scored(watcher)) == 8, "all are scored")
    assert watcher.stop() == 0
    both = [*watcher.evaluations(), *there.read_text().split()]
    assert sorted(both) == sorted(f"ckpt-{number}" for number in range(1, 9))
    assert there.read_text() and watcher.evaluations()
