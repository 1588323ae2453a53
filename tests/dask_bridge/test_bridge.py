"""Workers on a dask cluster: a real scheduler, real workers, and agents that a watcher places."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dask_cluster import BRIDGE, MISSING, PYTHON, Cluster, certificates
from fake_trainer import Manager, model_tensors
from hosts import AGENT, processes, write_settings
from watching import ROOT, Watcher, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=str(MISSING)),
    pytest.mark.timeout(300),
]

Start = Callable[..., Cluster]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Start]:
    started: list[Cluster] = []

    def start(tls: dict[str, str] | None = None, **there: object) -> Cluster:
        folder = tmp_path / f"cluster-{len(started)}"
        folder.mkdir()
        started.append(Cluster(folder, tls, **there))
        return started[-1]

    yield start
    for one in started:
        one.end()


def run(command: list[str], said: bytes = b"", **environment: str) -> Any:
    """Run a bridge to its end."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, input=said, capture_output=True, env=env, timeout=120)


def test_bytes_pass_both_ways_with_tls_and_the_exit_code_is_the_commands(
    cluster: Start, tmp_path: Path
):
    here = cluster(certificates(tmp_path))
    here.work()
    said = os.urandom(5 << 20)
    echoed = run([*here.bridge(), "cat"], said)
    assert (echoed.returncode, echoed.stdout) == (0, said), echoed.stderr[-2000:]
    failed = run([*here.bridge(), "sh", "-c", "echo told; echo why >&2; exit 7"])
    assert (failed.returncode, failed.stdout, failed.stderr) == (7, b"told\n", b"why\n")
    missing = run([*here.bridge(), "/no/such/agent"])
    assert missing.returncode == 127 and b"cannot start /no/such/agent" in missing.stderr


def test_a_stranger_is_not_let_in(cluster: Start, tmp_path: Path):
    here = cluster(certificates(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    flags = [word for pair in certificates(other).items() for word in pair]
    refused = run([*BRIDGE, here.address, *flags, "--", "cat"])
    assert refused.returncode == 1 and b"cannot be reached" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "address, reason",
    [
        ("tcp://scheduler.example:8786", b"is not encrypted"),
        ("scheduler:8786", b"must be an address such as tls://"),
        ("tcp://127.0.0.1:9", b"the scheduler cannot be reached"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(address: str, reason: bytes):
    refused = run([*BRIDGE, address, "--", "cat"])
    assert refused.returncode in (1, 2) and reason in refused.stderr.splitlines()[-1]


def test_no_free_worker_and_another_version_of_dask_are_a_line_each(cluster: Start):
    here = cluster()
    waited = run([*here.bridge("--wait-seconds", "1"), "cat"])
    assert waited.returncode == 1 and b"no worker with EVAL_GPU=1 was free" in waited.stderr
    pretend = "import distributed; distributed.__version__ = '2020.1.0';"
    pretend += f"from watcher.dask_bridge.bridge import main; main(['{here.address}', 'cat'])"
    other = run([str(PYTHON), "-c", pretend])
    assert b"the scheduler has distributed" in other.stderr
    assert b"this bridge 2020.1.0; install one version everywhere" in other.stderr


class Run:
    """A watcher whose only devices are places on a cluster."""

    def __init__(self, watcher: Watcher, here: Cluster, folder: Path, places: int) -> None:
        self.watcher = watcher
        tables = [here.table(f"pool-{number}", AGENT) for number in range(1, places + 1)]
        self._settings = write_settings(folder / "run.toml", tables)
        self._manager = Manager(watcher.model_dir, max_to_keep=None)

    def save(self, count: int) -> None:
        for _ in range(count):
            number = self._manager.save_counter + 1
            self._manager.save(100 * number, model_tensors(4000, number))

    def start(self) -> None:
        self.watcher.start("--config", self._settings, "--retry-seconds", 0.2)

    def all_scored(self, count: int) -> None:
        """Wait until so many are, and see that each was recorded once, as no second attempt."""
        wait_until(self._is_scored(count), f"{count} are scored", 180)
        sql = "SELECT count(*) AS n, count(DISTINCT checkpoint_id) AS of FROM evaluations"
        assert self.watcher.query(sql) == [{"n": count, "of": count}]
        attempts = self.watcher.query("SELECT DISTINCT attempts FROM checkpoints")
        assert attempts == [{"attempts": 1}]

    def _is_scored(self, count: int) -> Callable[[], bool]:
        return lambda: list(self.watcher.states().values()).count("scored") == count


def test_a_backlog_is_evaluated_on_the_workers_of_a_cluster(
    cluster: Start, watcher: Watcher, tmp_path: Path
):
    there = tmp_path / "there"
    here = cluster(certificates(tmp_path), STUB_LOG=there, STUB_SECONDS=0.2)
    for _ in range(2):
        here.work()
    pool = Run(watcher, here, tmp_path, 2)
    pool.save(8)
    pool.start()
    pool.all_scored(8)
    assert sorted(there.read_text().split()) == sorted(f"ckpt-{n}" for n in range(1, 9))
    workers = watcher.status()["workers"]
    assert {one["on"] for one in workers} == {"pool-1/cpu", "pool-2/cpu"}
    assert watcher.stop() == 0
    wait_until(lambda: not processes("watcher", "agent", str(ROOT)), "no agent is left")


@pytest.mark.parametrize("what", ["worker", "scheduler", "bridge", "agent"])
def test_what_is_killed_costs_no_attempt_and_the_rest_is_evaluated_once(
    cluster: Start, watcher: Watcher, tmp_path: Path, what: str
):
    go = tmp_path / "go"
    here = cluster(STUB_WAIT="ckpt-2", STUB_WAIT_FOR=go, STUB_MARK=tmp_path)
    worker = here.work()
    pool = Run(watcher, here, tmp_path, 1)
    pool.save(3)
    pool.start()
    wait_until(lambda: watcher.status().get("checkpoint") == "ckpt-2", "it evaluates", 180)
    if what == "worker":
        worker.kill()
        worker.wait()
        here.work()
    elif what == "scheduler":
        here._processes[0].kill()
        here._processes[0].wait()
        worker.kill()  # it ends by itself in some seconds, and not again when a scheduler comes
        worker.wait()
        here.schedule()
        here.work()
    elif what == "bridge":
        os.kill(processes("watcher.dask_bridge", here.address)[0], signal.SIGKILL)
    else:
        os.kill(processes("watcher agent", str(sys.executable))[0], signal.SIGKILL)
    go.touch()
    pool.all_scored(3)
    assert watcher.stop() == 0
