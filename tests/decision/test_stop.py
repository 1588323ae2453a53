"""Stopping is a pure function of rows in step order; the sentinel is its effect."""

from __future__ import annotations

import os
import random

import pytest
from decided import should_stop
from ranked import row

from watcher.decision.smooth import parse_smoothing
from watcher.decision.stop import patience_left
from watcher.decision.walk import StopPolicy, walk
from watcher.promotion.sentinel import read_sentinel, sentinel_content, write_sentinel


def ledger(*scores: float | None) -> list:
    return [row(100 * n, score) for n, score in enumerate(scores, start=1)]


def test_without_patience_nothing_stops():
    assert should_stop(ledger(*[0.1] * 50), StopPolicy()) is None


def test_no_rows_do_not_stop():
    assert should_stop([], StopPolicy(patience=1)) is None


@pytest.mark.parametrize(("evaluations", "stops"), [(3, False), (4, True)])
def test_it_stops_after_so_many_evaluations_without_improvement(evaluations, stops):
    rows = ledger(0.5, 0.4, 0.5, 0.3)[:evaluations]
    decision = should_stop(rows, StopPolicy(patience=3))
    assert (decision is not None) == stops


def test_patience_left_counts_down_to_the_stop_and_starts_anew_with_an_improvement():
    policy = StopPolicy(patience=2, patience_steps=1000)
    scores = (0.5, 0.4, 0.6, 0.5, None, 0.5, 0.5)
    left = [patience_left(walk(ledger(*scores[:n]), policy), policy) for n in range(8)]
    assert [one["evaluations"] for one in left] == [2, 2, 1, 2, 1, 1, 0, 0]
    assert [one["steps"] for one in left] == [1000, 1000, 900, 1000, 900, 900, 700, 600]
    assert patience_left(walk(ledger(0.5), StopPolicy()), StopPolicy()) == {}


def test_the_decision_names_the_best_and_the_step_that_decided():
    decision = should_stop(ledger(0.1, 0.5, 0.4, 0.3), StopPolicy(patience=2))
    assert decision is not None
    assert (decision.reason, decision.global_step) == ("patience", 400)
    assert decision.best.name == "ckpt-200"
    assert "ckpt-200 (step 200, score 0.5)" in decision.message


def test_a_gain_equal_to_min_delta_is_no_improvement():
    rows = ledger(0.5, 0.75)
    assert should_stop(rows, StopPolicy(patience=1, min_delta=0.25)) is not None
    assert should_stop(rows, StopPolicy(patience=1, min_delta=0.24)) is None


def test_small_gains_add_up_against_the_last_real_improvement():
    # Each step gains 0.02 only, but the third is 0.06 above the reference.
    rows = ledger(0.50, 0.52, 0.54, 0.56)
    assert should_stop(rows, StopPolicy(patience=3, min_delta=0.05)) is None


def test_the_best_may_be_later_than_the_last_improvement():
    decision = should_stop(ledger(0.5, 0.52, 0.51), StopPolicy(patience=2, min_delta=0.1))
    assert decision is not None
    assert decision.best.name == "ckpt-200"
    assert "since ckpt-100" in decision.message


@pytest.mark.parametrize(
    ("scores", "policy", "said"),
    [
        ((0.3, 0.3031, 0.3), {"min_delta": 0.005}, "better by 0.0031, less than min_delta 0.005"),
        ((0.5, 0.75, 0.5), {"min_delta": 0.25}, "better by 0.25, no more than min_delta 0.25"),
        ((0.5, 0.500077, 0.5), {"min_delta": 0.1}, "better by 0.000077, less than min_delta 0.1"),
        ((70.0, 68.5, 70), {"min_delta": 2, "mode": "min"}, "better by 1.5, less than min_delta 2"),
        (
            (0.5, 0.504, 0.5),
            {"min_delta": 0.01, "min_delta_relative": True},
            "better by 0.004, less than min_delta 1%, 0.005",
        ),
        (
            (0.5, 0.7, 0.5),
            {"smoothing": parse_smoothing("ema:0.9"), "min_delta": 0.2},
            "better by 0.2, but not once smoothed",
        ),
    ],
)
def test_the_message_says_why_a_later_best_is_no_improvement(scores, policy, said):
    decision = should_stop(ledger(*scores), StopPolicy(patience=2, **policy))
    assert decision is not None and decision.reason == "patience"
    assert decision.message.endswith(f"; ckpt-200 is {said}")


def test_the_message_names_no_other_best_where_there_is_none():
    decision = should_stop(ledger(0.5, 0.5, 0.4), StopPolicy(patience=2, min_delta=0.1))
    assert decision is not None and decision.message.endswith(
        "since ckpt-100 (step 100, score 0.5)"
    )


def test_mode_min_waits_for_smaller_scores():
    policy = StopPolicy(mode="min", patience=2)
    assert should_stop(ledger(0.5, 0.4, 0.3), policy) is None
    assert should_stop(ledger(0.3, 0.4, 0.5), policy) is not None


def test_it_does_not_stop_before_min_steps():
    rows = ledger(0.5, 0.4, 0.3, 0.2)
    assert should_stop(rows, StopPolicy(patience=2, min_steps=500)) is None
    assert should_stop(rows, StopPolicy(patience=2, min_steps=400)) is not None


def test_rows_that_cannot_rank_count_neither_way():
    rows = ledger(0.5, None, -1.0, float("nan"), 0.4)
    assert should_stop(rows, StopPolicy(patience=2)) is None
    assert should_stop(rows, StopPolicy(patience=1)) is not None


def test_rows_are_walked_in_step_order_however_they_come():
    rows = ledger(0.1, 0.2, 0.3, 0.4, 0.5)
    shuffled = rows[:]
    random.Random(7).shuffle(shuffled)
    assert should_stop(shuffled, StopPolicy(patience=1)) is None


def test_the_sentinel_is_read_back_as_it_was_written(tmp_path):
    decision = should_stop(ledger(0.5, 0.4), StopPolicy(patience=1))
    assert decision is not None
    content = sentinel_content(
        decision, run="id", metric="m", mode="max", created_at="2026-01-01T00:00:00.000Z"
    )
    path = tmp_path / "EARLY_STOP"
    write_sentinel(path, content)
    assert read_sentinel(path) == content
    assert [file.name for file in tmp_path.iterdir()] == ["EARLY_STOP"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_no_sentinel_reads_as_none_and_a_foreign_one_as_empty(tmp_path):
    path = tmp_path / "EARLY_STOP"
    assert read_sentinel(path) is None
    path.write_text("stop please")
    assert read_sentinel(path) == {}
    path.unlink()
    os.mkfifo(path)  # which nobody will ever write to
    assert read_sentinel(path) == {}
