"""Notifications: real programs and a real HTTP receiver are told, and nothing holds up the loop."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from launching import kill_group
from watching import ROOT, Watcher, alive, cli, wait_until

from watcher.config.service import ServiceSettings
from watcher.errors import ConfigError
from watcher.service.notices import Situation, Told, news
from watcher.service.notify import _ways
from watcher.service.program import run_program

SHELL = ("--notify-command", "sh", "--notify-command", "-c", "--notify-command")
BEST = {"checkpoint": "ckpt-1", "global_step": 100, "score": 0.5, "metric": "mAP"}
BEST |= {"path": "best/ckpt-1", "sha256": "abc", "evaluated_at": "2026-01-01T12:00:00.000Z"}


def save(watcher: Watcher, count: int, first: int = 1) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(first, first + count):
        manager.save(100 * number, model_tensors(1000, f"{number}"))


class Hook:
    """A program that notes what it is told; `behave` is what it does after that."""

    def __init__(self, folder: Path, behave: str = "true") -> None:
        self.told_file = folder / "told.jsonl"
        self.pids = folder / "pids"
        self.flags = (*SHELL, f"echo $$ >> {self.pids}; cat >> {self.told_file}; {behave}")

    def told(self) -> list[dict[str, Any]]:
        text = self.told_file.read_text() if self.told_file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def events(self) -> list[str]:
        return [told["event"] for told in self.told()]

    def still_running(self) -> list[int]:
        return [pid for pid in map(int, self.pids.read_text().split()) if alive(pid)]


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


# -- what is told, decided purely


def kinds(told: Told, now: Situation) -> list[str]:
    return [notice.event for notice, _ in news(told, now) if notice]


def after(told: Told, now: Situation) -> Told:
    return [then for _, then in news(told, now)][-1]


def test_the_difference_is_told_once_each():
    now = Situation(
        best=BEST,
        failures=[{"checkpoint": "ckpt-2", "message": "no such variable"}],
        event=7,
        stop="no improvement",
        degraded={"pins": "copies"},
    )
    assert kinds(Told(), now) == ["failed", "degraded", "best", "stop"]
    told = after(Told(), now)
    assert (
        kinds(told, Situation(best=BEST, event=7, stop="other words", degraded=now.degraded)) == []
    )
    assert told == Told(best="abc mAP", stopped=True, degraded=("pins",), event=7)


def test_what_passed_is_told_again_when_it_comes_back():
    told = after(Told(), Situation(stop="stop", degraded={"events": "x", "pins": "y"}))
    told = after(told, Situation(degraded={"pins": "y"}))
    assert (told.stopped, told.degraded) == (False, ("pins",))
    assert kinds(told, Situation(stop="stop", degraded={"events": "x"})) == ["degraded", "stop"]


def test_a_device_that_works_again_is_told_once_and_not_because_of_a_restart():
    told = after(Told(), Situation(degraded={"device": "3 in a row"}))
    assert kinds(told, Situation()) == [] and after(told, Situation()) == told
    works = Situation(recovered="cpu evaluates again", degraded={"pins": "copies"})
    assert kinds(told, works) == ["recovered", "degraded"]
    assert kinds(after(told, works), works) == []


def test_what_is_not_known_now_is_neither_told_nor_forgotten():
    told = Told(best="abc mAP", stopped=True, degraded=("pins",), event=7)
    unknown = Situation(readable=False, decided=False)
    assert kinds(told, unknown) == []
    assert after(told, unknown) == told


def test_many_failures_are_one_notice_of_bounded_length():
    rows = [{"checkpoint": f"ckpt-{n}", "message": "x" * 100_000} for n in range(50)]
    (notice,) = [notice for notice, _ in news(Told(), Situation(failures=rows)) if notice]
    assert notice.title == "50 checkpoints failed"
    assert len(json.dumps(notice.details)) + len(notice.message) < 16_000


# -- programs


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["true"], None),
        (["sh", "-c", "echo no route to host >&2; exit 3"], "exit code 3 (no route to host)"),
        (["sh", "-c", "kill -9 $$"], "killed by SIGKILL"),
        (["sh", "-c", "kill $$"], "killed by SIGTERM"),
        (["/nonexistent/program"], "cannot start /nonexistent/program: No such file"),
        (["sh", "-c", "exec 2>&-; sleep 0.1"], None),
        (["sh", "-c", "sleep 5 & true"], None),
        (python("import os; os.write(2, b'x' * 3_000_000)"), None),
    ],
)
def test_a_program_runs_to_its_end_and_what_went_wrong_is_told(command, reason):
    began = time.monotonic()
    found = run_program(command, b"x" * 60_000, 300, never)
    assert time.monotonic() - began < 60
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(
    "behave",
    ["sleep 600", "trap '' TERM; while :; do sleep 1; done", "yes >&2", "sleep 600 & wait"],
)
def test_a_program_that_does_not_end_is_killed_with_all_it_started(tmp_path: Path, behave: str):
    pid = tmp_path / "pid"
    reason = run_program(["sh", "-c", f"echo $$ > {pid}; {behave}"], b"{}", 0.3, never)
    assert reason.startswith("it did not end within 0.3 s")
    members = ["pgrep", "-g", pid.read_text().strip()]
    found = subprocess.run(members, capture_output=True, text=True).stdout.split()
    wait_until(lambda: not any(alive(int(member)) for member in found), "all are dead")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("behave", ["exec sleep 600", "sleep 600", "trap '' TERM HUP; sleep 600"])
def test_a_program_that_hangs_ends_with_a_killed_watcher_and_in_time_beside_a_stopped_one(
    tmp_path: Path, behave: str, number: signal.Signals
):
    (pids := tmp_path / "pids").touch()
    hook = ["sh", "-c", f"echo $$ >> {pids}; sleep 600 & echo $! >> {pids}; {behave}"]
    limit = 600 if number == signal.SIGKILL else 5
    program = f"run_program({hook!r}, b'', {limit}, lambda: False)"
    program = f"from watcher.service.program import run_program\n{program}"
    teller = subprocess.Popen(python(program), cwd=ROOT)
    try:
        wait_until(lambda: len(pids.read_text().split()) == 2, "it hangs")
        started = list(map(int, pids.read_text().split()))
        group = os.getpgid(started[0])
        teller.send_signal(number)
        wait_until(lambda: not any(map(alive, started)), "all that it started is dead")
    finally:
        teller.kill()
        teller.wait()
        kill_group(group)


def test_a_program_is_left_at_once_when_nobody_wants_its_answer():
    began = time.monotonic()
    assert run_program(["sleep", "600"], b"", 600, lambda: True) is not None
    assert time.monotonic() - began < 60


# -- a daemon that tells


def test_a_command_is_told_of_the_best_failures_degradation_and_the_stop(
    watcher: Watcher, hook: Hook
):
    save(watcher, 4)
    environment = {"STUB_SCORES": '{"ckpt-1": 0.5}', "STUB_REJECT": "ckpt-3"}
    # Pins on another file system are copies.
    state = Path("/dev/shm") / f"watcher-{os.getpid()}"
    flags = ("--patience", 2, "--state-dir", state)
    try:
        assert watcher.run(*hook.flags, *flags, **environment) == 0
        told = {one["event"]: one for one in hook.told()}
        assert sorted(hook.events()) == ["best", "degraded", "failed", "stop"]
        assert watcher.run(*hook.flags, *flags, **environment) == 0
        assert len(hook.told()) == 4
    finally:
        subprocess.run(["rm", "-rf", state], check=True)
    best = told["best"]
    assert (best["checkpoint"], best["global_step"], best["score"]) == ("ckpt-1", 100, 0.5)
    assert best["path"] == str(watcher.best_dir / "ckpt-1")
    assert (best["run"], best["model_dir"]) == ("model_dir", str(watcher.model_dir))
    assert best["message"].startswith("ckpt-1 (step 100) is the best: DetectionBoxes_Precision/mAP")
    assert told["failed"]["checkpoints"][0]["checkpoint"] == "ckpt-3"
    assert "model/head/kernel" in told["failed"]["message"]
    assert "copies instead of links" in told["degraded"]["degraded"]["pins"]
    assert told["stop"]["message"] == watcher.stop_notice()["message"]


def test_what_could_not_be_told_before_a_kill_is_told_after_it_and_once(
    watcher: Watcher, tmp_path: Path
):
    reachable = tmp_path / "reachable"
    hook = Hook(tmp_path)
    flags = (*SHELL, f"test -e {reachable} && cat >> {hook.told_file}")
    save(watcher, 1)
    daemon = watcher.start(*flags)
    wait_until(lambda: "notification failed" in watcher.log.read_text(), "it is tried")
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    assert watcher.log.read_text().count("notification failed") == 1
    reachable.touch()
    assert watcher.run(*flags) == 0
    assert hook.events() == ["best"]
    save(watcher, 1, first=2)
    assert watcher.run(*flags) == 0
    assert [told["checkpoint"] for told in hook.told()] == ["ckpt-1", "ckpt-2"]


def test_a_channel_that_is_added_later_is_told_only_what_comes(watcher: Watcher, hook: Hook):
    save(watcher, 2)
    watcher.run()
    watcher.run(*hook.flags)
    assert hook.told() == []
    save(watcher, 1, first=3)
    watcher.run(*hook.flags)
    assert [told["checkpoint"] for told in hook.told()] == ["ckpt-3"]


def test_a_hook_that_hangs_holds_up_neither_the_loop_nor_its_end(watcher: Watcher, tmp_path: Path):
    hook = Hook(tmp_path, "sleep 600")
    watcher.start(*hook.flags)
    save(watcher, 1)
    wait_until(lambda: hook.told(), "it is told")
    save(watcher, 3, first=2)
    wait_until(lambda: watcher.leaderboard()[:1] == ["ckpt-4"], "the loop goes on")
    began = time.monotonic()
    assert watcher.stop() == 0
    assert time.monotonic() - began < 60
    assert hook.still_running() == []


def test_a_run_that_ends_with_an_error_tells_that(watcher: Watcher, hook: Hook):
    assert watcher.run(*hook.flags, "--metric", "AP_of_nothing") == 1
    (told,) = hook.told()
    assert (told["event"], told["title"]) == ("failed", "the watcher ended")
    assert "AP_of_nothing" in told["message"]


def test_a_program_that_does_not_exist_is_refused_at_the_start(watcher: Watcher):
    done = cli(*watcher.command("--notify-command", "/no/such program")[3:])
    assert done.returncode == 1
    assert "error: notify_command (/no/such program) does not exist" in done.stderr


def test_a_command_that_may_not_be_executed_is_answered_with_what_lets_it(tmp_path: Path):
    (script := tmp_path / "note me.sh").write_text("#!/bin/sh\n")
    refused = {
        str(script): ("may not be executed", f"chmod +x '{script}'"),
        str(tmp_path): ("is a folder", "not a line for a shell"),
        "note-me": ("is not in PATH", "not a line for a shell"),
    }
    for program, (why, hint) in refused.items():
        settings = ServiceSettings(notify_command=(program,))
        with pytest.raises(ConfigError) as caught:
            _ways(settings, "run", lambda notice: b"")
        assert f"notify_command ({program})" in caught.value.message
        assert why in caught.value.message and hint in (caught.value.hint or "")


# -- apprise


class Receiver(http.server.ThreadingHTTPServer):
    """Takes what apprise's `json://` posts."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), _Post)
        self.url = f"json://user:secret@127.0.0.1:{self.server_address[1]}/"


class _Post(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.got.append(json.loads(self.rfile.read(length)))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_apprise_delivers_and_an_address_that_is_down_is_told_once_and_counted(
    watcher: Watcher, receiver: Receiver
):
    down = "json://user:secret@127.0.0.1:9/"
    daemon = watcher.start("--notify", receiver.url, "--notify", down, "--listen", 0)
    save(watcher, 1)
    (got,) = wait_until(lambda: receiver.got, "it is told")
    assert got["title"] == "model_dir: new best"
    assert got["message"].startswith("ckpt-1 (step 100) is the best")
    assert got["type"] == "success"
    log = watcher.log.read_text
    wait_until(lambda: "notification failed" in log(), "the other fails")
    port = re.search(r"listening\s.*http://127\.0\.0\.1:(\d+)", log())[1]

    def counted(outcome: str, number: str) -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        sample = rf'notifications_total{{channel="apprise",outcome="{outcome}",.*}} {number}'
        return bool(re.search(sample, text))

    wait_until(lambda: counted("sent", "1.0"), "what was sent is counted")
    wait_until(lambda: counted("failed", "[1-4].0"), "what failed is counted")
    assert log().count("notification failed") == 1
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    assert int(re.search(r"VmRSS:\s+(\d+)", status)[1]) < 60_000
    assert "secret" not in log()
    for file in watcher.database.parent.glob("*.*"):
        assert b"secret" not in file.read_bytes(), file


def test_an_address_that_apprise_does_not_know_is_refused_without_showing_it(watcher: Watcher):
    done = cli(*watcher.command("--notify", "slaak://secret-token/")[3:])
    assert done.returncode == 1
    assert "error: notify: address 1 (slaak:...) is none that apprise knows" in done.stderr
    assert "secret-token" not in done.stderr


def test_without_apprise_the_start_says_what_to_install(watcher: Watcher, tmp_path: Path):
    (tmp_path / "apprise.py").write_text("raise ImportError('not installed')\n")
    done = cli(*watcher.command("--notify", "json://127.0.0.1/")[3:], PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "hint: pip install 'checkpoint-watcher[notify]'" in done.stderr
