"""Health and metrics: a real daemon, asked over real HTTP by clients of every kind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from health_client import Client, listen
from watching import Watcher, cli, wait_until

from watcher.config.service import parse_address
from watcher.service.http import CONNECTIONS


def save(watcher: Watcher, count: int) -> None:
    manager = Manager(watcher.model_dir)
    for step in range(100, 100 * count + 100, 100):
        manager.save(step, model_tensors(20_000, f"{step}"))


def sockets(pid: int) -> list[str]:
    links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if link.startswith("socket:")]


def test_nothing_listens_unless_it_is_asked_to(watcher: Watcher):
    daemon = watcher.start()
    wait_until(lambda: watcher.status().get("worker") == "ready", "the worker is ready")
    assert sockets(daemon.pid) == []


def test_a_run_is_alive_first_then_ready_and_tells_what_it_did(watcher: Watcher, tmp_path: Path):
    save(watcher, 3)
    held = tmp_path / "held"
    os.mkfifo(held)
    # Its start waits for a reader of this.
    flags = ("--max-pinned-bytes", "1GB", "--patience", 5, "--patience-steps", 900)
    client = listen(watcher, *flags, STUB_STARTS=held, STUB_SCORES='{"ckpt-1": 0.5}')
    assert client.code("/healthz") == 200
    wait_until(lambda: client.told("/readyz")["reason"] == "the worker is starting", "it starts")
    assert client.code("/readyz") == 503
    wait_until(lambda: client.metrics()["queue_length"] == 3, "all wait")
    metrics = client.metrics()
    assert metrics["lag_steps"] == 300
    assert 0 < metrics["lag_seconds"] < 60
    assert metrics["waiting_bytes"] == metrics["pinned_bytes"] > 3 * 20_000
    held.read_text()
    wait_until(lambda: client.code("/readyz") == 200, "it is ready")
    wait_until(lambda: client.metrics().get("checkpoints/scored") == 3, "all are scored")
    wait_until(lambda: "best_step" in client.metrics(), "the best is promoted")
    metrics = client.metrics()
    expected = dict.fromkeys(("progressing", "ready", "database_readable"), 1)
    expected |= dict.fromkeys(("queue_length", "lag_steps", "lag_seconds", "early_stop"), 0)
    expected |= dict.fromkeys(("checkpoints/scored", "evaluations_total", "pins"), 3)
    expected |= dict.fromkeys(("degraded/store", "degraded/worker", "worker_restarts_total"), 0)
    expected |= {"save_to_score_seconds_count": 3, "last_step": 300, "max_pinned_bytes": 1e9}
    expected |= {"best_score": 0.5, "best_step": 100, "last_score": 0.003}
    expected |= {"patience_left/evaluations": 3, "patience_left/steps": 700}
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["evaluation_seconds_total/other"] == pytest.approx(0.3)
    assert metrics["disk_available_bytes"] > 0
    assert metrics["process_resident_memory_bytes"] < 60e6


def test_what_is_summed_over_evaluations_goes_on_after_a_restart(watcher: Watcher):
    save(watcher, 2)
    watcher.run()
    client = listen(watcher)
    assert client.metrics()["evaluations_total"] == 2
    Manager(watcher.model_dir).save(300, model_tensors(1000, "more"))
    wait_until(lambda: client.metrics()["evaluations_total"] == 3, "one more is counted")


def test_a_loop_that_hangs_is_told_by_healthz_and_forgiven_when_it_goes_on(watcher: Watcher):
    if not shutil.which("strace"):
        pytest.skip("needs strace: apt install strace")
    save(watcher, 6)
    # A sync of the database hangs for so long, as on a disk that does not answer.
    slow = "inject=fdatasync:delay_enter=10000000:when=30+1000"
    watcher.prefix = ["strace", "-f", "-D", "-qq", "-o", "/dev/null"]
    watcher.prefix += ["-e", "trace=fdatasync", "-e", slow]
    client = listen(watcher, "--health-seconds", 0.5, "--rescan-seconds", 0.2)
    wait_until(lambda: client.code("/healthz") == 503, "it is stuck")
    told = client.told("/healthz")
    assert re.fullmatch(r"the loop is overdue by \d+ s", told["reason"])
    assert client.code("/readyz") == 503
    assert client.metrics()["progressing"] == 0
    wait_until(lambda: client.code("/healthz") == 200, "it goes on")


def test_a_worker_that_cannot_start_again_is_degraded_and_alive(watcher: Watcher, tmp_path: Path):
    broken = tmp_path / "broken"
    flags = ("--retry-seconds", 0.1, "--max-attempts", 1)
    client = listen(watcher, *flags, STUB_DIE_IF=broken, STUB_CRASH="ckpt-1")
    wait_until(lambda: client.code("/readyz") == 200, "it is ready")
    broken.touch()
    save(watcher, 1)
    wait_until(lambda: client.metrics()["degraded/worker"] == 1, "the worker is lost for good")
    wait_until(lambda: client.metrics()["checkpoints/failed"] == 1, "the checkpoint failed")
    metrics = client.metrics()
    assert metrics["worker_failures_total"] >= 2
    assert metrics["worker_restarts_total"] >= 1
    assert metrics["ready"] == 0
    assert client.code("/healthz") == 200
    told = client.told("/readyz")
    assert "in a row were lost" in told["degraded"]["worker"]


def test_while_the_database_takes_no_writes_it_is_alive_and_not_ready(watcher: Watcher):
    client = listen(watcher)
    wait_until(lambda: client.code("/readyz") == 200, "it is ready")
    with contextlib.closing(sqlite3.connect(watcher.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        save(watcher, 1)
        wait_until(lambda: client.code("/readyz") == 503, "the database is locked")
        assert "locked" in client.told("/readyz")["reason"]
        assert client.code("/healthz") == 200
        metrics = client.metrics()
        assert metrics["degraded/store"] == 1
        assert metrics["checkpoints/scored"] == 0
    wait_until(lambda: client.code("/readyz") == 200, "it goes on")


def test_hostile_clients_lock_nobody_out_and_leave_nothing_behind(watcher: Watcher):
    daemon = watcher.start("--listen", 0)
    client = Client(watcher)
    silent = [client.connect() for _ in range(3 * CONNECTIONS)]
    assert client.code("/healthz") == 200
    dripping = client.connect()
    began = time.monotonic()
    endless = client.connect()
    with contextlib.suppress(OSError):  # it may be cut in the middle
        endless.sendall(b"GET /" + b"a" * 200_000)
    odd = [
        *(b"\0" * 70_000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"),
        *(b"GET http://[ HTTP/1.1\r\n\r\n", b"GET /../../etc/passwd HTTP/1.1\r\n\r\n"),
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"POST /healthz HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n" + b"x" * 100_000,
    ]
    for request in odd:
        with client.connect() as connection, contextlib.suppress(OSError):
            connection.sendall(request)
            assert b"200 OK" not in connection.recv(1000)
    assert client.code("/healthz?probe=1") == 200
    assert client.ask("/metrics", "HEAD")[1] == ""
    assert client.code("/nothing") == 404
    save(watcher, 1)
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "the loop goes on")
    with contextlib.suppress(OSError):  # an answer to half a request, or none
        while dripping.sendall(b"x") or time.monotonic() - began < 60:
            time.sleep(0.1)
    assert time.monotonic() - began < 60
    for connection in [*silent, endless, dripping]:
        connection.close()
    wait_until(lambda: len(sockets(daemon.pid)) == 1, "all connections are closed")
    threads = Path(f"/proc/{daemon.pid}/status").read_text()
    assert int(re.search(r"Threads:\s+(\d+)", threads)[1]) < 10
    assert watcher.stop() == 0
    assert "Traceback" not in watcher.log.read_text()


def test_a_port_in_use_ends_the_start_with_one_clear_error(watcher: Watcher):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cli(*watcher.command("--listen", port)[3:])
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "[info" not in line]
    assert errors == [
        f"error: cannot listen on 127.0.0.1:{port}: Address already in use",
        "hint: another program uses that port; give --listen another one, or 0 for any",
    ]


def test_a_second_watcher_of_one_run_is_told_of_the_first_and_not_of_its_port(watcher: Watcher):
    client = listen(watcher)
    done = cli(*watcher.command("--listen", client.port)[3:])
    assert done.returncode == 3, done.stderr


def test_while_it_waits_for_its_model_dir_it_is_alive_and_not_ready(watcher: Watcher):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    watcher.model_dir.rmdir()
    watcher.start("--listen", port, "--wait-for-model-dir", "--health-seconds", 0.3)
    client = Client(watcher, port)
    wait_until(lambda: client.answers(), "it listens")
    time.sleep(0.5)
    # One that does not turn would be late from now on; one that was held up is so for a moment.
    wait_until(lambda: client.code("/healthz") == 200, "it is alive")
    assert client.told("/readyz")["reason"] == "starting"
    assert client.metrics()["database_readable"] == 0
    watcher.model_dir.mkdir()
    wait_until(lambda: client.code("/readyz") == 200, "it is ready")


def test_without_prometheus_client_health_is_served_and_metrics_say_what_to_install(
    watcher: Watcher, tmp_path: Path
):
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "prometheus_client.py").write_text("raise ImportError('not installed')\n")
    client = listen(watcher, PYTHONPATH=missing)
    assert client.code("/healthz") == 200
    code, text = client.ask("/metrics")
    assert code == 501 and "pip install 'checkpoint-watcher[metrics]'" in text


def test_listening_costs_little_memory_and_spins_not_while_nobody_asks(watcher: Watcher):
    daemon = watcher.start("--listen", 0)
    client = Client(watcher)
    wait_until(lambda: client.code("/readyz") == 200, "it is ready")
    client.metrics()
    spent = []
    for _ in range(3):  # a slow machine is not through with the start at first
        before = cpu_seconds(daemon)
        time.sleep(2)
        spent.append(cpu_seconds(daemon) - before)
        if spent[-1] < 0.5:
            break
    assert spent[-1] < 0.5, spent
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 60_000


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_address_is_a_port_or_a_host_and_a_port():
    assert parse_address("9490") == ("127.0.0.1", 9490)
    assert parse_address("0.0.0.0:0") == ("0.0.0.0", 0)
    assert parse_address("[::1]:9490") == ("::1", 9490)
    for wrong in ("", ":80", "host", "host:", "::1:80", "host:70000", "host:-1", "host:8²"):
        with pytest.raises(ValueError, match=r"^Expected "):
            parse_address(wrong)
