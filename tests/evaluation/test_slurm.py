"""Workers that Slurm places: real watchers, and agents that a real srun starts on a real slurmd."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts import parents, processes, write_settings
from slurm import MISSING, Slurm
from two_gpus import GPUS, save, scored
from watching import Watcher, alive, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=str(MISSING)),
    pytest.mark.timeout(300),
]

QUICK = ["--retry-seconds", 0.2]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """One node with two GPUs."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        started = Slurm(Path(folder) / "s", len(GPUS))
        yield started
        started.end()


class Places:
    """Devices of a run that are places on the node, and what their workers are steered by."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.starts, self.go = folder / "starts", folder / "go"
        self._slurm, self._folder = slurm, folder
        (folder / "gpus.json").write_text(json.dumps(GPUS))

    def settings(self, *hosts: str, srun: tuple[str, ...] = (), **there: object) -> list[object]:
        """Return the flags of a watcher whose devices these are."""
        there = {"STUB_STARTS": self.starts, "FAKE_NVML": self._folder / "gpus.json", **there}
        tables = [self._slurm.table(host, self._folder, **there) for host in hosts]
        for table in tables:
            table["launcher"] += srun
        return ["--config", write_settings(self._folder / "run.toml", tables), *QUICK]

    def worker(self) -> int:
        """Return the process id of the last worker that was started."""
        started = wait_until(
            lambda: self.starts.exists() and self.starts.read_text().split(), "a worker starts"
        )
        return int(started[-1])


@pytest.fixture
def places(slurm: Slurm, tmp_path: Path) -> Iterator[Places]:
    yield Places(slurm, tmp_path)
    wait_until(lambda: not slurm.jobs(), "no job is left", 60)


def test_a_backlog_is_evaluated_on_the_gpus_that_slurm_gives_and_the_jobs_end_with_it(
    watcher: Watcher, slurm: Slurm, places: Places
):
    save(watcher, range(1, 7))
    steer = {"STUB_WAIT": "ckpt-1,ckpt-2,ckpt-3,ckpt-4,ckpt-5,ckpt-6", "STUB_WAIT_FOR": places.go}
    watcher.start(*places.settings("slurm-1", "slurm-2", **steer))
    wait_until(lambda: [*watcher.states().values()].count("leased") == 2, "both evaluate")
    assert len(slurm.jobs()) == 2
    workers = [int(pid) for pid in places.starts.read_text().split()]
    given = {environment_of(pid)["CUDA_VISIBLE_DEVICES"] for pid in workers}
    assert given == {gpu["uuid"] for gpu in GPUS}
    places.go.touch()
    wait_until(lambda: len(scored(watcher)) == 6, "all are scored")
    assert watcher.stop() == 0
    wait_until(lambda: not slurm.jobs(), "the jobs have ended", 60)
    assert watcher.query("SELECT DISTINCT attempts FROM checkpoints") == [{"attempts": 1}]


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(one.partition("=")[::2] for one in variables)


def _srun(worker: int) -> int:
    """The launcher of this worker, which the place that it writes its id to tells."""
    starts = environment_of(worker)["STUB_STARTS"]
    return next(pid for pid in processes("srun", "agent", starts) if "srun" in _name(pid))


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


KILLED: dict[str, Callable[[int], int]] = {
    "worker": lambda worker: worker,
    "agent": lambda worker: parents(worker)[0],
    "slurmstepd": lambda worker: next(pid for pid in parents(worker) if "slurmstepd" in _name(pid)),
    "srun": _srun,
}


@pytest.mark.parametrize("whom", KILLED)
def test_what_is_killed_is_noticed_its_lease_goes_back_and_nothing_stays_there(
    watcher: Watcher, slurm: Slurm, places: Places, whom: str
):
    save(watcher, range(1, 4))
    # The first evaluation waits until it is killed.
    watcher.start(*places.settings("slurm-1", STUB_WAIT="ckpt-1", STUB_WAIT_FOR=places.go))
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is evaluated there")
    worker = places.worker()
    os.kill(KILLED[whom](worker), signal.SIGKILL)
    places.go.touch()
    wait_until(lambda: len(scored(watcher)) == 3, "another one evaluates", 120)
    wait_until(lambda: not alive(worker), "the worker there has ended", 90)
    rows = watcher.query("SELECT name, attempts FROM checkpoints ORDER BY name")
    # Only a worker's own end counts.
    assert rows[0] == {"name": "ckpt-1", "attempts": 2 if whom == "worker" else 1}
    assert watcher.query("SELECT count(*) AS n FROM evaluations") == [{"n": 3}]
    assert watcher.stop() == 0
    if whom == "slurmstepd":  # Slurm itself finds out much later that its job is gone
        slurm.ask("scancel", *slurm.jobs())


def test_a_job_that_is_cancelled_costs_no_attempt(watcher: Watcher, slurm: Slurm, places: Places):
    save(watcher, range(1, 4))
    watcher.start(*places.settings("slurm-1", STUB_WAIT="ckpt-1", STUB_WAIT_FOR=places.go))
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is evaluated there")
    worker = places.worker()
    (job,) = slurm.jobs()
    slurm.ask("scancel", job)
    wait_until(lambda: not alive(worker), "the worker there has ended", 60)
    places.go.touch()
    wait_until(lambda: len(scored(watcher)) == 3, "another job evaluates", 120)
    assert watcher.query("SELECT DISTINCT attempts FROM checkpoints") == [{"attempts": 1}]
    assert watcher.stop() == 0


def test_a_node_without_a_free_gpu_is_waited_for_while_status_says_why(
    watcher: Watcher, slurm: Slurm, places: Places
):
    save(watcher, range(1, 3))
    full = places.settings("slurm-1", "slurm-2", "slurm-3", srun=("--immediate=1",))
    watcher.start(*full, STUB_SECONDS=0.2)
    said = wait_until(lambda: watcher.status().get("problem"), "it is said", 60)
    assert said.startswith("slurm-") and "cannot be reached: env ended with exit code 1" in said
    assert "Unable to allocate resources" in said
    wait_until(lambda: len(scored(watcher)) == 2, "the others evaluate")
    assert watcher.stop() == 0


def test_auto_on_another_host_is_never_its_cpu(watcher: Watcher, places: Places):
    save(watcher, range(1, 2))
    watcher.start(*places.settings("slurm-1", FAKE_NVML="/nonexistent"))
    lost = "cannot evaluate: auto: no NVIDIA GPU is seen"
    # More often than a worker may fail to start: it is tried again, since a GPU may be free soon.
    wait_until(lambda: watcher.log.read_text().count(lost) > 4, "it is tried again", 120)
    assert f"slurm-1 {lost}" in watcher.status()["problem"]
    assert len(scored(watcher)) == 0
    assert watcher.stop() == 0
