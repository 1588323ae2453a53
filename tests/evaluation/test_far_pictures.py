"""Pictures of another host, and files that cannot be read here, cost no score and no line."""

from __future__ import annotations

import hashlib
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from watching import wait_until

from watcher import __version__
from watcher.config.devices import DeviceTable
from watcher.evaluation import frames, messages, talk
from watcher.evaluation.far import FarWorker
from watcher.evaluation.far_device import FarDevice
from watcher.evaluation.frames import Chunk, Frame, encode

HELLO = frames.Hello(
    protocol=frames.AGENT_PROTOCOL,
    watcher=__version__,
    evaluators=frames.evaluators_digest(),
    host="there",
    now=time.time(),
)
BEGAN = frames.Began(device="cpu", label="cpu", folder="/there", given="/there/given")
UP = encode(HELLO) + encode(BEGAN)
# Says what the test puts into the folder, in its order, and beats, until its input ends.
AGENT = """
import os, select, sys
folder, beat = sys.argv[1], bytes.fromhex(sys.argv[2])
number = 0
while True:
    name = f"{folder}/{number}"
    if os.path.exists(name):
        with open(name, "rb") as file:
            sys.stdout.buffer.write(file.read())
        sys.stdout.buffer.flush()
        number += 1
        continue
    if select.select([0], [], [], 0.1)[0] and not os.read(0, 1 << 20):
        break
    sys.stdout.buffer.write(beat)
    sys.stdout.buffer.flush()
"""
AFTER = messages.Phase("after")


class Host:
    """Another host, whose agent says what a test has it say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._number = folder / "said", 0
        self.folder.mkdir()
        agent = (sys.executable, "-c", AGENT, str(self.folder), encode(frames.Beat()).hex())
        table = DeviceTable(host="far-1", launcher=("env",), agent=agent)
        self.say_bytes(UP)
        self.worker = FarWorker(FarDevice(table, "python", "run"), folder / "worker.log")
        self.came: list[msgspec.Struct] = []

    def say_bytes(self, data: bytes) -> None:
        part = self.folder / "part"
        part.write_bytes(data)
        part.rename(self.folder / str(self._number))
        self._number += 1

    def say(self, *said: Frame | msgspec.Struct | tuple[Frame, bytes]) -> None:
        """Say frames, with bytes or without, and messages of a worker."""
        data = b""
        for one in said:
            if isinstance(one, tuple):
                data += encode(*one)
            elif isinstance(one, Frame):
                data += encode(one)
            else:
                data += encode(frames.Line(), msgspec.json.encode(one))
        self.say_bytes(data)

    def start(self, artefacts: Path) -> None:
        self.worker.send(messages.Start(protocol=2, kind="od-api", artefacts_dir=str(artefacts)))
        talking = self.worker._thread
        wait_until(lambda: talking._outgoing and talking._outgoing.artefacts, "it is started")

    def until(self, last: msgspec.Struct) -> list[msgspec.Struct]:
        """What comes up to a message, but for what tells that something goes on."""

        def arrives() -> bool:
            select.select(self.worker.filenos(), [], [], 1)
            self.came.extend(self.worker.receive())
            return last in self.came

        wait_until(arrives, f"{last} comes")
        return [one for one in self.came if not _is_beginning(one)]


def _is_beginning(message: msgspec.Struct) -> bool:
    if isinstance(message, messages.Phase):
        return message.name.startswith(("connecting", "starting"))
    return isinstance(message, frames.Waits | frames.Moved)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    (tmp_path / "artefacts").mkdir()
    yield made
    made.worker.kill()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def result(number: int, *pictures: bytes) -> messages.Result:
    told = [
        messages.Artefact("picture", "a", sha256(one), path=f"/there/{number}-{place}.png")
        for place, one in enumerate(pictures)
    ]
    return messages.Result(id=f"t{number}", images=1, metrics={"mAP": 0.5}, artefacts=told)


def whole(data: bytes) -> list[tuple[Frame, bytes]]:
    """The frames of a picture."""
    digest = sha256(data)
    return [(Chunk(sha256=digest), data), (Chunk(sha256=digest, last=True), b"")]


def pictures_of(message: msgspec.Struct) -> list[bytes]:
    assert isinstance(message, messages.Result)
    return [Path(str(one.path)).read_bytes() for one in message.artefacts]


def progress(number: int, done: int) -> messages.Progress:
    return messages.Progress(f"t{number}", done, 5000)


def test_while_pictures_come_slowly_the_last_word_of_how_far_others_are_is_enough(
    host: Host, tmp_path: Path
):
    host.start(tmp_path / "artefacts")
    host.say(result(1, b"png"))
    many = [progress(2, done) for done in range(3000)]
    host.say(*many, *([messages.Heartbeat()] * 2000), messages.Free("t2"))
    host.say(*whole(b"png"), AFTER)
    score, *behind = host.until(AFTER)
    assert pictures_of(score) == [b"png"]
    assert behind == [progress(2, 2999), messages.Free("t2"), AFTER]


def test_where_much_waits_behind_pictures_they_are_given_up_and_all_that_waits_comes(
    host: Host, tmp_path: Path
):
    host.start(tmp_path / "artefacts")
    behind = [messages.Free(f"t{number}") for number in range(1500)]
    host.say(result(1, b"png"), *behind, AFTER)
    score, *came = host.until(AFTER)
    assert pictures_of(score) == [] and came == [*behind, AFTER]


def test_what_comes_late_of_given_up_pictures_is_not_taken_for_those_of_the_next(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    host.start(tmp_path / "artefacts")
    monkeypatch.setattr(talk, "_FETCH_SECONDS", 1.0)
    host.say(result(1, b"late"), AFTER)
    host.until(AFTER)
    monkeypatch.setattr(talk, "_FETCH_SECONDS", 60.0)
    last = messages.Phase("last")
    gone = frames.Gone(sha256=sha256(b"late"))
    host.say(result(2, b"next"), *whole(b"late"), gone, *whole(b"next"), last)
    first, _, second, _ = host.until(last)
    assert pictures_of(first) == [] and pictures_of(second) == [b"next"]


def test_pictures_that_cannot_be_kept_here_cost_no_score_and_no_line(host: Host, tmp_path: Path):
    (tmp_path / "artefacts").rmdir()
    host.start(tmp_path / "artefacts")
    host.say(result(1, b"one", b"two"), *whole(b"one"), AFTER)
    score, *_ = host.until(AFTER)
    assert isinstance(score, messages.Result) and score.metrics == {"mAP": 0.5}
    assert pictures_of(score) == []


def test_only_the_pictures_of_the_last_few_results_stay_here(host: Host, tmp_path: Path):
    folder = tmp_path / "artefacts"
    host.start(folder)
    for number in range(10):
        host.say(result(number, b"png"), *whole(b"png"))
    host.say(AFTER)
    scores = host.until(AFTER)[:-1]
    assert len(list(folder.iterdir())) == 4
    assert all(pictures_of(score) == [b"png"] for score in scores[-4:])


def test_a_checkpoint_that_cannot_be_read_here_fails_alone_and_the_line_goes_on(
    host: Host, tmp_path: Path
):
    gone = str(tmp_path / "pins" / "gone" / "ckpt-1")
    host.worker.send(messages.Start(protocol=2, kind="od-api", check=gone))
    host.worker.send(messages.Evaluate("t1", gone))
    said = (
        f"a file for far-1 cannot be read here: [Errno 2] No such file or directory: '{gone[:-7]}'"
    )
    failed = messages.Failed("t1", "unreadable", said, permanent=False)
    assert host.until(failed) == [failed]
    host.say(AFTER)
    assert host.until(AFTER) == [failed, AFTER]
