"""What waits when evaluation is slower than training, and what becomes of the rest."""

from __future__ import annotations

import json
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from hypothesis import given
from hypothesis import strategies as st
from watching import Watcher, cli, wait_until

from watcher.decision.queue_policy import SPREAD_PLACES, QueuePolicy, parse_policy, parse_size, thin
from watcher.types import Queued

SIZE = 20_000


def queue(count: int, size_bytes: int = 10, first_step: int = 100) -> list[Queued]:
    return [
        Queued(n, f"ckpt-{n}", n, first_step + 100 * (n - 1), size_bytes)
        for n in range(1, count + 1)
    ]


def kept(queued: list[Queued], policy: QueuePolicy, **more: int) -> list[str]:
    gone = {skip.checkpoint.name for skip in thin(queued, policy, **more)}
    return [one.name for one in queued if one.name not in gone]


# -- the decision


def test_all_keeps_everything_while_there_is_no_limit():
    assert thin(queue(500), QueuePolicy()) == []


def test_latest_keeps_the_one_found_last():
    skips = thin(queue(4), parse_policy("latest"))
    assert [skip.checkpoint.name for skip in skips] == ["ckpt-1", "ckpt-2", "ckpt-3"]
    assert skips[0].reason == "queue policy latest: ckpt-4 is newer"


def test_every_n_goes_by_the_number_alone():
    skips = thin(queue(7), parse_policy("every-3"))
    assert kept(queue(7), parse_policy("every-3")) == ["ckpt-3", "ckpt-6"]
    assert skips[0].reason == "queue policy every-3: 1 is not a multiple of 3"


def test_spread_keeps_ten_evenly_and_the_newest():
    names = kept(queue(100), parse_policy("spread"))
    numbers = [0] + [int(name.split("-")[1]) for name in names]
    assert len(names) == SPREAD_PLACES and names[-1] == "ckpt-100"
    gaps = [after - before for before, after in pairwise(numbers)]
    assert max(gaps) <= 3 * min(gaps)


def test_beyond_the_byte_budget_it_thins_evenly_and_keeps_the_newest():
    policy = parse_policy("all", max_bytes=40)
    assert kept(queue(4), policy) == ["ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4"]
    assert kept(queue(8), policy) == ["ckpt-2", "ckpt-4", "ckpt-6", "ckpt-8"]
    assert "queue policy all: more than max_pinned_bytes (40)" in thin(queue(8), policy)[0].reason


def test_what_is_close_behind_the_last_evaluation_goes_first():
    policy = parse_policy("all", max_bytes=20)
    assert kept(queue(3, first_step=1000), policy, evaluated_step=990) == ["ckpt-2", "ckpt-3"]
    assert kept(queue(3, first_step=1000), policy, evaluated_step=0) == ["ckpt-1", "ckpt-3"]


def test_the_running_evaluation_counts_and_the_newest_stays_whatever_its_size():
    assert kept(queue(4), parse_policy("all", 40), held_bytes=20) == ["ckpt-2", "ckpt-4"]
    assert kept(queue(4), parse_policy("all", 5)) == ["ckpt-4"]


def test_after_a_new_start_of_the_trainer_the_newest_is_the_one_found_last():
    old, new = queue(5), Queued(6, "ckpt-1", 1, 100, 10)
    for policy in (parse_policy("latest"), parse_policy("all", 10)):
        skipped = [skip.checkpoint for skip in thin([*old, new], policy)]
        assert sorted(skipped, key=lambda one: one.checkpoint_id) == old


@given(
    steps=st.lists(st.integers(0, 10_000), min_size=1, max_size=60),
    sizes=st.integers(1, 50),
    limit=st.integers(1, 500),
    kind=st.sampled_from(["all", "latest", "spread", "every-2", "every-7"]),
    held=st.integers(0, 100),
)
def test_any_policy_keeps_within_its_budget_and_never_skips_the_newest(
    steps: list[int], sizes: int, limit: int, kind: str, held: int
):
    queued = [Queued(n, f"ckpt-{n}", n, step, sizes) for n, step in enumerate(steps, 1)]
    policy = parse_policy(kind, limit)
    skips = thin(queued, policy, held_bytes=held)
    ids = {skip.checkpoint.checkpoint_id for skip in skips}
    assert len(ids) == len(skips) and all(str(policy) in skip.reason for skip in skips)
    rest = [one for one in queued if one.checkpoint_id not in ids]
    assert len(rest) <= 1 or sum(one.size_bytes for one in rest) <= limit - held
    assert policy.kind == "every" or rest[-1] is queued[-1]
    assert thin(rest, policy, held_bytes=held) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20_000_000_000), ("1.5 GiB", 1610612736), ("500MB", 500_000_000), ("4096", 4096)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "1 XB", "20iB", "1e9"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(ValueError, match="expected"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "every-0", "every-", "newest", "every-x", "ALL"])
def test_what_is_no_policy_is_refused(text: str):
    with pytest.raises(ValueError, match="every-N"):
        parse_policy(text)


def test_a_wrong_policy_or_size_ends_the_start_and_names_the_rule(watcher: Watcher):
    run = ["run", watcher.model_dir, "--pipeline-config", watcher.pipeline]
    for flags, message in (
        (["--queue-policy", "some"], "queue_policy (some) is invalid: expected all, latest"),
        (["--max-pinned-bytes", "lots"], "max_pinned_bytes (lots) is invalid: expected a size"),
    ):
        answer = cli(*run, *flags)
        assert answer.returncode == 1 and message in answer.stderr


# -- the effect


def save_while_busy(
    watcher: Watcher, count: int, *flags: object, top_k: int = 2, **environment: object
) -> Path:
    """Let the evaluator be busy with ckpt-1 while `count` more arrive, until a file is there."""
    goes_on = watcher.model_dir.with_name("go")
    steer = {"STUB_WAIT": "ckpt-1", "STUB_WAIT_FOR": goes_on, **environment}
    watcher.start(*flags, "--top-k", top_k, **steer)
    manager = Manager(watcher.model_dir, max_to_keep=2)
    manager.save(100, model_tensors(SIZE, "1"))
    wait_until(lambda: watcher.states().get("ckpt-1") == "leased", "ckpt-1 is being evaluated")
    for number in range(2, count + 2):
        manager.save(100 * number, model_tensors(SIZE, f"{number}"))
        wait_until(lambda name=f"ckpt-{number}": name in watcher.states(), "it is recorded")
    return goes_on


def pins(watcher: Watcher) -> set[str]:
    folder = watcher.database.parent / "pins"
    return {path.stem for path in folder.glob("*/*.index")}


def test_latest_evaluates_only_the_newest_and_records_and_releases_the_others(watcher: Watcher):
    goes_on = save_while_busy(watcher, 5, "--queue-policy", "latest", STUB_HANG="ckpt-6")
    goes_on.touch()
    wait_until(lambda: watcher.states()["ckpt-1"] == "scored", "the first one is done")
    wait_until(lambda: watcher.states()["ckpt-6"] == "leased", "the newest is next")
    assert watcher.states() == {
        "ckpt-1": "scored",
        **{f"ckpt-{n}": "skipped" for n in range(2, 6)},
        "ckpt-6": "leased",
    }
    wait_until(lambda: pins(watcher) == {"ckpt-1", "ckpt-6"}, "the others are released")
    rows = watcher.query("SELECT reason FROM history WHERE state = 'skipped'")
    assert rows[0]["reason"] == "queue policy latest: ckpt-3 is newer"
    events = watcher.query("SELECT checkpoint FROM events WHERE kind = 'skipped'")
    assert [row["checkpoint"] for row in events] == [f"ckpt-{n}" for n in range(2, 6)]


def test_within_the_byte_budget_all_wait_and_beyond_it_they_are_thinned(watcher: Watcher):
    one = 26_000
    save_while_busy(watcher, 8, "--max-pinned-bytes", 5 * one)
    busy = "SELECT name, size_bytes FROM checkpoints WHERE state IN ('pending', 'leased')"
    waiting = wait_until(
        lambda: len(rows := watcher.query(busy)) == 5 and rows, "the last one is thinned as well"
    )
    assert sum(row["size_bytes"] for row in waiting) <= 5 * one
    assert waiting[-1]["name"] == "ckpt-9"
    wait_until(lambda: pins(watcher) == {row["name"] for row in waiting}, "pins are released")
    reasons = watcher.query("SELECT DISTINCT reason FROM history WHERE state = 'skipped'")
    assert [row["reason"] for row in reasons] == [
        f"queue policy all: more than max_pinned_bytes ({5 * one}) waited"
    ]


def test_a_backlog_ten_times_slower_than_saving_ends_with_every_one_accounted_for(
    watcher: Watcher,
):
    daemon = watcher.start("--queue-policy", "spread", STUB_SECONDS=0.5)
    wait_until(lambda: watcher.status().get("worker") == "ready", "the daemon is ready")
    manager = Manager(watcher.model_dir, max_to_keep=5)
    for number in range(1, 41):
        manager.save(100 * number, model_tensors(SIZE, f"{number}"))
        wait_until(lambda name=f"ckpt-{number}": name in watcher.states(), "it is recorded")
    daemon.send_signal(signal.SIGUSR1)
    assert daemon.wait(timeout=60) == 0
    states = watcher.states()
    assert len(states) == 40 and set(states.values()) == {"scored", "skipped"}
    assert states["ckpt-40"] == "scored"
    assert len(watcher.evaluations()) >= 10
    numbers = [int(name.split("-")[1]) for name in watcher.evaluations()]
    assert max(after - before for before, after in pairwise(sorted(numbers))) <= 12


def test_all_of_a_backlog_is_kept_by_default(watcher: Watcher):
    save_while_busy(watcher, 12)
    assert "skipped" not in watcher.states().values()
    assert len(pins(watcher)) == 13


def test_the_leaderboard_is_no_queue_when_it_is_measured_anew(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, 4):
        manager.save(100 * number, model_tensors(SIZE, f"{number}"))
    flags = ("--queue-policy", "all", "--top-k", 3)
    assert watcher.run(*flags) == 0
    flags = ("--queue-policy", "latest", "--top-k", 3, "--exit-when-idle", 1)
    goes_on = watcher.model_dir.with_name("go")
    steer = {"STUB_FINGERPRINT": "e" * 64, "STUB_WAIT": "*", "STUB_WAIT_FOR": goes_on}
    daemon = watcher.start(*flags, **steer)
    wait_until(lambda: "pending" in watcher.states().values(), "they are measured anew")
    manager.save(400, model_tensors(SIZE, "4"))
    wait_until(lambda: "ckpt-4" in watcher.states(), "it is recorded")
    goes_on.touch()
    assert daemon.wait(timeout=60) == 0
    assert watcher.states() == dict.fromkeys(["ckpt-1", "ckpt-2", "ckpt-3", "ckpt-4"], "scored")


def test_skipped_ones_stay_skipped_after_a_restart_and_their_pins_are_gone(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, 7):
        manager.save(100 * number, model_tensors(SIZE, f"{number}"))
    for policy in ("every-3", "all"):
        assert watcher.run("--queue-policy", policy) == 0
        assert [name for name, state in watcher.states().items() if state == "scored"] == [
            "ckpt-3",
            "ckpt-6",
        ]
    assert pins(watcher) == {"ckpt-3", "ckpt-6"}
    shown = cli("status", watcher.model_dir, "--json")
    assert json.loads(shown.stdout)["states"] == {"scored": 2, "skipped": 4}


def test_the_policy_can_be_set_in_a_file(watcher: Watcher, tmp_path: Path):
    config = tmp_path / "run.toml"
    config.write_text('queue_policy = "latest"\nmax_pinned_bytes = 20000000000\n')
    manager = Manager(watcher.model_dir)
    for number in range(1, 4):
        manager.save(100 * number, model_tensors(SIZE, f"{number}"))
    assert watcher.run("--config", config) == 0
    assert watcher.states() == {"ckpt-1": "skipped", "ckpt-2": "skipped", "ckpt-3": "scored"}


@pytest.mark.parametrize("policy", ["latest", "every-5"])
def test_what_retention_asks_for_is_kept_though_the_queue_policy_skips_it(
    watcher: Watcher, policy: str
):
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, 13):
        manager.save(100 * number, model_tensors(SIZE, f"{number}"))
    flags = ("--queue-policy", policy, "--keep-last", 3, "--keep-every-steps", 400, "--top-k", 1)
    for _ in range(2):  # and a restart changes nothing
        assert watcher.run(*flags) == 0
        kept = {index.stem for index in (watcher.model_dir / "kept").glob("*.index")}
        assert kept == {"ckpt-4", "ckpt-8", "ckpt-10", "ckpt-11", "ckpt-12"}
    assert watcher.states()["ckpt-11"] == "skipped"
    assert pins(watcher) == kept | set(watcher.leaderboard())


def test_what_a_person_asked_for_is_evaluated_under_any_policy(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=1)
    flags = ["--queue-policy", "latest", "--max-attempts", 1]
    for number, fault in ((1, {"STUB_EXHAUSTED": "ckpt-1"}), (2, {})):
        manager.save(100 * number, model_tensors(1000, str(number)))
        assert watcher.run(*flags, **fault) == 0
    assert watcher.states() == {"ckpt-1": "failed", "ckpt-2": "scored"}
    assert cli("requeue", watcher.model_dir, "--failed").returncode == 0
    manager.save(300, model_tensors(1000, "3"))
    assert watcher.run(*flags) == 0
    assert watcher.states() == dict.fromkeys(["ckpt-1", "ckpt-2", "ckpt-3"], "scored")


def test_what_is_kept_last_is_let_go_of_in_turn_while_no_evaluation_has_begun(watcher: Watcher):
    flags = ("--queue-policy", "latest", "--keep-last", 2)
    watcher.start(*flags, STUB_MUTE=1)
    manager = Manager(watcher.model_dir, max_to_keep=1)
    for number in range(1, 6):
        manager.save(100 * number, model_tensors(SIZE, f"{number}"))
        wait_until(lambda name=f"ckpt-{number}": name in watcher.states(), "it is recorded")
    # Who waits takes nobody's place before it is evaluated.
    last = {"ckpt-3", "ckpt-4", "ckpt-5"}
    wait_until(lambda: pins(watcher) == last, "the last two are there, and the one that waits")
