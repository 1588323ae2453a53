"""Faults of pin, record and promote: after each of them `best/` is whole and is the top k."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from faults import (
    EXHAUSTIVE,
    MUTATING,
    OPENING,
    Call,
    Rounds,
    at,
    calls_of_a_round,
    check,
    latest,
    need_strace,
    never_looking_away,
    since,
    stubborn_round,
    whole_round,
)
from forks import Said
from watching import Watcher, wait_until

from watcher.checkpoints.bundle import verify
from watcher.errors import CorruptCheckpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # hundreds of rounds under strace

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
    assert whole_round(rounds) == 0
    before = check(rounds)
    for number in count(5):
        trial = folder.with_name(f"trial-{number}")
        shutil.copytree(folder, trial)
        save(trial, number)
        assert whole_round(Rounds(trial)) == 0
        after = check(Rounds(trial))
        if after[0] != before[0]:  # the new one is the best, and one of two falls out
            save(folder, number)
            return folder
    raise AssertionError


def copy(base: Path, folder: Path, **options: float) -> Rounds:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    return Rounds(folder, **options)


@pytest.fixture(scope="module")
def made(full_board: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The calls that change a file in the round that takes the new checkpoint in."""
    need_strace()
    return calls_of_a_round(copy(full_board, tmp_path_factory.mktemp("calls") / "run"))


def test_a_kill_at_every_call_that_changes_a_file_leaves_best_whole_and_is_recovered_from(
    full_board: Path, made: list[Call], tmp_path: Path
):
    killed = 0
    for call in made:
        rounds = copy(full_board, tmp_path / "run")
        code = whole_round(rounds, at(call, "signal=KILL"))
        best_is_whole(rounds)
        if code == KILLED:
            killed += 1
            assert whole_round(rounds) == 0, call
        check(rounds)
    names = {name for name, _ in made}
    assert {"link", "rename", "fsync", "unlink", "write", "pwrite64"} <= names
    assert killed > len(made) - 3, "a kill for each"


def test_a_kill_during_the_recovery_from_a_kill_is_recovered_from(
    full_board: Path, made: list[Call], tmp_path: Path
):
    pairs = [(first, then) for first in made for then in made]
    if not EXHAUSTIVE:
        pairs = random.Random(23).sample(pairs, 40)
    for first, then in pairs:
        rounds = copy(full_board, tmp_path / "run")
        whole_round(rounds, at(first, "signal=KILL"))
        best_is_whole(rounds)
        whole_round(rounds, at(then, "signal=KILL"))
        best_is_whole(rounds)
        assert whole_round(rounds) == 0
        check(rounds)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES"])
def test_each_call_that_fails_once_leaves_best_whole_and_is_done_again(
    full_board: Path, made: list[Call], tmp_path: Path, error: str
):
    calls, step = (OPENING, 7) if error == "EACCES" else (MUTATING, 3)
    if error == "EACCES":
        made = calls_of_a_round(copy(full_board, tmp_path / "run"), calls)
    problems = set()
    for call in made if EXHAUSTIVE else made[::step]:
        rounds = copy(full_board, tmp_path / "run")
        said = tmp_path / "said"
        fault = at(call, f"error={error}")
        assert stubborn_round(rounds, said, [fault], calls).wait() == 0, call
        check(rounds)
        problems.add(str(Said(said)))
    assert len(problems) > 3, "faults are told"


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES"])
def test_a_fault_during_the_recovery_from_a_kill_is_told_and_recovered_from(
    full_board: Path, made: list[Call], tmp_path: Path, error: str
):
    chance = random.Random(error)
    for _ in range(80 if EXHAUSTIVE else 8):
        rounds = copy(full_board, tmp_path / "run")
        whole_round(rounds, at(chance.choice(made), "signal=KILL"))
        said = tmp_path / "said"
        fault = at(chance.choice(made), f"error={error}")
        assert stubborn_round(rounds, said, [fault]).wait() == 0
        best_is_whole(rounds)
        check(rounds)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EACCES"])
def test_while_every_call_fails_the_old_best_stands_and_the_fault_is_told(
    full_board: Path, made: list[Call], tmp_path: Path, error: str
):
    for share in (0, 0.2, 0.4, 0.6, 0.8) if EXHAUSTIVE else (0, 0.6):
        rounds = copy(full_board, tmp_path / "run")
        before = latest(rounds.best_dir)
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        place = int(share * len(made))
        child = stubborn_round(rounds, said, since(made, place, f"error={error}"))
        wait_until(lambda said=said: str(Said(said)), f"{error} from call {place} on is told")
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
    assert whole_round(rounds) == 0
    save(folder, 2)
    made = calls_of_a_round(rounds)
    chance = random.Random(15)
    killed = 0
    with never_looking_away(rounds.best_dir, grace, tmp_path / "end"):
        for number in range(3, 300 if EXHAUSTIVE else 40):
            save(folder, number)
            kill = at(chance.choice(made), "signal=KILL")
            killed += whole_round(rounds, kill) == KILLED
            if chance.random() < 0.5:
                assert whole_round(rounds) == 0
        assert whole_round(rounds) == 0
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
            stages[0].write_down(time.time())
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


def test_a_best_folder_that_cannot_be_made_is_told_in_status_and_made_when_it_can(
    watcher: Watcher,
):
    save(watcher.model_dir, 1)
    watcher.best_dir.write_text("a file where the folder belongs")
    watcher.start("--rescan-seconds", 0.5)
    wait_until(lambda: watcher.states().get("ckpt-1") == "scored", "evaluation goes on")
    wait_until(lambda: "File exists" in (watcher.status().get("problem") or ""), "status says so")
    assert watcher.leaderboard() == [], "nothing is said to be promoted that is not"
    save(watcher.model_dir, 2)
    wait_until(lambda: watcher.states().get("ckpt-2") == "scored", "evaluation goes on")
    watcher.best_dir.unlink()
    wait_until(lambda: watcher.leaderboard() == ["ckpt-2", "ckpt-1"], "made by itself")
    assert latest(watcher.best_dir) == "ckpt-2"
    wait_until(lambda: watcher.status()["problem"] is None, "the problem is gone")


def remove_all(best_dir: Path) -> None:
    """At once, by a rename: file by file the daemon would put new ones in meanwhile."""
    shutil.rmtree(best_dir.rename(best_dir.with_name("removed")))


EDITS = {
    "data removed": lambda best: (best / f"ckpt-3{DATA}").unlink(),
    "index removed": lambda best: (best / "ckpt-3.index").unlink(),
    "data replaced": lambda best: rewrite(best / f"ckpt-3{DATA}", bytes),
    "data cut": lambda best: rewrite(best / f"ckpt-3{DATA}", lambda size: b"x" * (size // 2)),
    "index replaced": lambda best: rewrite(best / "ckpt-3.index", bytes),
    "index is a link": lambda best: relink(best / "ckpt-3.index"),
    "state file replaced": lambda best: rewrite(best / "checkpoint", lambda _: b"nonsense"),
    "state file removed": lambda best: (best / "checkpoint").unlink(),
    "board removed": lambda best: (best / "best.json").unlink(),
    "all removed": remove_all,
}
DATA = ".data-00000-of-00001"


def rewrite(path: Path, content: Callable[[int], bytes]) -> None:
    # In one step: what the daemon puts there in between is a link to the pin.
    another = path.parent.parent / "another"
    another.write_bytes(content(path.stat().st_size))
    another.replace(path)


def relink(path: Path) -> None:
    outside, link = path.parent.parent / "elsewhere", path.parent.parent / "link"
    outside.hardlink_to(path)
    link.symlink_to(outside)
    link.replace(path)


def test_whatever_a_user_does_to_best_is_repaired_from_the_pins_and_foreign_files_stay(
    watcher: Watcher,
):
    for number in range(1, 4):
        save(watcher.model_dir, number)
    watcher.start("--rescan-seconds", 0.1, "--top-k", 2)
    wait_until(lambda: watcher.states() and watcher.leaderboard() == ["ckpt-3", "ckpt-2"], "works")
    wait_until(lambda: len(watcher.best_files()) == 6, "what left is gone")
    for edit, make in EDITS.items():
        (watcher.best_dir / "notes.txt").write_text(edit)
        make(watcher.best_dir)
        wait_until(partial(repaired, watcher), f"repaired after: {edit}")
        if make is not remove_all:
            assert (watcher.best_dir / "notes.txt").read_text() == edit
    assert "notes.txt" in watcher.log.read_text()
    assert len(watcher.evaluations()) == 3


def repaired(watcher: Watcher) -> bool:
    try:
        names = [latest(watcher.best_dir), "ckpt-2"]
        steps = [verify(watcher.best_dir / name).global_step for name in names if name]
        board = json.loads((watcher.best_dir / "best.json").read_text())
    except (OSError, CorruptCheckpoint, AssertionError, IndexError):
        return False
    found = [entry["checkpoint"] for entry in board["checkpoints"]]
    link = (watcher.best_dir / "ckpt-3.index").is_symlink()
    return steps == [300, 200] and found == ["ckpt-3", "ckpt-2"] and not link


def test_a_promoted_checkpoint_damaged_together_with_its_pin_is_told_and_replaced(
    watcher: Watcher,
):
    """Written to in place: best/, the pin and the trainer's own file are one inode."""
    for number in range(1, 4):
        save(watcher.model_dir, number)
    watcher.start("--rescan-seconds", 0.1, "--top-k", 2)
    wait_until(lambda: watcher.states() and watcher.leaderboard() == ["ckpt-3", "ckpt-2"], "works")
    with (watcher.best_dir / f"ckpt-3{DATA}").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\xff\xff\xff")
    # ckpt-1 had no place and no pin any more, but the trainer still has it.
    wait_until(lambda: watcher.leaderboard() == ["ckpt-2", "ckpt-1"], "the damaged one is off it")
    assert latest(watcher.best_dir) == "ckpt-2"
    assert "and in the pins too" in watcher.log.read_text()
    wait_until(lambda: "ckpt-3.index" not in watcher.best_files(), "its files go")
    assert watcher.states()["ckpt-3"] == "scored", "its score stays in the history"
