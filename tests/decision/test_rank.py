"""Ranking is a pure function of the rows."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from decided import rank
from hypothesis import given
from hypothesis import strategies as st
from ranked import row, steps

from watcher.decision.metric import parse_directed, parse_metric
from watcher.decision.rank import RankPolicy, Veto, judge, name_leaders, rankable
from watcher.types import ScoredCheckpoint


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


def measured(step: int, score: float | None, **values: float | None) -> ScoredCheckpoint:
    found = {(name, ""): value for name, value in values.items()}
    return dataclasses.replace(row(step, score), values=found)


def test_equal_scores_are_decided_by_the_tie_break_metrics_in_turn_and_then_by_the_step():
    rows = [
        measured(1, 0.5, a=0.1, b=9.0),
        measured(2, 0.5, a=0.2, b=9.0),
        measured(3, 0.5, a=0.2, b=3.0),
        measured(4, 0.5, a=None, b=1.0),
        measured(5, 0.6, a=0.0, b=0.0),
    ]
    policy = RankPolicy(top_k=-1, tie_break=(parse_directed("a"), parse_directed("b:min")))
    assert steps(rank(rows, policy)) == [5, 3, 2, 1, 4]


def test_ties_newest_puts_the_later_step_first():
    rows = [row(1, 0.2), row(3, 0.2), row(2, 0.2)]
    assert steps(rank(rows, RankPolicy(ties="newest"))) == [3, 2, 1]


VETO = Veto(parse_metric("person"), "max", 0.02)


def test_a_candidate_that_lost_too_much_of_a_named_metric_is_vetoed_with_the_reason():
    rows = [measured(1, 0.30, person=0.50), measured(2, 0.40, person=0.45)]
    ranking = judge(rows, RankPolicy(veto=(VETO,)))
    assert steps(ranking.leaders) == [1]
    ((vetoed, why),) = ranking.vetoed
    assert vetoed.global_step == 2
    assert "person (0.45) is 0.05 worse than that of ckpt-1 (0.5), and 0.02 is allowed" in why


def test_a_drop_that_is_allowed_and_a_metric_nobody_has_veto_nothing():
    rows = [measured(1, 0.30, person=0.50), measured(2, 0.40, person=0.48)]
    assert steps(rank(rows, RankPolicy(veto=(Veto(parse_metric("person"), "max", 0.03),)))) == [
        2,
        1,
    ]
    rows = [row(1, 0.3), row(2, 0.4)]
    assert steps(rank(rows, RankPolicy(veto=(VETO,)))) == [2, 1]


def test_where_the_best_has_the_metric_a_candidate_without_it_is_vetoed():
    rows = [measured(1, 0.30, person=0.50), measured(2, 0.40, person=-1.0)]
    assert steps(rank(rows, RankPolicy(veto=(VETO,)))) == [1]


def test_a_board_without_places_has_no_leaders_under_a_veto_either():
    rows = [measured(1, 0.30, person=0.50), measured(2, 0.40, person=0.45)]
    ranking = judge(rows, RankPolicy(veto=(VETO,), top_k=0))
    assert (ranking.leaders, ranking.vetoed) == ((), ())


def test_the_incumbent_decides_also_when_what_it_once_beat_is_older():
    rows = [measured(3, 0.45, person=0.30), measured(4, 0.40, person=0.50)]
    assert steps(judge(rows, RankPolicy(veto=(VETO,)), incumbent=4).leaders) == [4]
    assert steps(judge(rows, RankPolicy(veto=(VETO,))).leaders) == [3, 4]


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.sampled_from([0.0, 0.1, 0.2, None])),
        min_size=1,
        max_size=7,
    ),
    st.integers(1, 4),
    st.integers(0, 7),
)
def test_under_a_veto_no_leader_is_worse_than_the_best_by_more_and_nothing_better_is_left_out(
    figures, k, incumbent
):
    rows = [measured(n, score, person=person) for n, (score, person) in enumerate(figures)]
    policy = RankPolicy(top_k=k, veto=(Veto(parse_metric("person"), "max", 0.1),))
    ranking = judge(rows, policy, incumbent)
    best = ranking.leaders[0]
    assert all(policy.veto[0].objection(one, best) is None for one in ranking.leaders)
    free = [one for one in rows if policy.veto[0].objection(one, best) is None]
    assert list(ranking.leaders) == rank(free, RankPolicy(top_k=k))
    vetoed = {one.checkpoint_id for one, _ in ranking.vetoed}
    assert not vetoed & {one.checkpoint_id for one in ranking.leaders}
    assert judge(rows, policy, best.checkpoint_id) == ranking  # once decided, it stays
