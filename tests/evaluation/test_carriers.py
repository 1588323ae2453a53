"""A run whose workers come by every way there is at once, while all that carries them is killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask_cluster
import hosts
import pytest
import slurm
from hosts import AGENT, Sshd, environment_there, far, parents, processes, write_settings
from two_gpus import GPUS, save, scored
from watching import Watcher, alive, wait_until

MISSING = {"ssh": hosts.MISSING, "dask": dask_cluster.MISSING, "slurm": slurm.MISSING}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(all(MISSING.values()), reason=str(MISSING)),
    pytest.mark.timeout(600),
]

EVALUATIONS = 200
SECONDS = 0.4
FAULTS = 60
SEED = 4


class Carriers:
    """This machine, an sshd, a dask cluster and a Slurm, each of which starts one worker.

    Those that cannot be had here are left out.

    Attributes:
        starts: Where every worker writes its process id.
        evaluated: Where those of each carrier but this machine write what they evaluate.
        tables: The devices.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.starts, self._folder = folder / "starts", folder
        self.evaluated: dict[str, Path] = {}
        self.tables: list[dict[str, Any]] = [{"device": "cpu"}]
        self._dask: list[subprocess.Popen[bytes]] = []
        for name, add in (("ssh", self._ssh), ("dask", self._cluster), ("slurm", self._batch)):
            if MISSING[name] is None:
                self.evaluated[name] = folder / f"evaluated-{name}"
                steer = {"STUB_STARTS": self.starts, "STUB_SECONDS": SECONDS}
                self.tables.append(add(stack, STUB_LOG=self.evaluated[name], **steer))

    def _ssh(self, stack: contextlib.ExitStack, **there: object) -> dict[str, Any]:
        sshd = Sshd(self._folder / "sshd", environment_there(**there))
        stack.callback(sshd.end)
        return far(sshd, "ssh-1")

    def _cluster(self, stack: contextlib.ExitStack, **there: object) -> dict[str, Any]:
        (self._folder / "cluster").mkdir()
        self.cluster = dask_cluster.Cluster(self._folder / "cluster", None, **there)
        stack.callback(self.cluster.end)
        self._dask = [self.cluster.scheduler, self.cluster.work()]
        return self.cluster.table("dask-1", AGENT)

    def _batch(self, stack: contextlib.ExitStack, **there: object) -> dict[str, Any]:
        (self._folder / "gpus.json").write_text(json.dumps(GPUS))
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-")))
        node = slurm.Slurm(short / "s", len(GPUS))
        stack.callback(node.end)
        fake = self._folder / "gpus.json"
        return node.table("slurm-1", self._folder, FAKE_NVML=fake, **there)

    def restart(self) -> None:
        """Start what a service manager would start again: dask's worker, and its scheduler."""
        if any(one.poll() is not None for one in self._dask):
            scheduler, worker = self._dask
            if scheduler.poll() is not None:
                scheduler = self.cluster.schedule()
            _go_on(scheduler.pid)  # one that is stopped takes no worker
            if worker.poll() is not None:
                worker = self.cluster.work()
            self._dask = [scheduler, worker]

    def victims(self, daemon: int) -> list[int]:
        """Return whatever may be killed: workers, what carries them there, and launchers here."""
        found = processes("ssh", "-F", str(self._folder), "watcher")
        found += processes("srun", "--gres", str(self.starts))
        if self._dask:
            found += processes("watcher.dask_bridge", self.cluster.address)
            found += [one.pid for one in self._dask]
        for worker in map(int, self.starts.read_text().split()):
            if alive(worker):
                above = parents(worker)
                # Of one at home the daemon is the parent, which is not what this is about.
                found += [worker] if above[:1] == [daemon] else [worker, *above[:2]]
        return [pid for pid in dict.fromkeys(found) if alive(pid)]


@pytest.fixture
def carriers(tmp_path: Path) -> Iterator[Carriers]:
    with contextlib.ExitStack() as stack:
        yield Carriers(tmp_path, stack)


def test_200_evaluations_by_4_carriers_with_faults_at_random_are_recorded_once_each(
    watcher: Watcher, carriers: Carriers, tmp_path: Path
):
    save(watcher, range(1, EVALUATIONS + 1))
    settings = write_settings(tmp_path / "run.toml", carriers.tables)
    flags = ["--config", settings, "--retry-seconds", 0.2, "--max-attempts", 50]
    # So that home leaves something to the others.
    steer = {"STUB_STARTS": carriers.starts, "STUB_SECONDS": 5 * SECONDS}
    daemon = watcher.start(*flags, **steer)
    logs = carriers.evaluated.values()
    wait_until(lambda: all(log.exists() for log in logs), "all of them evaluate", 120)
    _disturb(lambda: carriers.victims(daemon.pid), carriers.restart, lambda: len(scored(watcher)))
    carriers.restart()
    wait_until(lambda: len(scored(watcher)) == EVALUATIONS, "all are scored", 300)
    sql = "SELECT count(*) AS n, count(DISTINCT checkpoint_id) AS of FROM evaluations"
    assert watcher.query(sql) == [{"n": EVALUATIONS, "of": EVALUATIONS}]
    assert watcher.evaluations()
    assert watcher.query("SELECT * FROM checkpoints WHERE state != 'scored'") == []
    daemon.terminate()
    assert daemon.wait(60) == 0
    assert "Traceback" not in watcher.log.read_text()


def _disturb(
    victims: Callable[[], list[int]], restart: Callable[[], None], done: Callable[[], int]
) -> None:
    """Kill or stop something about each second, until enough was, or nearly all is evaluated."""
    drawn = random.Random(SEED)
    stopped: dict[int, float] = {}
    for _ in range(FAULTS):
        if done() > EVALUATIONS - 20:
            break
        victim = drawn.choice(victims())
        number = signal.SIGSTOP if drawn.random() < 0.2 else signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, number)
            if number == signal.SIGSTOP:
                stopped[victim] = time.monotonic()
        time.sleep(drawn.uniform(0.5, 2.0))
        for pid, since in list(stopped.items()):
            if time.monotonic() > since + 12:
                _go_on(pid)
                del stopped[pid]
        restart()
    for pid in stopped:
        _go_on(pid)


def _go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
