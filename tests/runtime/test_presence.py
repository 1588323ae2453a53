"""What the daemon shows of itself, and when that says that it makes no progress."""

from __future__ import annotations

from watcher.heartbeat import DEGRADATIONS, Heartbeat, stuck

WORKING = {"worker": "ready", "watch": "events", "pins": "links", "problem": None}


def test_a_loop_that_turns_when_it_meant_to_is_not_stuck():
    turned = Heartbeat(turned=100, due=110)
    assert stuck(turned, 110, 5) is None
    assert stuck(turned, 115, 5) is None


def test_a_loop_that_does_not_turn_is_stuck_once_its_patience_is_over():
    assert stuck(Heartbeat(turned=100, due=110), 116, 5) == "the loop is overdue by 6 s"


def test_a_worker_past_its_stall_limit_that_nobody_ended_is_stuck():
    waiting = Heartbeat(turned=100, due=200, worker_due=101)
    assert stuck(waiting, 105, 5) is None
    assert stuck(waiting, 107, 5) == "the worker stalled 6 s ago and is still there"


def test_it_is_ready_with_a_ready_worker_and_a_database_that_takes_what_it_records():
    assert Heartbeat(0, 0, status=WORKING).ready
    assert Heartbeat(0, 0, status={**WORKING, "worker": "evaluating"}).ready
    assert not Heartbeat(0, 0).ready
    assert not Heartbeat(0, 0, status={**WORKING, "worker": "starting"}).ready
    assert not Heartbeat(0, 0, status={**WORKING, "worker": "held back"}).ready
    assert not Heartbeat(0, 0, status={**WORKING, "worker": "probing"}).ready
    assert not Heartbeat(0, 0, status=WORKING, failure="database is locked").ready


def test_each_degradation_is_named_with_its_reason():
    assert Heartbeat(0, 0, status=WORKING).degraded == {}
    assert Heartbeat(0, 0, status=WORKING, worker_failing=1).degraded == {}
    all_of_them = Heartbeat(
        turned=0,
        due=0,
        status={
            "watch": "no inotify",
            "pins": "cross-device",
            "problem": "no space",
            "held_back": "3 in a row",
            "tensorboard": "no permission",
        },
        failure="database is locked",
        worker_failing=3,
    ).degraded
    assert set(all_of_them) == set(DEGRADATIONS)
    assert all_of_them["events"] == "polling instead: no inotify"
    assert all_of_them["worker"] == "3 workers in a row were lost"
