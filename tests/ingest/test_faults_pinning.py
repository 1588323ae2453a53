"""A pin is whole or it is not there, whatever trainer, rotation or damage do to the original.

The trainers here are processes that save, rotate, are killed and start over while a real daemon
pins; the damage is done to real files. CHECKPOINT_WATCHER_TORTURE_SECONDS makes the torture run
longer (20 by default).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors, write_checkpoint
from folder_source import scan
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from watching import FAKE_TRAINER, ROOT, Watcher, saves_of, wait_until

from watcher.checkpoints.bundle import verify
from watcher.checkpoints.bundle_format import OD_API
from watcher.checkpoints.pin import pin
from watcher.errors import CorruptCheckpoint, WatcherError
from watcher.ingest.gaps import missed_numbers

TRAINER = [sys.executable, str(FAKE_TRAINER)]
TORTURE_SECONDS = float(os.environ.get("CHECKPOINT_WATCHER_TORTURE_SECONDS", "20"))
ENOUGH_PINS = 5 * TORTURE_SECONDS
SIZE = 20_000


def train(model_dir: Path, *flags: object) -> subprocess.Popen[str]:
    command = [*TRAINER, str(model_dir), *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def pins_of(watcher: Watcher) -> list[Path]:
    """Prefixes of the pins that have their final name."""
    folder = watcher.database.parent / "pins"
    indexes = folder.glob("[!.]*/*.index") if folder.exists() else []
    return sorted(index.with_suffix("") for index in indexes)


def settled(watcher: Watcher) -> None:
    """Wait until the daemon has recorded all that lies in model_dir, each pin among it."""
    known: set[str] = set()

    def at_rest() -> bool:
        nonlocal known
        before = known
        rows = watcher.query("SELECT sha256 FROM checkpoints WHERE pin_path IS NOT NULL")
        known = {row["sha256"] for row in rows}
        if known == before == {prefix.parent.name for prefix in pins_of(watcher)}:
            return True
        time.sleep(1.5)
        return False

    wait_until(at_rest, "it comes to rest")


# -- 7: names used again


@pytest.mark.timeout(TORTURE_SECONDS + 180)
def test_torture_kills_and_name_reuse_never_leave_a_pin_that_is_not_whole(watcher: Watcher):
    # The evaluator is busy with the first one, so that every pin stays.
    watcher.start("--rescan-seconds", 1, STUB_SECONDS=100_000)
    wait_until(lambda: watcher.database.exists(), "the daemon runs")
    chance = random.Random(7)
    generations = checked = 0
    seen: set[Path] = set()
    deadline = time.monotonic() + TORTURE_SECONDS
    # A slow machine needs longer for as many.
    while time.monotonic() < deadline or (
        checked < ENOUGH_PINS and time.monotonic() < deadline + 60
    ):
        generations += 1
        trainer = train(
            *(watcher.model_dir, "--saves", 60, "--interval", 0.02, "--max-to-keep", 3),
            *("--forget-state", "--seed", generations, "--megabytes", 0.1),
        )
        assert trainer.stdout
        for _ in range(chance.randrange(5, 60)):
            trainer.stdout.readline()
        time.sleep(chance.uniform(0, 0.03))
        trainer.kill()
        trainer.communicate()
        for prefix in set(pins_of(watcher)) - seen:
            verify(prefix)  # raises if a byte is not what the index says
            seen.add(prefix)
            checked += 1
    settled(watcher)
    pins = pins_of(watcher)
    for prefix in pins:
        assert verify(prefix).sha256 == prefix.parent.name
    names = Counter(prefix.name for prefix in pins)
    states = Counter(row["state"] for row in watcher.query("SELECT state FROM history"))
    print(f"{generations} trainers, {len(pins)} pins, 0 corrupt, states {dict(states)}")
    assert max(names.values()) > 2, "names were used again"
    assert len(pins) >= ENOUGH_PINS
    rows = watcher.query("SELECT sha256 FROM checkpoints WHERE pin_path IS NOT NULL")
    assert {row["sha256"] for row in rows} == {prefix.parent.name for prefix in pins}


def test_pins_stay_unchanged_when_a_new_generation_rewrites_the_index_in_place(watcher: Watcher):
    watcher.start("--rescan-seconds", 1, "--top-k", -1)
    wait_until(lambda: watcher.database.exists(), "the daemon runs")
    first = Manager(watcher.model_dir)
    for step in (100, 200):
        first.save(step, model_tensors(SIZE, f"first {step}"))
    wait_until(lambda: len(pins_of(watcher)) == 2, "the first generation is pinned")
    before = {path: path.read_bytes() for path in pins_of(watcher)[0].parent.parent.glob("*/*")}
    inode = (watcher.model_dir / "ckpt-2.index").stat().st_ino
    (watcher.model_dir / "checkpoint").unlink()
    second = Manager(watcher.model_dir)
    for step in (100, 200):
        second.save(step, model_tensors(SIZE, f"second {step}"))
    assert (watcher.model_dir / "ckpt-2.index").stat().st_ino == inode
    wait_until(lambda: len(watcher.query("SELECT 1 FROM history")) == 4, "the second one too")
    assert len(pins_of(watcher)) == 4
    assert {path: path.read_bytes() for path in before} == before
    rows = watcher.query("SELECT checkpoint, sha256 FROM history")
    assert [row["checkpoint"] for row in rows] == ["ckpt-1", "ckpt-2", "ckpt-1", "ckpt-2"]
    assert len({row["sha256"] for row in rows}) == 4


# -- 8: deletion races


def test_a_save_every_50_ms_that_keeps_one_is_pinned_or_recorded_as_missed(watcher: Watcher):
    watcher.start(STUB_SECONDS=100_000)
    wait_until(lambda: watcher.status().get("worker") == "ready", "the daemon is ready")
    saves = 100
    flags = ("--interval", 0.05, "--max-to-keep", 1, "--no-untrained-first")
    trainer = train(watcher.model_dir, "--saves", saves, *flags)
    trainer.communicate()
    newest = f"ckpt-{saves}"
    wait_until(lambda: newest in watcher.states(), "the last one is recorded")
    rows = watcher.query("SELECT checkpoint, state, sha256, reason FROM history")
    seen = Counter(name for row in rows for name in saves_of(row["checkpoint"]))
    assert seen == Counter(f"ckpt-{number}" for number in range(1, saves + 1))
    pinned = {prefix.parent.name for prefix in pins_of(watcher)}
    for row in rows:
        if row["state"] == "missed":
            assert "rotated away" in row["reason"]
        else:
            assert row["state"] in ("pending", "leased") and row["sha256"] in pinned
    for prefix in pins_of(watcher):
        verify(prefix)


def test_while_it_is_stopped_saves_are_missed_and_said_to_be_across_generations(watcher: Watcher):
    """Of each of 3 generations under the same names there is a row that tells of each save."""
    daemon = watcher.start("--rescan-seconds", 0.5, STUB_SECONDS=100_000)
    wait_until(lambda: watcher.status().get("worker") == "ready", "the daemon is ready")
    told = "SELECT sum(saves) AS n FROM checkpoints"
    for generation in range(3):
        (watcher.model_dir / "checkpoint").unlink(missing_ok=True)
        manager = Manager(watcher.model_dir, max_to_keep=1)
        for number in range(1, 13):
            if number == 4:
                os.kill(daemon.pid, 19)
            manager.save(100 * number, model_tensors(SIZE, f"{generation} {number}"))
            if number == 9:
                os.kill(daemon.pid, 18)
            if number in (1, 2, 3, 9, 10, 11, 12):
                count = generation * 12 + number
                wait_until(
                    lambda count=count: watcher.query(told)[0]["n"] == count,
                    f"{count} rows",
                )
    rows = watcher.query("SELECT checkpoint, state FROM history")
    names = [f"ckpt-{number}" for number in range(1, 13)]
    assert [name for row in rows for name in saves_of(row["checkpoint"])] == names * 3
    missed = [row["checkpoint"] for row in rows if row["state"] == "missed"]
    assert missed == ["ckpt-4..ckpt-8"] * 3
    reason = "5 checkpoints: saved and rotated away while nobody looked"
    assert watcher.query("SELECT DISTINCT reason FROM history WHERE state = 'missed'") == [
        {"reason": reason}
    ]


def test_what_came_and_went_before_the_first_that_was_seen_is_missed_as_events_tell(
    watcher: Watcher,
):
    daemon = watcher.start()
    wait_until(lambda: watcher.status().get("worker") == "ready", "the daemon is ready")
    daemon.send_signal(signal.SIGSTOP)
    manager = Manager(watcher.model_dir, max_to_keep=1)
    for step in (100, 200, 300):
        manager.save(step, model_tensors(SIZE, str(step)))
    daemon.send_signal(signal.SIGCONT)
    wait_until(lambda: watcher.states().get("ckpt-3") == "scored", "the last one is scored")
    rows = watcher.query("SELECT checkpoint, state, reason FROM history")
    reason = "2 checkpoints: saved and rotated away while nobody looked"
    assert [tuple(row.values()) for row in rows] == [
        ("ckpt-1..ckpt-2", "missed", reason),
        ("ckpt-3", "scored", None),
    ]


def test_a_trainer_that_counts_on_from_another_folder_has_missed_nothing(watcher: Watcher):
    watcher.start()
    wait_until(lambda: watcher.status().get("worker") == "ready", "the daemon is ready")
    write_checkpoint(watcher.model_dir, "ckpt-38", 3800, model_tensors(SIZE, "38"))
    wait_until(lambda: watcher.states() == {"ckpt-38": "scored"}, "it is scored, and alone")


@pytest.mark.parametrize(
    ("last", "seen", "present", "missed"),
    [
        (5, 6, {6}, []),
        (5, 9, {8, 9}, [range(6, 8)]),
        (5, 12, {3, 8, 9, 12, 14}, [range(6, 8), range(10, 12)]),
        (7, 1, {1, 7}, []),
        (7, 3, {3, 7}, [range(1, 3)]),
        (7, 4, {3, 4, 7}, []),
        (7, 7, {7}, [range(1, 7)]),
        (1, 5000, {5000}, [range(2, 5000)]),
    ],
)
def test_saves_between_two_that_were_seen_are_counted(
    last: int, seen: int, present: set[int], missed: list[range]
):
    assert missed_numbers(last, seen, present) == missed


def test_one_that_waited_in_vain_and_was_rotated_away_is_missed_once(watcher: Watcher):
    watcher.start("--rescan-seconds", 0.5)
    wait_until(lambda: watcher.status().get("worker") == "ready", "the daemon is ready")
    manager = Manager(watcher.model_dir, max_to_keep=1)
    manager.save(100, model_tensors(SIZE, "1"))
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "ckpt-1 is scored")
    manager.save(200, model_tensors(SIZE, "2"), index_pause=1.0)  # ckpt-2 seen half-written
    data = watcher.model_dir / "ckpt-2.data-00000-of-00001"
    if "ckpt-2" not in watcher.states():
        data.write_bytes(b"damaged")
    manager.save(300, model_tensors(SIZE, "3"))
    wait_until(lambda: watcher.states().get("ckpt-3") == "scored", "ckpt-3 is scored")
    wait_until(lambda: "ckpt-2" in watcher.states(), "what became of ckpt-2 is recorded")
    time.sleep(1)
    rows = watcher.query("SELECT checkpoint FROM history ORDER BY checkpoint")
    assert [row["checkpoint"] for row in rows] == ["ckpt-1", "ckpt-2", "ckpt-3"]


# -- 10: damage


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def damage_all_kinds(model_dir: Path) -> dict[str, str]:
    """Eight checkpoints, each with damage of its own; returns what the reason must say."""
    told = {}

    def made(number: int, reason: str, **options: object) -> tuple[Path, Path]:
        name = f"ckpt-{number}"
        tensors = model_tensors(SIZE, f"{number}")
        write_checkpoint(model_dir, name, 100 * number, tensors, **options)
        told[name] = reason
        shards = options.get("shards", 1)
        return model_dir / f"{name}.index", model_dir / f"{name}.data-00000-of-{shards:05d}"

    _, data = made(1, "bytes, ")
    data.write_bytes(data.read_bytes()[:-7])
    _, data = made(2, "bytes, ")
    data.write_bytes(b"")
    _, data = made(3, "fails its checksum")
    flip(data, 5000)
    _, data = made(4, "bytes, ")
    data.write_bytes(data.read_bytes() + b"\0")
    _, data = made(5, "shard is missing", shards=2)
    data.unlink()
    _, data = made(6, "shard is missing", shards=2)
    data.rename(data.with_name("ckpt-6.data-00000-of-00003"))
    index, _ = made(7, "")
    index.write_bytes(index.read_bytes()[:-100])
    index, _ = made(8, "")
    index.write_bytes(b"")
    index, _ = made(9, "")
    flip(index, 40)
    index, _ = made(10, "")
    index.write_bytes(os.urandom(2000))
    return told


def test_every_kind_of_damage_is_corrupt_with_its_reason_and_never_promoted(watcher: Watcher):
    told = damage_all_kinds(watcher.model_dir)
    write_checkpoint(watcher.model_dir, "ckpt-11", 50, model_tensors(SIZE, "whole"))
    for _ in range(2):  # once more from the start: nothing is recorded twice
        assert watcher.run("--grace-seconds", 1, "--top-k", -1) == 0
        rows = watcher.query("SELECT checkpoint, state, reason FROM history")
        assert len(rows) == 11
        states = {row["checkpoint"]: (row["state"], row["reason"]) for row in rows}
        for name, reason in told.items():
            assert states[name][0] == "corrupt"
            assert reason in states[name][1] and len(states[name][1]) > 10
        assert watcher.leaderboard() == ["ckpt-11"]
        assert watcher.evaluations() == ["ckpt-11"]
    assert {path.name for path in pins_of(watcher)} == {"ckpt-11"}


def test_a_large_damaged_checkpoint_is_read_a_few_times_and_then_never_again(
    watcher: Watcher, tmp_path: Path
):
    megabytes = 40
    tensors = model_tensors(megabytes * 1_000_000, "large")
    write_checkpoint(watcher.model_dir, "ckpt-1", 100, tensors)
    flip(watcher.model_dir / "ckpt-1.data-00000-of-00001", megabytes * 1_000_000 // 2)
    daemon = watcher.start("--grace-seconds", 3, "--rescan-seconds", 0.2)
    wait_until(lambda: watcher.states().get("ckpt-1") == "corrupt", "the verdict")
    manager = Manager(tmp_path / "unrelated")
    read = bytes_read(daemon.pid)
    # Half of it is read before the damage is met; the delays between the attempts double.
    assert read < 10 * megabytes * 1_000_000
    for step in (1, 2, 3):
        write_checkpoint(watcher.model_dir, f"ckpt-{step + 1}", step, model_tensors(SIZE, step))
        time.sleep(0.5)
    assert bytes_read(daemon.pid) - read < megabytes * 1_000_000 // 2
    assert manager.save_counter == 0


def bytes_read(pid: int) -> int:
    return int(Path(f"/proc/{pid}/io").read_text().split("rchar: ")[1].split()[0])


def test_damage_that_is_repaired_before_the_verdict_leaves_no_trace(watcher: Watcher):
    prefix = write_checkpoint(watcher.model_dir, "ckpt-1", 100, model_tensors(SIZE, "x"))
    data = prefix.with_name("ckpt-1.data-00000-of-00001")
    whole = data.read_bytes()
    data.write_bytes(whole[:1000])
    watcher.start("--grace-seconds", 30)
    wait_until(lambda: watcher.status().get("worker") == "ready", "the daemon is ready")
    time.sleep(1)
    assert watcher.states() == {}
    data.write_bytes(whole)
    wait_until(lambda: watcher.states() == {"ckpt-1": "scored"}, "it is scored")
    assert watcher.query("SELECT count(*) AS n FROM checkpoints") == [{"n": 1}]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sample")
    write_checkpoint(folder, "ckpt-3", 300, model_tensors(4000, "sample"), shards=2)
    yield folder


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_damage_is_never_pinned_as_something_else(
    sample: Path, tmp_path: Path, data: st.DataObject
):
    folder = tmp_path / "model_dir"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sample, folder)
    pins = tmp_path / "pins"
    shutil.rmtree(pins, ignore_errors=True)
    pins.mkdir()
    files = sorted(folder.glob("ckpt-3.*"))
    target = data.draw(st.sampled_from(files), label="file")
    content = target.read_bytes()
    start = data.draw(st.integers(0, len(content)), label="start")
    end = data.draw(st.integers(start, len(content)), label="end")
    target.write_bytes(content[:start] + data.draw(st.binary(max_size=40)) + content[end:])
    found = scan(folder)
    before = len(found)
    try:
        taken = pin(found[0], pins, OD_API)
    except WatcherError as error:
        assert isinstance(error, CorruptCheckpoint) and str(error).isprintable()
        assert list(pins.iterdir()) == []
    else:
        # Bytes that no checksum covers do not exist: what was pinned is the whole original.
        assert verify(taken.prefix).sha256 == taken.sha256
        assert {file.name: file.read_bytes() for file in taken.prefix.parent.iterdir()} == {
            file.name: file.read_bytes() for file in folder.glob("ckpt-3.*")
        }
    assert len(scan(folder)) == before


@pytest.mark.slow
def test_an_index_cut_at_every_length_is_never_pinned(sample: Path, tmp_path: Path):
    folder = shutil.copytree(sample, tmp_path / "model_dir")
    pins = tmp_path / "pins"
    pins.mkdir()
    index = folder / "ckpt-3.index"
    whole = index.read_bytes()
    for length in range(len(whole)):
        index.write_bytes(whole[:length])
        with pytest.raises(CorruptCheckpoint):
            pin(scan(folder)[0], pins, OD_API)
    assert list(pins.iterdir()) == []


# -- security


def test_the_database_and_the_pins_are_for_their_owner_alone(watcher: Watcher):
    os.umask(0)
    try:
        Manager(watcher.model_dir).save(100, model_tensors(SIZE, "x"))
        assert watcher.run() == 0
    finally:
        os.umask(0o022)
    state = watcher.database.parent
    assert [oct(path.stat().st_mode & 0o777) for path in (state, state / "pins")] == ["0o700"] * 2
    for file in state.iterdir():
        if file.is_file():
            assert file.stat().st_mode & 0o077 == 0, file.name


def test_a_shard_of_hostile_length_is_refused_before_it_is_copied(sample: Path, tmp_path: Path):
    folder = shutil.copytree(sample, tmp_path / "model_dir")
    pins = tmp_path / "pins"
    pins.mkdir()
    os.truncate(folder / "ckpt-3.data-00000-of-00002", 1 << 40)
    with pytest.raises(CorruptCheckpoint, match="needed"):
        pin(scan(folder)[0], pins, OD_API)


def test_no_module_starts_a_shell():
    for file in [*(ROOT / "watcher").rglob("*.py"), *(ROOT / "evaluators").rglob("*.py")]:
        text = file.read_text()
        assert "shell=True" not in text and "os.system" not in text and "os.popen" not in text
