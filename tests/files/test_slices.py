"""Large checkpoints: the loop goes on beside them, and what was read once is not read again.

Here a turn of the loop reads a few KB and no more, so that a small file is to it what one of many
GB is on a slow disk.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_trainer import model_tensors, write_checkpoint
from faults import Rounds, fork_daemon, latest, now
from folder_source import scan, source_of
from forks import Fork
from watching import Watcher, cli, wait_until

from watcher.checkpoints import bundle, pin
from watcher.checkpoints.bundle_format import OD_API
from watcher.config import Settings
from watcher.control.channel import Request
from watcher.control.commands import Commands
from watcher.files import atomic_io as files
from watcher.files import slices
from watcher.files.slices import Job, Progress, Unfinished, Work
from watcher.ingest.intake import Intake
from watcher.promotion.projection import Projector
from watcher.store import Store

LARGE = 10_000_000
CHUNK = 256
DATA = ".data-00000-of-00001"


def save(folder: Path, number: int, size: int = 2000, **options: object) -> Path:
    tensors = model_tensors(size, str(number))
    return write_checkpoint(folder, f"ckpt-{number}", 100 * number, tensors, **options)


def refused(*_: object, **__: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def rotate_all(folder: Path) -> None:
    for file in folder.glob("ckpt-*"):
        file.unlink()


def halves(watcher: Watcher) -> set[str]:
    """Names of the shards in half-made pins."""
    return {file.name for file in watcher.database.parent.glob(f"pins/.new-*/*{DATA}")}


@contextmanager
def slow(watcher: Watcher, *flags: object) -> Iterator[Fork]:
    """The daemon, which does a step of a few hundred bytes in a turn."""
    with forked(watcher, *flags, chunk_bytes=CHUNK) as daemon:
        yield daemon


@contextmanager
def forked(watcher: Watcher, *flags: object, chunk_bytes: int = 0) -> Iterator[Fork]:
    steer = {"STUB_LOG": watcher.evaluated, "CHECKPOINT_WATCHER_TENSORBOARD": "false"}
    command = watcher.command(*flags)[2:]
    daemon = fork_daemon(command, watcher.log, steer, chunk_bytes=chunk_bytes)
    try:
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()


def bytes_read(daemon: Fork) -> int:
    text = Path(f"/proc/{daemon.pid}/io").read_text()
    return int(text.split("rchar: ")[1].split()[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_while_a_large_one_is_verified_others_are_linked_at_once_and_an_end_loses_neither(
    watcher: Watcher, number: int
):
    save(watcher.model_dir, 1, LARGE)
    with slow(watcher) as daemon:
        said = wait_until(lambda: watcher.status().get("files"), "status tells how far it is")
        assert said.startswith("verifying ckpt-1: ") and said.endswith(" of 10 MB")
        assert "verifying ckpt-1: " in cli("status", watcher.model_dir).stdout
        save(watcher.model_dir, 2)
        names = {f"ckpt-1{DATA}", f"ckpt-2{DATA}"}
        wait_until(lambda: halves(watcher) == names, "ckpt-2 is linked")
        rotate_all(watcher.model_dir)
        assert watcher.states() == {}
        daemon.kill(number)
        asked = time.monotonic()
        assert daemon.wait() == (0 if number == signal.SIGTERM else -number)
        assert time.monotonic() - asked < 60
    pins = watcher.database.parent / "pins"
    assert all(folder.name.startswith(".new-") for folder in pins.iterdir()), "nothing is half"
    assert not watcher.best_dir.exists()
    assert watcher.run("--top-k", 2) == 0
    assert watcher.leaderboard() == ["ckpt-2", "ckpt-1"], "the trainer has neither any more"
    assert not halves(watcher)


def test_exit_when_idle_waits_until_a_large_one_is_pinned_scored_and_promoted(
    watcher: Watcher, tmp_path: Path
):
    shm = Path("/dev/shm") / f"best-{os.getpid()}"
    save(watcher.model_dir, 1, LARGE // 20)
    try:
        with slow(
            watcher, "--exit-when-idle", 0, "--best-dir", shm, "--evict-seconds", 0
        ) as daemon:
            assert daemon.wait() == 0
        assert watcher.states() == {"ckpt-1": "scored"}
        assert latest(shm) == "ckpt-1"
        assert bundle.verify(shm / "ckpt-1").global_step == 100
    finally:
        shutil.rmtree(shm, ignore_errors=True)


def test_a_restart_reads_no_shard_of_what_is_promoted_unless_it_was_touched(watcher: Watcher):
    size = 20_000_000
    save(watcher.model_dir, 1, size)
    for run in ("first", "unchanged", "touched"):
        if run == "touched":
            shard = watcher.best_dir / f"ckpt-1{DATA}"
            os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
        with forked(watcher, "--top-k", 1, "--rescan-seconds", 0.2) as daemon:
            wait_until(lambda: watcher.states() and watcher.leaderboard(), "it is promoted")
            wait_until(lambda: watcher.status().get("worker") == "ready", "it is at rest")
            if run != "unchanged":
                wait_until(lambda daemon=daemon: bytes_read(daemon) > 0.9 * size, "it is read")
            time.sleep(0.5)
            if run == "unchanged":
                assert bytes_read(daemon) < size / 10
            assert watcher.leaderboard() == ["ckpt-1"]
            daemon.kill(signal.SIGTERM)
            assert daemon.wait() == 0
        rotate_all(watcher.model_dir)


def test_what_was_written_to_while_no_watcher_ran_is_noticed_at_the_next_start(watcher: Watcher):
    for number in (1, 2):
        save(watcher.model_dir, number)
    assert watcher.run("--top-k", 2) == 0
    assert watcher.leaderboard() == ["ckpt-2", "ckpt-1"]
    rotate_all(watcher.model_dir)
    with (watcher.best_dir / f"ckpt-2{DATA}").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\xff\xff\xff")
    assert watcher.run("--top-k", 2) == 0
    assert watcher.leaderboard() == ["ckpt-1"]
    assert latest(watcher.best_dir) == "ckpt-1"


# -- in this process, step by step


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call does one step, of a KB."""
    monkeypatch.setattr(slices, "SLICE_SECONDS", 0.0)
    for module, name in ((bundle, "CHUNK_BYTES"), (pin, "COPY_BYTES"), (files, "FLUSH_BYTES")):
        monkeypatch.setattr(module, name, 1024)


def look(intake: Intake) -> None:
    intake.look(now(), time.monotonic())
    intake.write_down(now())


def look_to_the_end(intake: Intake) -> int:
    """Look until nothing is left to do; returns how often."""
    looks = 1
    look(intake)
    while intake.more:
        look(intake)
        looks += 1
    return looks


def history(store: Store) -> list[tuple[str, str]]:
    rows = store.all("SELECT name, state FROM checkpoints ORDER BY id")
    return [(row["name"], row["state"]) for row in rows]


@pytest.mark.usefixtures("tiny")
def test_rows_come_in_the_order_of_the_saves_although_the_first_takes_long(tmp_path: Path):
    rounds = Rounds(tmp_path)
    with rounds.open() as store:
        intake, _ = rounds.begin(store)
        save(tmp_path, 1, 20_000)
        look(intake)
        save(tmp_path, 4)
        look(intake)
        rotate_all(tmp_path)
        assert intake.more and intake.waiting == 4 and history(store) == []
        assert look_to_the_end(intake) > 10
        expected = [("ckpt-1", "pending"), ("ckpt-2..ckpt-3", "missed"), ("ckpt-4", "pending")]
        assert history(store) == expected


@pytest.mark.usefixtures("tiny")
def test_a_large_one_that_is_damaged_at_its_end_is_corrupt_and_holds_nobody_up(tmp_path: Path):
    rounds = Rounds(tmp_path)
    data = save(tmp_path, 1, 20_000).with_name(f"ckpt-1{DATA}")
    content = bytearray(data.read_bytes())
    content[-5] ^= 1
    data.write_bytes(content)
    save(tmp_path, 2)
    with rounds.open() as store:
        intake, _ = rounds.begin(store)
        assert look_to_the_end(intake) > 10
        assert history(store) == [("ckpt-2", "pending")]
        assert list(rounds.state_dir.glob("pins/.new-*")) == []
        intake.look(now(), time.monotonic() + 6)
        while intake.more:
            intake.look(now(), time.monotonic() + 6)
        intake.write_down(now())
        assert history(store) == [("ckpt-2", "pending"), ("ckpt-1", "corrupt")]


@pytest.mark.usefixtures("tiny")
def test_what_must_be_copied_is_open_at_once_and_copied_although_it_is_rotated_away(
    tmp_path: Path,
):
    shm = Path("/dev/shm") / f"pins-{os.getpid()}"
    model_dir = tmp_path / "model_dir"
    if not shm.parent.is_dir() or shm.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    shm.mkdir()
    try:
        for number in (1, 2):
            save(model_dir, number, 5000)
        with Store(shm / "db", run="r", model_dir=model_dir, now=now()) as store:
            intake = Intake(source_of(model_dir), shm / "pins", store.queue, grace_seconds=5)
            intake.recover(now())
            look(intake)
            rotate_all(model_dir)
            look_to_the_end(intake)
            assert history(store) == [("ckpt-1", "pending"), ("ckpt-2", "pending")]
            assert intake.hints.copying
            for row in store.queue.pinned():
                assert bundle.verify(row["prefix"]).sha256 == row["sha256"]
    finally:
        shutil.rmtree(shm)


@pytest.mark.usefixtures("tiny")
def test_of_checkpoints_of_many_shards_a_few_are_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Or a process would run out of descriptors, of which 1024 are usual."""
    monkeypatch.setattr("watcher.ingest.intake._FILES_AT_ONCE", 8)
    monkeypatch.setattr("os.link", refused)
    for number in range(1, 6):
        save(tmp_path, number, 2000, shards=4)
    rounds = Rounds(tmp_path)
    with rounds.open() as store:
        intake, _ = rounds.begin(store)
        look(intake)
        opened = [one.resolve() for one in Path("/proc/self/fd").iterdir()]
        assert len([file for file in opened if file.parent == tmp_path]) == 8
        look_to_the_end(intake)
        assert len(history(store)) == 5


@pytest.mark.usefixtures("tiny")
def test_a_promotion_by_copy_names_nothing_before_it_is_whole_and_is_dropped_when_outdone(
    tmp_path: Path,
):
    best_dir = Path("/dev/shm") / f"best-{os.getpid()}"
    settings = Settings.of(
        model_dir=str(tmp_path),
        pipeline_config="none",
        best_dir=str(best_dir),
        top_k=1,
        evict_seconds=0.0,
    )
    rounds = Rounds(tmp_path, top_k=1)
    try:
        with rounds.open() as store:
            intake, _ = rounds.begin(store)
            projector = Projector(settings, store, intake.source, "run")
            scores = {}
            for number in range(1, 5):
                save(tmp_path, number, 20_000)
                look_to_the_end(intake)
                rounds.score_all(store)
                scores = {row.name: row.score for row in store.ledger.scored()}
                projector.update(now())
                leader = max(scores, key=lambda name: scores[name] or 0)
                working = {file.name.split(".")[0] for file in (best_dir / ".new").iterdir()}
                assert projector.unfinished and working == {leader}
                assert not (best_dir / "checkpoint").exists(), "it was never whole"
                assert {row["name"] for row in store.queue.pinned()} == set(scores), (
                    "none is released"
                )
            while projector.unfinished:
                projector.update(now())
            assert projector.problem is None
            assert latest(best_dir) == leader
            bundle.verify(best_dir / leader)
            assert not (best_dir / ".new").exists()
            assert [row["name"] for row in store.queue.pinned()] == [leader]
            assert {file.name.split(".")[0] for file in best_dir.glob("ckpt-*")} == {leader}
    finally:
        shutil.rmtree(best_dir, ignore_errors=True)


@pytest.mark.usefixtures("tiny")
def test_a_damaged_best_is_not_named_while_what_takes_its_place_is_read(tmp_path: Path):
    rounds = Rounds(tmp_path, top_k=1)
    for number in (1, 2):
        save(tmp_path, number, 20_000)
    with rounds.open() as store:
        intake, projector = rounds.begin(store)
        look_to_the_end(intake)
        rounds.score_all(store)
        rounds.project(projector)
        damaged = latest(rounds.best_dir)
        with (rounds.best_dir / f"{damaged}{DATA}").open("r+b") as file:
            file.seek(100)
            file.write(b"\xff\xff\xff\xff")
        projector.update(now())
        named = []
        while projector.unfinished:
            if store.one("SELECT 1 FROM events WHERE kind = 'lost'"):
                named.append(latest(rounds.best_dir))
            projector.update(now())
        assert len(named) > 5 and set(named) == {None}
        (other,) = {"ckpt-1", "ckpt-2"} - {damaged}
        assert latest(rounds.best_dir) == other
        bundle.verify(rounds.best_dir / other)


@pytest.mark.usefixtures("tiny")
def test_an_end_in_the_middle_of_a_promotion_leaves_nothing_of_it(tmp_path: Path):
    rounds = Rounds(tmp_path)
    save(tmp_path, 1, 20_000)
    with rounds.open() as store:
        intake, projector = rounds.begin(store)
        look_to_the_end(intake)
        rounds.score_all(store)
        projector.update(now())
        assert projector.unfinished and (rounds.best_dir / ".new").exists()
        projector.close()
        assert list(rounds.best_dir.iterdir()) == []


@pytest.mark.usefixtures("tiny")
def test_a_pin_that_was_deleted_is_made_again_before_anything_is_evaluated(tmp_path: Path):
    rounds = Rounds(tmp_path)
    for number in (1, 2):
        save(tmp_path, number, 10_000)
    with rounds.open() as store:
        intake, _ = rounds.begin(store)
        look_to_the_end(intake)
        pins = {row["name"]: row["prefix"] for row in store.queue.pinned()}
        for prefix in pins.values():
            shutil.rmtree(prefix.parent)
        for file in tmp_path.glob("ckpt-2.*"):
            file.unlink()
        intake, _ = rounds.begin(store)
        assert intake.recovering and not pins["ckpt-1"].parent.exists()
        while intake.recovering:
            look(intake)
        assert bundle.verify(pins["ckpt-1"]).global_step == 100
        assert history(store) == [("ckpt-1", "pending"), ("ckpt-2", "failed")]


@pytest.mark.usefixtures("tiny")
def test_what_is_linked_while_the_database_is_locked_is_taken_up_by_the_intake(tmp_path: Path):
    rounds = Rounds(tmp_path)
    with rounds.open():
        pass
    save(tmp_path, 1, 20_000)
    pins = rounds.state_dir / "pins"
    pins.mkdir()
    intake = Intake(source_of(tmp_path), pins, None, grace_seconds=5)
    look(intake)
    save(tmp_path, 2)
    look(intake)
    assert intake.more
    rotate_all(tmp_path)
    intake.close()
    with rounds.open() as store:
        intake, _ = rounds.begin(store)
        look_to_the_end(intake)
        assert history(store) == [("ckpt-1", "pending"), ("ckpt-2", "pending")]
    assert list(pins.glob(".new-*")) == []


@pytest.mark.usefixtures("tiny")
def test_what_is_taken_up_while_the_trainer_has_it_still_is_taken_from_the_pins(tmp_path: Path):
    rounds = Rounds(tmp_path)
    with rounds.open():
        pass
    damaged = save(tmp_path, 1, 20_000)
    save(tmp_path, 2, 20_000)
    pins = rounds.state_dir / "pins"
    pins.mkdir()
    intake = Intake(source_of(tmp_path), pins, None, grace_seconds=5)
    look(intake)
    intake.close()
    there = {file.name: file.stat().st_ino for file in tmp_path.iterdir()}
    with Path(f"{damaged}{DATA}").open("r+b") as file:
        file.write(b"damaged")
    with rounds.open() as store:
        intake, _ = rounds.begin(store)
        look_to_the_end(intake)
        assert history(store) == [("ckpt-2", "pending")]
        (row,) = store.queue.pinned()
        assert row["prefix"].parent.parent == pins
    assert {file.name: file.stat().st_ino for file in tmp_path.iterdir()} == there


@pytest.mark.usefixtures("tiny")
def test_a_requeue_of_large_ones_links_all_and_is_answered_when_they_are_verified(tmp_path: Path):
    rounds = Rounds(tmp_path)
    for number in (1, 2):
        save(tmp_path, number, 10_000)
    with rounds.open() as store:
        intake, _ = rounds.begin(store)
        look_to_the_end(intake)
        rounds.score_all(store)
        for row in store.queue.pinned():
            store.queue.forget_pin(row["id"])
            shutil.rmtree(row["prefix"].parent)
        orders = Commands(store, intake.source, rounds.state_dir / "pins")
        request = Request(verb="requeue", checkpoints=("ckpt-1", "ckpt-2", "ckpt-3"))
        calls = 0
        while True:
            try:
                answer = orders.carry_out(request, now(), -math.inf)
                break
            except Unfinished:
                calls += 1
                if calls == 1:
                    rotate_all(tmp_path)
        assert calls > 10
        assert [line.split(" (")[0] for line in answer.done] == ["ckpt-1", "ckpt-2"]
        assert all("waits to be evaluated anew" in line for line in answer.done)
        assert answer.refused == ("ckpt-3 is no checkpoint of this run",)
        assert history(store) == [("ckpt-1", "pending"), ("ckpt-2", "pending")]


@pytest.mark.slow
def test_a_projection_of_places_that_did_not_change_reads_none_of_their_files(tmp_path: Path):
    rounds = Rounds(tmp_path, top_k=-1)
    places = 60
    for number in range(1, places + 1):
        save(tmp_path, number)
    with rounds.open() as store:
        intake, projector = rounds.begin(store)
        assert rounds.go(store, intake, projector) is None
        rounds.project(projector)
        opened = _reads()
        projector.update(now())
        assert _reads() - opened < places
        # And yet one that a person changes is seen.
        (rounds.best_dir / "ckpt-7.index").write_bytes(b"nonsense")
        rounds.project(projector)
        assert bundle.verify(rounds.best_dir / "ckpt-7").global_step == 700


def _reads() -> int:
    return int(Path("/proc/self/io").read_text().split("syscr: ")[1].split()[0])


# -- jobs


def test_a_job_goes_on_where_it_was_and_tells_how_far_it_is():
    def work(progress: Progress) -> Work[str]:
        progress.begin("verifying ckpt-9", 16_000_000_000)
        for _ in range(3):
            progress.add(1_050_000_000)
            yield
        return "done"

    job = Job(work)
    for _ in range(3):
        with pytest.raises(Unfinished):
            job.run()
    assert str(job.progress) == "verifying ckpt-9: 3.1 of 16.0 GB"
    assert job.run() == "done"


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_pin_in_the_making_stays_for_the_next_start_or_goes_when_nobody_wants_it(
    tmp_path: Path, end: str, tiny: None
):
    save(tmp_path, 1)
    pins = tmp_path / "pins"
    pins.mkdir()
    job = Job(lambda progress: pin.pinning(scan(tmp_path)[0], pins, OD_API, None, progress))
    job.begin()
    assert [prefix.name for prefix, _ in pin.halves(pins)] == ["ckpt-1"]
    getattr(job, end)()
    assert len(list(pins.iterdir())) == (1 if end == "close" else 0)
