"""Ranking is a pure function of the rows."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.data import ScoredCheckpoint
from watcher.rank import RankPolicy, name_leaders, rank, rankable


def row(step: int, score: float | None, *, name: str | None = None) -> ScoredCheckpoint:
    return ScoredCheckpoint(
        checkpoint_id=step,
        evaluation_id=step,
        name=name or f"ckpt-{step}",
        global_step=step,
        sha256=f"{step:064x}",
        score=score,
        evaluated_at="2026-01-01T00:00:00.000Z",
    )


def steps(rows: list[ScoredCheckpoint]) -> list[int]:
    return [row.global_step for row in rows]


def test_the_largest_scores_come_first_and_the_rest_is_cut():
    rows = [row(1, 0.1), row(2, 0.3), row(3, 0.2)]
    assert steps(rank(rows, RankPolicy(top_k=2))) == [2, 3]


def test_mode_min_puts_the_smallest_first():
    rows = [row(1, 0.1), row(2, 0.3), row(3, 0.2)]
    assert steps(rank(rows, RankPolicy(mode="min", top_k=2))) == [1, 3]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_on_a_tie_the_older_checkpoint_stays(mode):
    rows = [row(3, 0.2), row(1, 0.2), row(2, 0.2)]
    assert steps(rank(rows, RankPolicy(mode=mode, top_k=2))) == [1, 2]


def test_minus_one_keeps_all_and_zero_keeps_none():
    rows = [row(n, n / 10) for n in range(1, 6)]
    assert len(rank(rows, RankPolicy(top_k=-1))) == 5
    assert rank(rows, RankPolicy(top_k=0)) == []


@pytest.mark.parametrize("score", [None, float("nan"), float("inf"), float("-inf"), -1.0])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_measured_nothing_never_takes_a_place(score, mode):
    assert not rankable(score)
    assert steps(rank([row(1, score), row(2, 0.0)], RankPolicy(mode=mode, top_k=-1))) == [2]


@given(
    st.lists(
        st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, -1.0]), st.floats()), max_size=6
    ),
    st.integers(-1, 6),
    st.sampled_from(["max", "min"]),
)
def test_the_order_of_arrival_does_not_matter_and_no_one_left_out_is_better(scores, k, mode):
    rows = [row(n, score) for n, score in enumerate(scores)]
    policy = RankPolicy(mode=mode, top_k=k)
    ranked = rank(rows, policy)
    for order in itertools.islice(itertools.permutations(rows), 24):
        assert rank(order, policy) == ranked
    left_out = [one for one in rows if rankable(one.score) and one not in ranked]
    better = max if mode == "max" else min
    for outside, inside in itertools.product(left_out, ranked):
        assert better(outside.score, inside.score) == inside.score


def test_of_two_checkpoints_with_one_name_the_later_gets_a_hash():
    ranked = [row(9, 0.9, name="ckpt-2"), row(3, 0.1, name="ckpt-2")]
    leaders = name_leaders(ranked, placed={})
    assert [leader.rank for leader in leaders] == [1, 2]
    assert [leader.name for leader in leaders] == [f"ckpt-2-{ranked[0].sha256[:8]}", "ckpt-2"]


def test_a_name_once_given_stays_and_foreign_names_are_not_taken():
    first, second = row(1, 0.5, name="ckpt-1"), row(2, 0.4, name="ckpt-7")
    placed = {first.sha256: f"ckpt-1-{first.sha256[:8]}"}
    leaders = name_leaders([first, second], placed, reserved={"ckpt-7"})
    assert [leader.name for leader in leaders] == [
        f"ckpt-1-{first.sha256[:8]}",
        f"ckpt-7-{second.sha256[:8]}",
    ]
