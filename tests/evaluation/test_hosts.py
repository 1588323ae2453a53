"""Workers on other hosts: real watchers, and agents behind a real ssh and sshd on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from health_client import Client
from hosts import (
    MISSING,
    Sshd,
    agents,
    environment_there,
    far,
    parents,
    processes,
    write_settings,
)
from two_gpus import FAKE, GPUS, Machine, save, scored
from watching import ROOT, STUB, Watcher, alive, cli, wait_until

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


def test_a_worker_on_another_host_evaluates_beside_one_at_home(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    there = tmp_path / "there"
    sshd = serve(STUB_LOG=there, STUB_SECONDS=0.2)
    settings = write_settings(tmp_path / "run.toml", [{"device": "cpu"}, far(sshd, "far-1")])
    save(watcher, range(1, 9))
    watcher.start("--config", settings, *QUICK, STUB_SECONDS=0.5)
    wait_until(lambda: len(scored(watcher)) == 8, "all are scored")
    assert watcher.stop() == 0
    both = [*watcher.evaluations(), *there.read_text().split()]
    assert sorted(both) == sorted(f"ckpt-{number}" for number in range(1, 9))
    assert there.read_text() and watcher.evaluations()


def evaluations_of(watcher: Watcher) -> dict[str, int]:
    sql = (
        "SELECT c.name AS name, count(*) AS n FROM evaluations e JOIN checkpoints c"
        " ON c.id = e.checkpoint_id GROUP BY c.name"
    )
    return {row["name"]: row["n"] for row in watcher.query(sql)}


def only_far(tmp_path: Path, *tables: dict[str, Any]) -> list[object]:
    return ["--config", write_settings(tmp_path / "run.toml", tables), *QUICK]


def worker_there(starts: Path) -> int:
    """The process id of the last worker that was started there, which is alive."""
    pids = wait_until(lambda: starts.exists() and starts.read_text().split(), "a worker starts")
    return int(pids[-1])


def agent_of(worker: int) -> int:
    return parents(worker)[0]


def session_of(worker: int) -> int:
    """The process of sshd that serves the session of an agent."""
    return parents(worker)[1]


def launcher_of(watcher: Watcher) -> int:
    return next(pid for pid in processes("ssh", "-F", str(watcher.model_dir.parent), "watcher"))


KILLED = {"worker": lambda w, _: w, "agent": lambda w, _: agent_of(w)}
KILLED |= {"session": lambda w, _: session_of(w), "launcher": lambda _, home: launcher_of(home)}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("whom", KILLED)
def test_what_is_killed_or_stopped_is_noticed_its_lease_goes_back_and_nothing_stays_there(
    watcher: Watcher, tmp_path: Path, serve: Serve, whom: str, number: signal.Signals
):
    starts = tmp_path / "starts"
    # The first evaluation waits until it is killed.
    go = tmp_path / "go"
    sshd = serve(STUB_STARTS=starts, STUB_WAIT="ckpt-1", STUB_WAIT_FOR=go)
    save(watcher, range(1, 4))
    stall = ["--stall-timeout", 5] if (whom, number) == ("worker", signal.SIGSTOP) else []
    daemon = watcher.start(*only_far(tmp_path, far(sshd, "far-1")), *stall)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is evaluated there")
    worker = worker_there(starts)
    agent, victim = agent_of(worker), KILLED[whom](worker, watcher)
    os.kill(victim, number)
    before = time.monotonic()
    try:
        go.touch()
        wait_until(lambda: "worker lost" in watcher.log.read_text(), "it is noticed")
        seconds = time.monotonic() - before
        wait_until(lambda: len(scored(watcher)) == 3, "another one evaluates")
        if whom != "worker" or number == signal.SIGKILL:
            # A turn of the machine may be lost, so no limit of the promise itself.
            assert seconds < 60
        wait_until(lambda: not alive(worker), "the worker there has ended", 90)
        if (whom, number) != ("agent", signal.SIGSTOP):
            wait_until(lambda: not alive(agent) or agent == victim, "its agent, too", 90)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
    assert evaluations_of(watcher) == {"ckpt-1": 1, "ckpt-2": 1, "ckpt-3": 1}
    attempts = watcher.query("SELECT attempts FROM checkpoints WHERE name = 'ckpt-1'")
    log = watcher.log.read_text()
    # Only a worker's own end counts; a machine that pauses makes its host silent before that.
    counts = whom == "worker" and "has said nothing for" not in log
    assert attempts == [{"attempts": 2 if counts else 1}], log
    daemon.terminate()
    assert daemon.wait(60) == 0
    wait_until(lambda: not agents(tmp_path), "no agent is left", 90)
    # Of an agent that is killed its guard removes what is left, after that.
    temporary = Path(tempfile.gettempdir())
    wait_until(lambda: not list(temporary.glob("checkpoint-watcher-scratch-*")), "nor its files")


def test_what_a_killed_agents_worker_had_started_ends_with_it(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    starts = tmp_path / "starts"
    sshd = serve(STUB_STARTS=starts, STUB_CHILD="1", STUB_SECONDS=600)
    save(watcher, range(1, 2))
    watcher.start(*only_far(tmp_path, far(sshd, "far-1")))
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is evaluated there")
    worker = worker_there(starts)
    (child,) = wait_until(lambda: processes(f"stub-child {worker};"), "it has a child")
    os.kill(agent_of(worker), signal.SIGKILL)
    wait_until(lambda: not alive(worker) and not alive(child), "both are gone")


def test_a_host_that_cannot_be_reached_is_tried_again_and_said_while_home_works(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    there = tmp_path / "there"
    sshd = serve(STUB_LOG=there)
    sshd.end()
    save(watcher, range(1, 4))
    settings = write_settings(tmp_path / "run.toml", [{"device": "cpu"}, far(sshd, "far-1")])
    watcher.start("--config", settings, *QUICK, STUB_WAIT="ckpt-5", STUB_WAIT_FOR=tmp_path / "go")
    wait_until(lambda: len(scored(watcher)) == 3, "home evaluates")
    wait_until(lambda: "far-1 cannot be reached" in str(watcher.status().get("problem")), "said")
    assert "Connection refused" in watcher.status()["problem"]
    sshd.start()
    wait_until(lambda: [w for w in watcher.status()["workers"] if w["worker"] == "ready"][1:], "up")
    assert watcher.status()["problem"] is None
    assert watcher.stop() == 0


def test_a_wrong_key_is_one_line_that_names_the_host_and_the_other_host_goes_on(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    sshd = serve()
    save(watcher, range(1, 3))
    tables = [far(sshd, "far-1"), far(sshd, "stranger")]
    watcher.start(*only_far(tmp_path, *tables))
    wait_until(lambda: len(scored(watcher)) == 2, "the other host evaluates")
    said = wait_until(lambda: watcher.status().get("problem"), "it is said")
    assert "stranger cannot be reached" in said and "Permission denied" in said
    assert watcher.stop() == 0


def test_another_version_there_is_left_out_with_a_line_that_names_both(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    sshd = serve()
    old = "import watcher; watcher.__version__ = '0.0.9'; from watcher.cli import main; main()"
    save(watcher, range(1, 3))
    tables = [far(sshd, "far-1"), far(sshd, "far-2", agent=[sys.executable, "-c", old, "agent"])]
    watcher.start(*only_far(tmp_path, *tables))
    wait_until(lambda: len(scored(watcher)) == 2, "the other host evaluates")
    said = wait_until(lambda: watcher.status().get("problem"), "it is said")
    assert said.startswith("far-2/cpu is left out until the next start: far-2 has")
    assert "checkpoint-watcher 0.0.9, and here it is" in said
    assert watcher.stop() == 0


def test_a_refusal_of_the_worker_there_leaves_that_host_out_and_names_it(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    sshd, bare = serve(), serve(STUB_REFUSE="tensorflow is not installed")
    save(watcher, range(1, 3))
    watcher.start(*only_far(tmp_path, far(sshd, "far-1"), far(bare, "far-2")))
    wait_until(lambda: len(scored(watcher)) == 2, "the other host evaluates")
    said = wait_until(lambda: watcher.status().get("problem"), "it is said")
    assert said == "far-2/cpu is left out until the next start: tensorflow is not installed"
    assert watcher.stop() == 0


def test_no_host_that_measures_otherwise_keeps_home_out_or_changes_the_evaluation(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    stale = serve(STUB_FINGERPRINT="e" * 64)
    save(watcher, range(1, 4))
    settings = write_settings(tmp_path / "run.toml", [{"device": "cpu"}, far(stale, "far-1")])
    # Home takes long to be ready, so the host is first.
    slow = {"STUB_PHASES": json.dumps([["building the model", 6]])}
    watcher.start("--config", settings, *QUICK, **slow)
    wait_until(
        lambda: "waits until a device of this machine is" in watcher.log.read_text(), "it waits"
    )
    wait_until(lambda: len(scored(watcher)) == 3, "home evaluates")
    wait_until(lambda: "far-1/cpu is not used" in str(watcher.status().get("problem")), "said")
    assert watcher.stop() == 0
    assert watcher.query("SELECT DISTINCT fingerprint FROM evaluations") == [
        {"fingerprint": "f" * 64}
    ]
    assert "the evaluation changed" not in watcher.log.read_text()


@pytest.mark.parametrize("way", ["ssh", "argv"])
def test_a_path_with_a_space_and_a_quote_reaches_the_far_side_as_it_is(
    watcher: Watcher, tmp_path: Path, serve: Serve, way: str
):
    odd = tmp_path / 'it\'s a $HOME "folder"; touch x'
    odd.mkdir()
    program = odd / "my agent"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m watcher "$1"\n')
    program.chmod(0o755)
    stub = odd / "py'thon"
    stub.symlink_to(STUB)
    sshd = serve()
    table = far(sshd, "far-1", agent=[str(program), "agent"], python=str(stub))
    if way == "argv":
        table["launcher"] = ["env", f"PYTHONPATH={ROOT}"]
    save(watcher, range(1, 2))
    watcher.start(*only_far(tmp_path, table))
    wait_until(lambda: scored(watcher), "it is evaluated")
    assert watcher.stop() == 0 and sorted(odd.iterdir()) == sorted([program, stub])


def test_a_checkpoint_that_is_another_one_there_is_not_evaluated_there(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    there, mirror = tmp_path / "there", tmp_path / "mirror"
    sshd = serve(STUB_LOG=there)
    table = far(sshd, "far-1", path_map={str(watcher.model_dir): str(mirror)})
    save(watcher, range(1, 2))
    watcher.start(*only_far(tmp_path, table))
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is pinned")
    wait_until(lambda: "cannot be read there" in str(watcher.status().get("problem")), "it is said")
    assert "far-1 cannot evaluate: " in watcher.status()["problem"]
    others = shutil.ignore_patterns("requests")
    shutil.copytree(watcher.model_dir, mirror, ignore=others)
    wait_until(lambda: scored(watcher), "it is there now")
    assert watcher.stop() == 0
    assert evaluations_of(watcher) == {"ckpt-1": 1}
    rows = watcher.query("SELECT attempts FROM checkpoints")
    assert rows == [{"attempts": 1}]


def seeing(machine: Machine) -> dict[str, object]:
    """The environment of programs on a host that has these GPUs."""
    return {"PYTHONPATH": f"{FAKE}:{ROOT}", "FAKE_NVML": machine.answers}


def test_two_watchers_take_a_gpu_of_another_host_in_turn(tmp_path: Path, serve: Serve):
    machine, starts = Machine(tmp_path), tmp_path / "starts"
    machine.have([{"uuid": "GPU-a0"}])
    sshd = serve(**seeing(machine), STUB_STARTS=starts, STUB_SECONDS=1)
    gpu = far(sshd, "far-1", "gpu:0", device_lock_dir=str(machine.locks))
    both = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        both.append(Watcher(tmp_path / name))
        save(both[-1], range(1, 4))
    first, second = both
    try:
        flags = ["--device-turn-seconds", 1]
        first.start("--run-name", "first", *flags, *only_far(tmp_path, gpu))
        wait_until(lambda: first.status().get("worker") == "evaluating", "the first evaluates")
        second.start("--run-name", "second", *flags, *only_far(tmp_path, gpu))
        said = wait_until(lambda: second.status().get("waiting_for"), "the second waits")
        assert said.startswith("waiting for gpu:0 Fake GPU (GPU-a0): the watcher of first (process")
        assert second.status()["worker"] == "waiting for the device"
        wait_until(lambda: len(scored(second)) == 3, "the second has its turn")
        wait_until(lambda: len(scored(first)) == 3, "the first goes on")
        assert "another watcher's turn has come" in first.log.read_text()
        assert first.stop() == 0 and second.stop() == 0
    finally:
        for one in both:
            one.end()


def test_a_worker_that_waits_for_any_gpu_of_a_host_takes_one_that_gets_free(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    machine, go = Machine(tmp_path), tmp_path / "go"
    machine.have([{"uuid": "GPU-a0"}, {"uuid": "GPU-b1", "computing": [1]}])
    sshd = serve(**seeing(machine), STUB_WAIT="ckpt-1,ckpt-2", STUB_WAIT_FOR=go)
    save(watcher, range(1, 3))
    locks = str(machine.locks)
    tables = [far(sshd, name, "auto", device_lock_dir=locks) for name in ("far-1", "far-2")]
    watcher.start(*only_far(tmp_path, *tables))
    said = "waiting for gpu:0 Fake GPU (GPU-a0): the watcher of"
    wait_until(lambda: said in json.dumps(watcher.status()), "one waits for the other")
    machine.have(GPUS)
    wait_until(lambda: [*watcher.states().values()].count("leased") == 2, "both evaluate")
    go.touch()
    wait_until(lambda: len(scored(watcher)) == 2, "both are scored")
    assert {path.stem for path in machine.locks.glob("*.lock")} == {"GPU-a0", "GPU-b1"}
    assert watcher.stop() == 0


@pytest.fixture
def network() -> Iterator[list[str]]:
    """What to put before a command so that it runs in a network of its own, with loopback alone."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("needs root, unshare, nsenter and ip for a network of its own")
    holder = subprocess.Popen(["unshare", "-n", "sleep", "600"])
    within = ["nsenter", "-t", str(holder.pid), "-n"]
    up = [*within, "ip", "link", "set", "lo", "up"]
    try:
        here = Path("/proc/self/ns/net").readlink()
        there = Path(f"/proc/{holder.pid}/ns/net")
        wait_until(lambda: there.readlink() != here, "it has a network")
        if subprocess.run(up, check=False).returncode:
            pytest.skip("no network of its own can be made here")
        yield within
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.timeout(400)
def test_a_partition_is_noticed_on_both_sides_and_healed_without_a_loss(
    watcher: Watcher, tmp_path: Path, network: list[str]
):
    starts = tmp_path / "starts"
    go = tmp_path / "go"
    there = environment_there(STUB_STARTS=starts, STUB_WAIT="ckpt-1", STUB_WAIT_FOR=go)
    sshd = Sshd(tmp_path / "sshd", there, network)
    try:
        save(watcher, range(1, 3))
        watcher.prefix = network
        watcher.start(*only_far(tmp_path, far(sshd, "far-1", connect_timeout=5)))
        wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is evaluated there")
        worker = worker_there(starts)
        subprocess.run([*network, "ip", "link", "set", "lo", "down"], check=True)
        before = time.monotonic()
        wait_until(lambda: "has said nothing for 9 s" in watcher.log.read_text(), "it is noticed")
        assert time.monotonic() - before > 5
        wait_until(lambda: watcher.status()["hosts"][0]["state"] == "unreachable", "it is said")
        wait_until(lambda: not alive(worker), "the agent there has ended its worker", 90)
        go.touch()
        subprocess.run([*network, "ip", "link", "set", "lo", "up"], check=True)
        wait_until(lambda: len(scored(watcher)) == 2, "it goes on", 120)
        assert evaluations_of(watcher) == {"ckpt-1": 1, "ckpt-2": 1}
        attempts = watcher.query("SELECT DISTINCT attempts FROM checkpoints")
        assert attempts == [{"attempts": 1}]
    finally:
        watcher.end()
        sshd.end()


def test_a_late_answer_of_a_host_is_refused_and_counted(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    sshd = serve(STUB_SECONDS=1.5)
    save(watcher, range(1, 2))
    watcher.start(*only_far(tmp_path, far(sshd, "far-1")))
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is evaluated")
    with contextlib.closing(sqlite3.connect(watcher.database)) as other:
        other.execute("UPDATE all_checkpoints SET lease_token = 'of another worker'")
        other.commit()
        wait_until(lambda: watcher.status().get("answers_refused"), "the answer is counted")
        assert watcher.query("SELECT * FROM evaluations") == []
        other.execute("UPDATE all_checkpoints SET lease_expires_at_seconds = 1")
        other.commit()
    Manager(watcher.model_dir).save(500, model_tensors(4000, 5))  # wakes the loop
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "it is evaluated again")
    assert evaluations_of(watcher) == {"ckpt-1": 1}


@pytest.mark.timeout(300)
def test_a_slow_line_is_no_hang_and_beats_pass_between_the_pieces_of_a_file(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    sshd = serve()
    Manager(watcher.model_dir).save(100, model_tensors(600_000, 1))
    size = (watcher.model_dir / "ckpt-1.data-00000-of-00001").stat().st_size
    slow = [sys.executable, str(ROOT / "tests" / "helpers" / "slow_line.py"), str(size / 20)]
    table = far(sshd, "far-1", launcher=[*slow, *sshd.launcher("far-1")], shell=True)
    # It takes twenty seconds, which is longer than all that is waited for.
    watcher.start(*only_far(tmp_path, table), "--stall-timeout", 8, "--peace", "off")
    wait_until(lambda: scored(watcher), "it is scored", 90)
    assert watcher.stop() == 0
    assert watcher.query("SELECT attempts FROM checkpoints") == [{"attempts": 1}]
    assert "worker lost" not in watcher.log.read_text()


def test_a_full_cache_is_one_line_that_names_the_host_while_home_goes_on(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    sshd = serve()
    save(watcher, range(1, 4))
    small = far(sshd, "far-1", cache_limit=3000)
    settings = write_settings(tmp_path / "run.toml", [{"device": "cpu"}, small])
    go = tmp_path / "go"
    watcher.start("--config", settings, *QUICK, STUB_WAIT="*", STUB_WAIT_FOR=go)
    wait_until(lambda: "cannot evaluate" in watcher.log.read_text(), "it is said")
    assert "far-1 cannot evaluate: the cache " in watcher.log.read_text()
    assert "is full: " in watcher.log.read_text()
    go.touch()
    wait_until(lambda: len(scored(watcher)) == 3, "home evaluates")
    assert watcher.stop() == 0
    rows = watcher.query("SELECT DISTINCT attempts FROM checkpoints")
    assert rows == [{"attempts": 1}]


def test_pictures_of_another_host_are_brought_here_and_verified(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        (pictures / f"image {number}.png").write_bytes(os.urandom(300_000))
    sshd = serve(STUB_PICTURES=pictures)
    save(watcher, range(1, 3))
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    watcher.start(*only_far(tmp_path, far(sshd, "far-1")), TMPDIR=scratch)
    wait_until(lambda: len(scored(watcher)) == 2, "both are scored")
    rows = watcher.query("SELECT details FROM evaluations")
    folders = [Path(json.loads(row["details"])["visualizations"]) for row in rows]
    assert len(set(folders)) == 2
    for folder in folders:
        assert folder.is_relative_to(scratch)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in pictures.iterdir()
        }
    assert watcher.stop() == 0


def test_what_a_run_is_set_up_from_comes_along_with_its_paths_renamed(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    read = tmp_path / "read"
    plugin = tmp_path / "plugin.py"
    plugin.write_text("def mine(): ...\n")
    watcher.pipeline.write_text('input_path: "/data/val.record"\n')
    sshd = serve(STUB_READ=read)
    save(watcher, range(1, 2))
    table = far(sshd, "far-1", path_map={"/data": "/mnt/data"})
    watcher.start(*only_far(tmp_path, table), "--metric-plugin", f"{plugin}:mine")
    wait_until(lambda: scored(watcher), "it is scored")
    assert watcher.stop() == 0
    assert json.loads(read.read_text().splitlines()[0]) == [
        'input_path: "/mnt/data/val.record"\n',
        "def mine(): ...\n",
    ]


def test_status_and_metrics_say_how_each_host_is(watcher: Watcher, tmp_path: Path, serve: Serve):
    sshd, gone = serve(STUB_SECONDS=0.5), serve()
    gone.end()
    save(watcher, range(1, 4))
    tables = [far(sshd, "far-1"), far(gone, "far-2")]
    watcher.start(*only_far(tmp_path, *tables), "--listen", 0)
    wait_until(lambda: len(scored(watcher)) == 3, "the one evaluates")
    wait_until(lambda: watcher.status()["hosts"][1]["state"] == "unreachable", "the other is known")
    reached, lost = watcher.status()["hosts"]
    assert (reached["host"], reached["state"], reached["reason"]) == ("far-1", "reached", None)
    assert lost["since"].endswith("Z") and "far-2 cannot be reached" in lost["reason"]
    shown = " ".join(cli("status", watcher.model_dir).stdout.split())
    assert "host far-1/cpu reached since 2" in shown and "host far-2/cpu unreachable since" in shown
    told = json.loads(cli("status", watcher.model_dir, "--json").stdout)
    assert [one["state"] for one in told["hosts"]] == ["reached", "unreachable"]
    _, text = Client(watcher).ask("/metrics")
    lines = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in text.splitlines()}
    of = {line: value for line, value in lines.items() if "_host_reached{" in line}
    assert sorted(("far-1/cpu" in line, value) for line, value in of.items()) == [
        (False, "0.0"),
        (True, "1.0"),
    ]
    assert any("_answers_refused_total" in line for line in lines)
    assert watcher.stop() == 0


@pytest.mark.timeout(300)
def test_doctor_goes_to_each_host_and_says_what_it_finds(
    watcher: Watcher, tmp_path: Path, serve: Serve
):
    sshd, bare, gone = serve(), serve(STUB_REFUSE="tensorflow is not installed"), serve()
    gone.end()
    other = serve(STUB_FINGERPRINT="e" * 64)
    save(watcher, range(1, 2))
    tables = [far(sshd, "far-1"), far(bare, "far-2"), far(gone, "far-3"), far(other, "far-4")]
    tables.append(far(sshd, "far-5", python="/no/such/python"))
    settings = write_settings(tmp_path / "run.toml", [{"device": "cpu"}, *tables])
    assert watcher.run() == 0
    words = ["--config", settings, "--pipeline-config", watcher.pipeline, "--python", STUB]
    said = cli("doctor", watcher.model_dir, *words, "--json", "--time-limit", 60, seconds=100)
    found = [one for one in json.loads(said.stdout)["findings"] if one["check"] == "host"]
    assert [one["severity"] for one in found] == ["ok", *["error"] * 4]
    told = [one["message"] for one in found]
    assert told[0] == "far-1/cpu is reached, and evaluates 8 images on cpu with python stub"
    assert told[1] == "far-2/cpu: tensorflow is not installed"
    assert told[2].startswith("far-3/cpu: far-3 cannot be reached: ssh ended with exit code 255")
    assert told[3].startswith(
        "far-4/cpu measures otherwise (eeeeeeee) than the run does (ffffffff)"
    )
    assert "cannot start the interpreter /no/such/python" in told[4]
