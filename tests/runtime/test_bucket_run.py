"""A whole run on a bucket: the real daemon, real servers, and what goes wrong between them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_watcher import BucketWatcher
from buckets import KEYS, Answer, Request, Server, proxied, served
from fake_trainer import model_tensors, write_checkpoint
from watching import cli, saves_of, wait_until

from watcher.checkpoints.bundle import verify
from watcher.cli.meant import refuse_run_folder
from watcher.errors import CorruptCheckpoint, ModelDirError

pytestmark = pytest.mark.slow
BUSY = b"<Error><Code>SlowDown</Code></Error>"
EXPIRED = Answer(403, b"<Error><Code>ExpiredToken</Code></Error>")


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with served(request.param, tmp_path_factory.mktemp(request.param)) as one:
        yield one


@pytest.fixture
def watcher(server: Server, tmp_path: Path) -> Iterator[BucketWatcher]:
    with proxied(server) as run:
        one = BucketWatcher(tmp_path, run)
        yield one
        one.end()


def test_a_run_on_a_bucket_keeps_the_best_here_and_says_when_to_stop(watcher: BucketWatcher):
    watcher.save(1)
    watcher.start("--top-k", 2, "--max-steps", 300)
    watcher.scored(1)
    watcher.save(2)
    watcher.save(3)
    watcher.scored(2, 3)
    wait_until(watcher.sentinel.exists, "it says to stop")
    wait_until(lambda: "ckpt-1.index" not in watcher.best_files(), "the third best has gone")
    assert {"ckpt-2.index", "ckpt-3.index", "best.json", "checkpoint"} <= watcher.best_files()
    for name in ("ckpt-2", "ckpt-3"):
        verify(watcher.best_dir / name)
    assert {one.method for one in watcher.run_there.proxy.requests} == {"GET"}
    assert watcher.stop() == 0
    for words in ([watcher.state], [watcher.run_there.url, "--state-dir", watcher.state]):
        assert cli("best", *words, "--path").stdout.strip().endswith("state/best/ckpt-3")
        assert "ckpt-2" in cli("status", *words).stdout


def test_a_restart_goes_on_where_it_was(watcher: BucketWatcher):
    watcher.save(1)
    watcher.start()
    watcher.scored(1)
    assert watcher.stop() == 0
    watcher.save(2)
    watcher.start()
    watcher.scored(1, 2)
    assert watcher.evaluations() == ["ckpt-1", "ckpt-2"]


def test_what_was_saved_last_is_evaluated_before_a_run_that_is_asked_to_finish_ends(
    watcher: BucketWatcher,
):
    watcher.save(1)
    process = watcher.start("--poll-seconds", 600)
    watcher.scored(1)
    watcher.save(2)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0
    assert watcher.states() == {"ckpt-1": "scored", "ckpt-2": "scored"}


def test_a_run_that_ends_when_it_is_idle_waits_for_the_next_poll(watcher: BucketWatcher):
    watcher.save(1)
    assert watcher.run("--poll-seconds", 2) == 0
    assert watcher.states() == {"ckpt-1": "scored"}


def test_an_outage_that_is_longer_than_a_local_grace_does_not_end_a_run(watcher: BucketWatcher):
    watcher.save(1)
    flags = ("--exit-when-idle", 0.2, "--poll-seconds", 4, "--grace-seconds", 0.2)
    goes_on = watcher.state.with_name("go")
    process = watcher.start(*flags, STUB_WAIT="ckpt-1", STUB_WAIT_FOR=goes_on)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is evaluated")
    refused: list[str] = []

    def busy(request: Request) -> Answer | None:
        if not request.is_list or len(refused) >= 4:  # two polls, each of two tries
            return None
        refused.append(request.path)
        goes_on.touch()  # from now on there is nothing else to do
        return Answer(503, BUSY)

    watcher.run_there.proxy.fault = busy
    watcher.save(2)
    assert process.wait(60) == 0
    assert watcher.states() == {"ckpt-1": "scored", "ckpt-2": "scored"}


def test_a_run_does_not_end_as_idle_before_an_index_could_be_read(watcher: BucketWatcher):
    watcher.save(1)
    slow, goes_on = threading.Event(), watcher.state.with_name("go")

    def hold(request: Request) -> None:
        if "ckpt-2.index" in request.path:
            goes_on.touch()  # from now on there is nothing else to do
            slow.wait(6)  # the next poll would be due, and more than once

    watcher.run_there.proxy.fault = hold
    process = watcher.start("--exit-when-idle", 0.2, STUB_WAIT="ckpt-1", STUB_WAIT_FOR=goes_on)
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "it is evaluated")
    watcher.save(2)
    assert process.wait(60) == 0
    assert watcher.states() == {"ckpt-1": "scored", "ckpt-2": "scored"}


def lose_pins(watcher: BucketWatcher) -> None:
    """Have the pins deleted, and best/ with them, as a person may while nothing runs."""
    assert watcher.stop() == 0
    for folder in (watcher.state / "pins", watcher.best_dir):
        shutil.rmtree(folder, ignore_errors=True)


class Refusing:
    """Refuses what is asked of one file, until it is told to let it through."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, request: Request) -> Answer | None:
        refused = request.is_list if self.text == "list" else self.text in request.path
        return Answer(503, BUSY) if refused else None


@pytest.mark.parametrize("text", ["list", "ckpt-2.index", "ckpt-2.data-"])
def test_a_lost_pin_that_cannot_be_fetched_at_a_start_fails_no_checkpoint(
    watcher: BucketWatcher, text: str
):
    watcher.save(1)
    watcher.save(2)
    watcher.start(STUB_SECONDS=100)
    wait_until(lambda: len(watcher.states()) == 2, "both are pinned")
    lose_pins(watcher)
    watcher.run_there.proxy.fault = Refusing(text)
    watcher.start()
    if text == "list":
        wait_until(lambda: b"throttles" in watcher.log.read_bytes(), "it is told")
    else:
        wait_until(lambda: "throttles" in watcher.problem(), "it is told")
        watcher.scored(1)  # meanwhile
    assert watcher.states()["ckpt-2"] == "pending"
    watcher.run_there.proxy.fault = lambda _: None
    watcher.scored(1, 2)
    assert watcher.evaluations()[-2:] == ["ckpt-1", "ckpt-2"]
    assert not watcher.query("SELECT * FROM events WHERE kind = 'failed'")


def test_a_run_ends_with_work_left_while_a_lost_pin_cannot_be_fetched(watcher: BucketWatcher):
    watcher.save(1)
    watcher.start(STUB_SECONDS=100)
    wait_until(lambda: len(watcher.states()) == 1, "it is pinned")
    lose_pins(watcher)
    watcher.run_there.proxy.fault = Refusing("ckpt-1.data-")
    flags = ("--exit-when-idle", 0.2, "--grace-seconds", 0.2)
    assert watcher.start(*flags).wait(120) == 4
    assert watcher.states() == {"ckpt-1": "pending"}
    assert "work left (ckpt-1): cannot pin ckpt-1 again" in watcher.log.read_text()
    watcher.run_there.proxy.fault = lambda _: None
    assert watcher.run() == 0
    assert watcher.states() == {"ckpt-1": "scored"}


@pytest.mark.parametrize("text", ["list", "ckpt-2.index", "ckpt-2.data-"])
def test_a_leader_that_cannot_be_fetched_now_is_fetched_later(watcher: BucketWatcher, text: str):
    for number in (1, 2):
        watcher.save(number)
    scores = '{"ckpt-1": 0.1, "ckpt-2": 0.9}'
    watcher.start("--top-k", 1, STUB_SCORES=scores)
    watcher.scored(1, 2)
    wait_until(lambda: "ckpt-2.index" in watcher.best_files(), "it is promoted")
    lose_pins(watcher)
    watcher.run_there.proxy.fault = Refusing(text)
    watcher.start("--top-k", 1, STUB_SCORES=scores)
    wait_until(lambda: "throttles" in watcher.log.read_text(), "it is told")
    watcher.run_there.proxy.fault = lambda _: None
    wait_until(lambda: "ckpt-2.index" in watcher.best_files(), "it is promoted again")
    verify(watcher.best_dir / "ckpt-2")


def test_credentials_that_end_in_the_middle_are_one_line_of_the_status(watcher: BucketWatcher):
    watcher.save(1)
    watcher.start()
    watcher.scored(1)
    watcher.run_there.proxy.fault = lambda _: EXPIRED
    watcher.save(2)
    wait_until(lambda: "credentials have expired; renew them" in watcher.problem(), "it is told")
    said = cli("status", watcher.state).stdout
    assert said.count("credentials have expired") == 1
    # What a person asks for is carried out meanwhile.
    answer = cli("keep", watcher.run_there.url, "ckpt-1", "--state-dir", watcher.state)
    assert answer.returncode == 0, answer.stderr
    watcher.run_there.proxy.fault = lambda _: None
    watcher.scored(2)
    wait_until(lambda: not watcher.problem(), "it is over")


def test_a_bucket_that_vanishes_is_waited_for(watcher: BucketWatcher):
    watcher.save(1)
    watcher.start()
    watcher.scored(1)
    gone = b"<Error><Code>NoSuchBucket</Code></Error>"
    watcher.run_there.proxy.fault = lambda _: Answer(404, gone)
    wait_until(lambda: "there is no bucket bucket" in watcher.problem(), "it is told")
    assert set(watcher.states().values()) == {"scored"}
    watcher.run_there.proxy.fault = lambda _: None
    watcher.save(2)
    watcher.scored(1, 2)


def test_a_wrong_bucket_ends_a_start_with_what_to_do(watcher: BucketWatcher, server: Server):
    command = watcher.command()
    command[command.index(watcher.run_there.url)] = f"{server.scheme}://no-such-bucket/run"
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **KEYS})
    assert answer.returncode == 1
    assert "there is no bucket no-such-bucket" in answer.stderr
    assert "hint: is the URL right" in answer.stderr


def test_a_run_waits_for_a_trainer_that_is_yet_to_save(watcher: BucketWatcher):
    process = watcher.start("--wait-for-model-dir")
    wait_until(lambda: watcher.status().get("pid") == process.pid, "it runs")
    watcher.save(1)
    watcher.scored(1)


def test_no_second_run_is_made_in_the_state_folder_of_one_in_a_bucket(watcher: BucketWatcher):
    watcher.save(1)
    watcher.start()
    watcher.scored(1)
    for folder in (watcher.state, watcher.best_dir):
        with pytest.raises(ModelDirError) as refused:
            refuse_run_folder(str(folder), None)
        assert watcher.run_there.url in (refused.value.hint or "")


def test_a_name_that_is_used_again_is_evaluated_anew(watcher: BucketWatcher):
    watcher.save(1)
    watcher.start()
    watcher.scored(1)
    # The data first; for a while the old index lies beside them.
    tensors = model_tensors(20_000, "another life")
    again = write_checkpoint(watcher.trainer / "again", "ckpt-1", 100, tensors)
    watcher.run_there.save(again, index=False)
    polls = len(watcher.run_there.proxy.requests)
    wait_until(
        lambda: len(watcher.run_there.proxy.requests) > polls + 4, "the watcher has seen those"
    )
    watcher.run_there.save(again)
    wait_until(
        lambda: (
            watcher.query("SELECT count(*) AS n FROM history WHERE state = 'scored'")[0]["n"] == 2
        ),
        "both contents are scored",
    )
    assert "corrupt" not in {row["state"] for row in watcher.query("SELECT state FROM history")}


def test_through_all_faults_at_random_no_pin_is_torn_and_nothing_is_lost(watcher: BucketWatcher):
    """A trainer that rotates, and a server whose every third answer is spoiled in some way."""
    numbers, chance = range(1, 31), random.Random(7)
    lock = threading.Lock()
    faults = [
        lambda: Answer(503, BUSY),
        lambda: Answer(500, b"oops"),
        lambda: Answer(429, b""),
        lambda: Answer(cut_bytes=chance.randrange(5000)),
        lambda: Answer(cut_bytes=0),
        lambda: Answer(chunk_seconds=0.1),
        lambda: EXPIRED,
    ]

    def spoil(_: Request) -> Answer | None:
        with lock:
            return chance.choice(faults)() if chance.random() < 0.33 else None

    watcher.save(1)
    watcher.start("--top-k", 3)
    watcher.scored(1)
    watcher.run_there.proxy.fault = spoil
    torn: list[str] = []
    ended = threading.Event()

    def look_at_pins() -> None:
        while not ended.wait(0.01):
            with contextlib.suppress(FileNotFoundError):  # released in between
                for index in list(watcher.state.glob("pins/[!.]*/*.index")):
                    try:
                        verify(index.with_suffix(""))
                    except CorruptCheckpoint as error:
                        if index.exists():
                            torn.append(f"{index}: {error}")

    looking = threading.Thread(target=look_at_pins)
    looking.start()
    for number in numbers[1:]:
        watcher.save(number)
        if number > 6:
            watcher.run_there.rotate(f"ckpt-{number - 6}")
        ended.wait(0.25)
    watcher.run_there.proxy.fault = lambda _: None
    watcher.scored(*numbers[-6:])  # those that are there now
    ended.set()
    looking.join()
    assert not torn
    rows = watcher.query("SELECT checkpoint, state, reason FROM history")
    known = [name for row in rows for name in saves_of(row["checkpoint"])]
    assert sorted(known) == sorted(f"ckpt-{number}" for number in numbers)
    assert {row["state"] for row in rows} <= {"scored", "missed"}, rows
    assert watcher.stop() == 0  # nothing is evicted any more while it is read
    for index in watcher.best_dir.glob("*.index"):
        verify(index.with_suffix(""))
