"""Workers on a dask cluster: a real scheduler, real workers, and agents that a watcher places."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dask_cluster import BRIDGE, MISSING, PYTHON, Cluster, certificates, other_python
from fake_trainer import Manager, model_tensors
from hosts import AGENT, agents, processes, write_settings
from loopback import free_port
from watching import ROOT, Watcher, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=str(MISSING)),
    pytest.mark.timeout(300),
]

Start = Callable[..., Cluster]


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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


def test_what_the_other_side_does_not_take_piles_up_in_no_memory(cluster: Start):
    here = cluster()
    worker = here.work()
    # It reads nothing, and talks without end; the bridge's reader takes nothing of it either.
    talks = "while :; do printf '%065536d' 0; done"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*here.bridge(), "sh", "-c", talks],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
    ) as bridge:
        assert bridge.stdin and bridge.stdout
        bridge.stdout.read(1)
        before = [resident(pid) for pid in (bridge.pid, worker.pid)]
        os.set_blocking(bridge.stdin.fileno(), False)
        given = 0
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                given += os.write(bridge.stdin.fileno(), bytes(1 << 20))
            time.sleep(0.1)
        grown = [resident(pid) - b for pid, b in zip((bridge.pid, worker.pid), before, strict=True)]
        bridge.kill()
    assert given < 20 << 20 and max(grown) < 60 << 20, (given, grown)


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
    wait_until(lambda: not agents(tmp_path), "no agent is left")


def test_a_worker_on_another_python_evaluates(cluster: Start, watcher: Watcher, tmp_path: Path):
    here = cluster()
    here.work(python=other_python(tmp_path, (3, 12)))
    pool = Run(watcher, here, tmp_path, 1)
    pool.save(3)
    pool.start()
    pool.all_scored(3)
    assert watcher.stop() == 0


def unit(name: str) -> list[str]:
    """The words that a unit starts after the name of Python."""
    text = (ROOT / "deploy" / "dask" / name).read_text()
    (line,) = re.findall(r"(?m)^ExecStart=(.*)$", text.replace("\\\n", " "))
    return shlex.split(line)[1:]


def service(name: str) -> list[str]:
    """The words that a service of the compose file starts after the name of Python."""
    text = (ROOT / "deploy" / "compose.dask.yaml").read_text()
    command: list[str] = yaml.safe_load(text)["services"][name]["command"]
    return ["-m", *command]


@pytest.mark.parametrize("by", ["units", "compose"])
def test_what_deploy_starts_is_a_cluster_that_a_bridge_gets_a_place_on(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if by == "units":
        both = [
            unit("checkpoint-watcher-dask-scheduler.service"),
            unit("checkpoint-watcher-dask-worker@.service"),
        ]
    else:
        both = [service("scheduler"), service("worker")]
    made = certificates(tmp_path)
    for flag, name in (("--tls-ca-file", "ca.crt"), ("--tls-cert", "host.crt")):
        shutil.copyfile(made[flag], tmp_path / name)
    shutil.copyfile(made["--tls-key"], tmp_path / "host.key")
    address = f"tls://127.0.0.1:{free_port()}"
    # What a host's own files say, and on loopback alone.
    meant = {
        r"/etc/checkpoint-watcher/dask|/certificates": str(tmp_path),
        r"\$\{SCHEDULER[^}]*\}": address,
        r"tls://0\.0\.0\.0:8786": address,
        r"--local-directory=/tmp": f"--local-directory={tmp_path}",
        r"%H-%i": "here-0",
    }
    with contextlib.ExitStack() as stack:
        for words in both:
            for pattern, text in meant.items():
                words = [re.sub(pattern, text, word) for word in words]
            process = subprocess.Popen(
                [str(PYTHON), *words],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        flags = [word for pair in made.items() for word in pair]
        asked = [*BRIDGE, address, *flags, "--wait-seconds", "60", "--", "cat"]
        wait_until(lambda: run(asked, b"said").stdout == b"said", "it is joined", 120)


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
        here.scheduler.kill()
        here.scheduler.wait()
        worker.kill()  # it ends by itself in some seconds, and not again when a scheduler comes
        worker.wait()
        here.schedule()
        here.work()
    elif what == "bridge":
        os.kill(processes("watcher.dask_bridge", here.address)[0], signal.SIGKILL)
    else:
        os.kill(agents(tmp_path)[0], signal.SIGKILL)
    go.touch()
    pool.all_scored(3)
    assert watcher.stop() == 0
