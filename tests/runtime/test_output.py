"""Where nothing takes what a run prints, the run goes on, and no more than lines are lost."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import subprocess
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, wait_until

from watcher.runtime.output import WaitingOutput, output_of

F_SETPIPE_SZ = 1031


class Pipe:
    """A pipe that holds a page, and an output that writes to it."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        fcntl.fcntl(self._writer, F_SETPIPE_SZ, 4096)
        self.stream = os.fdopen(self._writer, "w", encoding="utf-8")
        self.output = WaitingOutput(self.stream)
        self.output.tell_lost = lambda count: f"lost {count}\n"

    def read_until(self, last: str) -> list[str]:
        """Read up to a line of this form, and return the lines."""
        data = b""
        while not re.search(rf"(^|\n){last}\n$".encode(), data):
            data += os.read(self.reader, 1 << 16)
        return data.decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    # Whatever waits in a write fails, before another test has a pipe of this number.
    os.close(pipe.reader)
    wait_until(lambda: pipe.output.idle, "nothing waits")
    pipe.stream.close()


def test_lines_that_nothing_takes_are_dropped_and_counted_behind_those_that_waited(pipe: Pipe):
    for number in range(5000):
        pipe.output.write(f"line {number}\n")
    *lines, lost = pipe.read_until(r"lost \d+")
    assert 1000 <= len(lines) < 5000, "what a full pipe holds, and what waits"
    assert lines == [f"line {number}" for number in range(len(lines))]
    assert lost == f"lost {5000 - len(lines)}"
    wait_until(lambda: pipe.output.idle, "all is written")
    pipe.output.write("after\n")
    assert pipe.read_until("after") == ["after"]


def test_the_end_waits_for_a_reader_that_reads_and_for_no_other(pipe: Pipe):
    for number in range(900):
        pipe.output.write(f"{number}".rjust(99) + "\n")
    pipe.output.drain()
    assert not pipe.output.idle
    reading = threading.Thread(target=pipe.read_until, args=[" *899"])
    reading.start()
    wait_until(lambda: pipe.output.drain() or pipe.output.idle, "all is written")
    reading.join()


def test_lines_whose_reader_left_cost_nothing():
    pipe = Pipe()
    os.close(pipe.reader)
    for _ in range(10):
        pipe.output.write("line\n")
    wait_until(lambda: pipe.output.idle, "nothing waits")
    pipe.stream.close()


def test_a_pipe_that_others_made_unblocking_is_waited_for(pipe: Pipe):
    os.set_blocking(pipe.stream.fileno(), False)
    for number in range(900):
        pipe.output.write(f"{number}".rjust(99) + "\n")
    assert [line.strip() for line in pipe.read_until(" *899")] == list(map(str, range(900)))


def test_a_file_has_each_line_at_once(tmp_path: Path):
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        output = output_of(file)
        for number in range(5000):
            output.write(f"line {number}\n")
            output.flush()
        assert len((tmp_path / "log").read_text().splitlines()) == 5000


def takes_nothing(output: int) -> bool:
    """True while a write to a pipe or a terminal would wait."""
    return not select.select([], [output], [], 0)[1]


def fill(output: int) -> None:
    """Write to a terminal or a pipe that nobody reads until it takes nothing."""
    # Of our own, since others who write there are to wait.
    ours = os.open(f"/proc/self/fd/{output}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    for size in (4096, 1):  # a pipe that takes no page more may take some bytes
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(ours, b"." * size)
    os.close(ours)


def save(watcher: Watcher, first: int, last: int) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(first, last + 1):
        manager.save(100 * number, model_tensors(1000, f"{number}"))


def scored(watcher: Watcher) -> int:
    return list(watcher.states().values()).count("scored")


def start(watcher: Watcher, output: int, *flags: object) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        watcher.command(*flags),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "CHECKPOINT_WATCHER_TENSORBOARD": "false"},
    )
    watcher.adopt(process)
    return process


def unread(watcher: Watcher) -> tuple[subprocess.Popen[bytes], int, int]:
    """A watcher that has scored 40, and both ends of its log, which takes nothing any more."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    process = start(watcher, writer, "--log-format", "json")
    save(watcher, 1, 40)
    wait_until(lambda: scored(watcher) == 40 and takes_nothing(writer), "all are scored")
    return process, reader, writer


def test_a_log_that_nobody_reads_stops_neither_the_watcher_nor_sigterm(watcher: Watcher):
    process, reader, writer = unread(watcher)
    process.terminate()
    assert process.wait(timeout=60) == 0
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert json.loads(lines[0])["event"]


def test_an_error_that_nothing_takes_holds_up_no_end(watcher: Watcher):
    reader, writer = os.pipe()
    fill(writer)
    process = start(watcher, writer, "--metric", "mAP5O")
    save(watcher, 1, 1)
    assert process.wait(timeout=60) == 1
    process = start(watcher, writer, "--state-dir", "/proc/none")
    assert process.wait(timeout=60) == 1
    os.close(writer)
    os.close(reader)


def test_a_reader_that_reads_late_has_every_line_of_a_run_to_its_end(watcher: Watcher):
    process, reader, writer = unread(watcher)
    os.close(writer)
    found: list[str] = []

    def read() -> None:
        with os.fdopen(reader, encoding="utf-8") as file:
            found.extend(json.loads(line)["event"] for line in file)

    reading = threading.Thread(target=read)
    reading.start()
    process.terminate()
    assert process.wait(timeout=60) == 0
    reading.join()
    assert found.count("scored") == 40 and not any("lost" in event for event in found)


def test_a_terminal_that_takes_nothing_stops_neither_the_watcher_nor_sigterm(watcher: Watcher):
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 120))
    process = start(watcher, slave, "--log-format", "live")
    save(watcher, 1, 1)
    wait_until(lambda: scored(watcher) == 1, "it is at work")
    fill(slave)
    save(watcher, 2, 40)
    wait_until(lambda: scored(watcher) == 40, "all are scored")
    assert takes_nothing(slave)
    process.terminate()
    assert process.wait(timeout=60) == 0
    os.close(slave)
    os.close(master)
