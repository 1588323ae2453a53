"""The line to another host: whatever comes over it is that host's trouble, and nothing more."""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hosts import processes
from watching import ROOT, wait_until

from watcher import __version__
from watcher.config.devices import DeviceTable
from watcher.errors import WatcherError, WorkerError, WorkerRefused
from watcher.evaluation import far, frames, messages, talk
from watcher.evaluation.far import FarWorker
from watcher.evaluation.far_device import FarDevice
from watcher.evaluation.frames import LineError, Parser, encode
from watcher.evaluation.line import Broken, FrameLine

HELLO = frames.Hello(
    protocol=frames.AGENT_PROTOCOL,
    watcher=__version__,
    evaluators=frames.evaluators_digest(),
    host="there",
    now=time.time(),
)
BEGAN = frames.Began(device="cpu", label="cpu")
UP = encode(HELLO) + encode(BEGAN)
# Says what it is given, and goes on until its input ends.
SAYS = "import os, sys; os.write(1, open(sys.argv[1], 'rb').read()); sys.stdin.buffer.read()"


def spoken(tmp_path: Path, data: bytes, **table: object) -> FarWorker:
    """A worker whose agent says these bytes."""
    file = tmp_path / "said"
    file.write_bytes(data)
    agent = (sys.executable, "-c", SAYS, str(file))
    made = DeviceTable(host="far-1", launcher=("env",), agent=agent, **table)  # type: ignore[arg-type]
    return FarWorker(FarDevice(made, "python", "run"), tmp_path / "worker.log")


def outcome(worker: FarWorker) -> WatcherError:
    """What the line ends with."""
    ended: list[WatcherError] = []

    def ends() -> bool:
        select.select(worker.filenos(), [], [], 1)
        try:
            list(worker.receive())
        except WatcherError as error:
            ended.append(error)
        return bool(ended)

    try:
        wait_until(ends, "the line ends")
    finally:
        worker.kill()
    return ended[0]


WRONG = {
    "a greeting": b"Welcome to far-1, last login yesterday\n",
    "an endless line": b"x" * (frames.HEADER_BYTES + 1),
    "no object": b"[1, 2, 3]\n",
    "an unknown frame": b'{"type": "sudo"}\n',
    "no text": b'\xff\xfe{"type": "hello"}\n',
    "deep": b"[" * 60_000 + b"\n",
    "a size below zero": UP + b'{"type": "line", "size": -1}\n',
    "a size beyond all": UP + b'{"type": "line", "size": 99999999999}\n',
    "a line before its time": encode(frames.Line(), b"{}"),
    "a beat before its time": encode(frames.Beat()),
    "two greetings": encode(HELLO) + encode(HELLO),
    "begun twice": UP + encode(BEGAN),
    "a wait after it began": UP + encode(frames.Waits(reason="no")),
    "what only home says": encode(HELLO) + b'{"type": "calm"}\n',
    "a worker's garbage": UP + encode(frames.Line(), b"Accumulating evaluation results..."),
    "a wrong worker's message": UP + encode(frames.Line(), b'{"type": "ready"}'),
    "negative memory": encode(HELLO) + b'{"type": "beat", "resident_bytes": -5}\n',
    "a long reason": encode(HELLO) + encode(frames.Ended(reason="x" * 5000)),
    "a number for a text": encode(HELLO) + b'{"type": "ended", "reason": 7}\n',
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_frame_is_a_trouble_of_that_host_that_names_it(tmp_path: Path, what: str):
    error = outcome(spoken(tmp_path, WRONG[what]))
    assert isinstance(error, WorkerError) and "far-1" in error.message
    assert len(error.message) < 1000 and "\n" not in error.message


@pytest.mark.parametrize("seed", range(6))
def test_a_line_with_bytes_changed_at_random_never_ends_otherwise(tmp_path: Path, seed: int):
    drawn = random.Random(seed)
    ready = {"type": "ready", "fingerprint": "f", "images": 1, "metrics": []}
    good = UP + encode(frames.Line(), msgspec.json.encode(ready)) + encode(frames.Ended(reason="x"))
    for _ in range(10):
        data = bytearray(good)
        for _ in range(drawn.randrange(1, 6)):
            place = drawn.randrange(len(data))
            data[place : place + drawn.randrange(3)] = drawn.randbytes(drawn.randrange(3))
        error = outcome(spoken(tmp_path, bytes(data) + b"\n" * (64 << 10)))
        assert isinstance(error, WorkerError | WorkerRefused), data


def test_a_host_that_never_answers_is_given_up_after_its_time(tmp_path: Path):
    error = outcome(spoken(tmp_path, b"", connect_timeout=0.5))
    assert error.message == "far-1 cannot be reached: no agent answered within 0.5 s"


def test_a_host_that_falls_silent_is_given_up(tmp_path: Path):
    before = time.monotonic()
    error = outcome(spoken(tmp_path, UP))
    assert error.message == "far-1 has said nothing for 9 s"
    assert time.monotonic() - before > 8.5


def taken(worker: FarWorker) -> list[msgspec.Struct]:
    """All that a worker says before its line ends, and waits for that."""
    wait_until(lambda: worker._shared.failure, "it ended")
    came = []
    with contextlib.suppress(WorkerError):
        for one in worker.receive():
            came.append(one)
    worker.kill()
    return came


def test_what_came_before_the_end_is_taken_first(tmp_path: Path):
    phase = messages.Phase("building the model")
    said = [frames.Line(), frames.Ended(reason="the worker is gone")]
    data = UP + encode(said[0], msgspec.json.encode(phase)) + encode(said[1])
    assert taken(spoken(tmp_path, data))[-1] == phase
    assert outcome(spoken(tmp_path, data)).message == "on far-1, the worker is gone"


def test_an_average_is_not_asked_of_another_host_and_its_files_are_not_taken_for_ours(
    tmp_path: Path,
):
    can = messages.Capabilities(overlap=True, jobs=("evaluate", "average"))
    ready = messages.Ready(fingerprint="f", images=1, metrics=[], capabilities=can)
    told = messages.Artefact("picture", "a", "0" * 64, path="/etc/passwd")
    result = messages.Result(id="1", images=1, metrics={}, artefacts=[told])
    lines = [encode(frames.Line(), msgspec.json.encode(one)) for one in (ready, result)]
    data = UP + b"".join(lines) + encode(frames.Ended(reason="x"))
    said = {type(one): one for one in taken(spoken(tmp_path, data))}
    assert said[messages.Ready].capabilities.jobs == ("evaluate",)
    assert said[messages.Result].artefacts == []


def test_a_score_does_not_wait_for_pictures_that_do_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Longer than from one beat to the next: those of this side are no sign of a picture.
    monkeypatch.setattr(talk, "_FETCH_SECONDS", 5.0)
    began = frames.Began(device="cpu", label="cpu", folder="/there", given="/there/given")
    told = messages.Artefact("picture", "a", "0" * 64, path="/there/1.png")
    result = messages.Result(id="1", images=1, metrics={"mAP": 0.5}, artefacts=[told])
    after = messages.Phase("after")
    lines = [encode(frames.Line(), msgspec.json.encode(one)) for one in (result, after)]
    said = {"first": encode(HELLO) + encode(began), "then": b"".join(lines)}
    for name, data in {**said, "beat": encode(frames.Beat())}.items():
        (tmp_path / name).write_bytes(data)
    beating = (
        "import os, sys, time\n"
        "first, then, beat = (open(name, 'rb').read() for name in sys.argv[1:])\n"
        "os.write(1, first); time.sleep(1); os.write(1, then)\n"
        "while True: time.sleep(1); os.write(1, beat)"
    )
    files = [str(tmp_path / name) for name in ("first", "then", "beat")]
    agent = (sys.executable, "-c", beating, *files)
    table = DeviceTable(host="far-1", launcher=("env",), agent=agent)
    worker = FarWorker(FarDevice(table, "python", "run"), tmp_path / "worker.log")
    (tmp_path / "artefacts").mkdir()
    worker.send(
        messages.Start(protocol=2, kind="od-api", artefacts_dir=str(tmp_path / "artefacts"))
    )
    came: list[msgspec.Struct] = []

    def arrives() -> bool:
        select.select(worker.filenos(), [], [], 1)
        came.extend(worker.receive())
        return after in came

    try:
        wait_until(arrives, "the score and what comes after it")
    finally:
        worker.kill()
    (score,) = (one for one in came if isinstance(one, messages.Result))
    assert score.metrics == {"mAP": 0.5} and score.artefacts == []
    # Nor do they keep leases: it moves for what was read at the start, and for what was asked.
    assert sum(isinstance(one, frames.Moved) for one in came) <= 2


# -- the agent, by what home says


@pytest.fixture
def agent() -> Iterator[subprocess.Popen[bytes]]:
    """An agent of this machine."""
    process = subprocess.Popen(
        [sys.executable, "-m", "watcher", "agent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("what", WRONG)
def test_an_agent_ends_quietly_whatever_it_is_told(agent: subprocess.Popen[bytes], what: str):
    _, errors = agent.communicate(WRONG[what], timeout=60)
    assert agent.returncode == 0 and b"Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("python", "/no/such/python", b"cannot start the interpreter /no/such/python"),
        ("folder", "/no/such/folder", b"working_directory (/no/such/folder) is not a folder there"),
    ],
)
def test_an_agent_says_what_is_not_there(
    agent: subprocess.Popen[bytes], tmp_path: Path, field: str, value: str, said: bytes
):
    known = {"protocol": 1, "watcher": "x", "evaluators": "x", "device": "cpu", "python": "python3"}
    known |= {"cache": str(tmp_path / "cache"), "cache_bytes": 1000}
    assert agent.stdin and agent.stdout
    agent.stdin.write(encode(frames.Open(**{**known, field: value})))
    agent.stdin.flush()
    assert said in agent.stdout.read()
    assert agent.wait(60) == 0


def test_an_agent_started_by_hand_says_what_it_is_for():
    main, inner = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "watcher", "agent"],
        stdin=inner,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    os.close(main)
    os.close(inner)
    assert done.returncode == 2 and b"is started by a watcher on another host" in done.stderr


# -- frames and lines


def test_frames_are_read_whatever_pieces_they_come_in():
    body = os.urandom(70_000)
    data = encode(HELLO) + encode(frames.Line(), body) + encode(frames.Beat())
    for step in (1, 7, 1000, len(data)):
        parser, got = Parser(frames.HOME_READS), []
        for start in range(0, len(data), step if step > 1 else 997):
            got += parser.feed(data[start : start + (step if step > 1 else 997)])
        assert [type(frame) for frame, _ in got] == [frames.Hello, frames.Line, frames.Beat]
        assert got[1][1] == body


def test_a_frame_longer_than_its_limit_is_refused_before_it_is_kept():
    with pytest.raises(LineError):
        list(Parser(frames.HOME_READS).feed(b'{"type":"line","size":16777217}\n'))


def test_a_beat_passes_between_bulky_frames_and_a_full_line_gets_none():
    reading, writing = os.pipe()
    back, _back = os.pipe()
    line = FrameLine(back, writing, frames.HOME_READS, 0.0)
    line.bulk.append(iter([encode(frames.Line(), bytes(1 << 20))] * 3))
    line.write()
    line.beat(1.0, 3.0, frames.Beat())
    assert line.beaten == len(encode(frames.Beat()))
    said, got = Parser(frames.HOME_READS), []
    os.set_blocking(reading, False)
    while len(got) < 4:
        with contextlib.suppress(BlockingIOError):
            got += said.feed(os.read(reading, 1 << 20))
        line.write()
    assert [type(frame) for frame, _ in got] == [
        *(frames.Line, frames.Beat, frames.Line, frames.Line),
    ]
    os.close(reading)
    line.send(frames.Beat())
    with pytest.raises(Broken):
        line.write()
    for descriptor in (writing, back, _back):
        os.close(descriptor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "told"),
    [
        # As srun, which gives its job back before it ends.
        ("trap 'sleep 0.5; echo given back > told; exit' TERM; read line", "given back"),
        # A script whose own end says nothing of what it has started.
        (
            'sh -c \'trap "sleep 0.5; echo given back > told; exit" TERM;'
            " echo up > up; while :; do sleep 0.05; done' & wait",
            "given back",
        ),
        ("trap '' TERM; echo deaf > told; while :; do sleep 0.05; done", "deaf"),
    ],
    ids=["launcher", "script", "deaf"],
)
def test_a_launcher_is_asked_to_end_and_killed_with_all_it_started_if_it_does_not(
    program: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(far, "_LAUNCHER_SECONDS", 2.0)
    monkeypatch.chdir(tmp_path)
    launcher = ("sh", "-c", f"echo up > up; {program}", str(tmp_path))
    table = DeviceTable(host="far-1", device="cpu", launcher=launcher)
    worker = FarWorker(FarDevice(table, "run", "watcher"), tmp_path / "log")
    wait_until((tmp_path / "up").exists, "it is started")
    time.sleep(0.3)
    worker.kill()
    assert worker.ending
    worker.ending.join()
    assert (tmp_path / "told").read_text().strip() == told
    wait_until(lambda: not Path(f"/proc/{worker.pid}").exists(), "it has been waited for")
    assert not processes("sh", str(tmp_path))
