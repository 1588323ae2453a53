"""Faults of pin, record and promote: after each of them `best/` is whole and is the top k."""

from __future__ import annotations

import mmap
import random
import shutil
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from faults import (
    EXHAUSTIVE,
    MUTATING,
    OPENING,
    Child,
    Rounds,
    check,
    in_child,
    latest,
    need_strace,
    never_looking_away,
    noted,
)
from watching import wait_until

from watcher.bundle import verify

KILLED = -9


def save(folder: Path, number: int) -> None:
    manager = Manager(folder, max_to_keep=3)
    manager.save(100 * number, model_tensors(2000, number))


def best_is_whole(rounds: Rounds) -> None:
    """What holds at every instant, before any recovery."""
    name = latest(rounds.best_dir)
    assert name is not None
    verify(rounds.best_dir / name)


@pytest.fixture(scope="module")
def full_board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a full board of two, and a checkpoint not seen yet that takes the first place."""
    folder = tmp_path_factory.mktemp("full") / "run"
    folder.mkdir()
    rounds = Rounds(folder)
    for number in range(1, 5):
        save(folder, number)
    assert in_child(rounds.whole_round) == 0
    before = check(rounds)
    for number in count(5):
        trial = folder.with_name(f"trial-{number}")
        shutil.copytree(folder, trial)
        save(trial, number)
        assert in_child(Rounds(trial).whole_round) == 0
        after = check(Rounds(trial))
        if after[0] != before[0]:  # the new one is the best, and one of two falls out
            save(folder, number)
            return folder
    raise AssertionError


def copy(base: Path, folder: Path, **options: float) -> Rounds:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    return Rounds(folder, **options)


def test_a_kill_at_every_call_that_changes_a_file_leaves_best_whole_and_is_recovered_from(
    full_board: Path, tmp_path: Path
):
    need_strace()
    for number in count(1):
        rounds = copy(full_board, tmp_path / "run")
        code = in_child(rounds.whole_round, f"signal=KILL:when={number}")
        best_is_whole(rounds)
        if code == KILLED:
            assert in_child(rounds.whole_round) == 0
        check(rounds)
        if code != KILLED:
            break
    assert code == 0 and number > 60, "strace injects nothing any more"


def test_a_kill_during_the_recovery_from_a_kill_is_recovered_from(full_board: Path, tmp_path: Path):
    need_strace()
    pairs = [(first, then) for first in range(1, 90) for then in range(1, 90)]
    if not EXHAUSTIVE:
        pairs = random.Random(23).sample(pairs, 40)
    for first, then in pairs:
        rounds = copy(full_board, tmp_path / "run")
        in_child(rounds.whole_round, f"signal=KILL:when={first}")
        best_is_whole(rounds)
        in_child(rounds.whole_round, f"signal=KILL:when={then}")
        best_is_whole(rounds)
        assert in_child(rounds.whole_round) == 0
        check(rounds)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES"])
def test_each_call_that_fails_once_leaves_best_whole_and_is_done_again(
    full_board: Path, tmp_path: Path, error: str
):
    need_strace()
    calls = OPENING if error == "EACCES" else MUTATING
    step = 1 if EXHAUSTIVE else 3
    problems = set()
    for number in count(1, step):
        rounds = copy(full_board, tmp_path / "run")
        said = mmap.mmap(-1, 4096)
        fault = f"error={error}:when={number}"
        assert in_child(partial(rounds.stubborn_round, said), fault, calls) == 0
        check(rounds)
        problems.add(noted(said))
        if number > 250:
            break
    assert len(problems) > 3, "faults are told"


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES"])
def test_a_fault_during_the_recovery_from_a_kill_is_told_and_recovered_from(
    full_board: Path, tmp_path: Path, error: str
):
    need_strace()
    chance = random.Random(error)
    for _ in range(80 if EXHAUSTIVE else 8):
        rounds = copy(full_board, tmp_path / "run")
        in_child(rounds.whole_round, f"signal=KILL:when={chance.randrange(1, 90)}")
        said = mmap.mmap(-1, 4096)
        fault = f"error={error}:when={chance.randrange(1, 60)}"
        assert in_child(partial(rounds.stubborn_round, said), fault) == 0
        best_is_whole(rounds)
        check(rounds)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES"])
def test_while_every_call_fails_the_old_best_stands_and_the_fault_is_told(
    full_board: Path, tmp_path: Path, error: str
):
    need_strace()
    for number in (1, 10, 20, 30, 40) if EXHAUSTIVE else (1, 30):
        rounds = copy(full_board, tmp_path / "run")
        before = latest(rounds.best_dir)
        said = mmap.mmap(-1, 4096)
        child = Child(partial(rounds.stubborn_round, said), f"error={error}:when={number}+")
        wait_until(lambda said=said: noted(said), f"{error} from call {number} on is told")
        time.sleep(0.1)
        best_is_whole(rounds)
        assert latest(rounds.best_dir) in (before, "ckpt-5", "ckpt-6", "ckpt-7", "ckpt-8")
        child.heal()
        assert child.wait() == 0
        check(rounds)


def test_a_reader_that_never_looks_away_never_sees_a_broken_checkpoint(tmp_path: Path):
    need_strace()
    grace = 0.15
    folder = tmp_path / "run"
    folder.mkdir()
    rounds = Rounds(folder, evict_seconds=grace)
    save(folder, 1)
    assert in_child(rounds.whole_round) == 0
    chance = random.Random(15)
    killed = 0
    with never_looking_away(rounds.best_dir, grace, tmp_path / "end"):
        for number in range(2, 300 if EXHAUSTIVE else 40):
            save(folder, number)
            when = chance.randrange(1, 80)
            killed += in_child(rounds.whole_round, f"signal=KILL:when={when}") == KILLED
            if chance.random() < 0.5:
                assert in_child(rounds.whole_round) == 0
        assert in_child(rounds.whole_round) == 0
    check(rounds)
    assert killed > 20


def test_what_left_best_stays_readable_for_a_while_and_then_goes(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    rounds = Rounds(folder, top_k=1, evict_seconds=0.3)
    with rounds.open() as store:
        stages = rounds.begin(store)
        projector = stages[1]
        previous = None
        for number in range(1, 30):
            save(folder, number)
            stages[0].look(time.time(), time.monotonic())
            rounds.score_all(store)
            projector.update(time.time())
            name = latest(rounds.best_dir)
            assert name is not None
            verify(rounds.best_dir / name)
            if previous not in (None, name):
                verify(rounds.best_dir / previous)
                break
            previous = name
        else:
            raise AssertionError("the best never changed")
        time.sleep(0.35)
        projector.update(time.time())
    check(rounds)
