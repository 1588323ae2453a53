"""Which checkpoints are averaged, and which average deserves a place."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranked import row

from watcher.decision.averages import (
    Choice,
    by_score,
    choose,
    deserving,
    next_trial,
    parse_choice,
)
from watcher.decision.ties import Difference

ROWS = [row(100, 0.2), row(200, 0.5), row(300, None), row(400, 0.4), row(500, 0.1)]


@pytest.mark.parametrize("text", ["top", "top-1", "best-3", "last-0", "top-3.5", "top-1000", ""])
def test_what_is_no_choice_is_refused_with_the_rule(text):
    with pytest.raises(ValueError, match="expected top-K or last-K with K >= 2"):
        parse_choice(text)


def test_the_top_are_those_of_the_best_scores_and_the_last_those_of_the_last_steps():
    assert [one.global_step for one in choose(ROWS, parse_choice("top-2"), "max")] == [200, 400]
    assert [one.global_step for one in choose(ROWS, parse_choice("top-2"), "min")] == [500, 100]
    assert [one.global_step for one in choose(ROWS, parse_choice("last-3"), "max")] == [
        *(200, 400, 500),
    ]
    assert len(choose(ROWS, Choice("last", 9), "max")) == 4


def test_only_the_newest_generation_is_averaged():
    anew = [dataclasses.replace(row(150, 0.1), checkpoint_id=9, generation=2)]
    assert choose([*ROWS, *anew], parse_choice("top-2"), "max") == anew


def greedy(scores: list[float], mode: str) -> list[frozenset[int]]:
    """Wortsman et al., Model soups, recipe 1, with the mean of ids as what decides."""
    sign = 1 if mode == "max" else -1
    candidates = by_score([row(n + 1, score) for n, score in enumerate(scores)], mode)
    members, best, tried = [candidates[0]], candidates[0].score, []
    for one in candidates[1:]:
        trial = [*members, one]
        tried.append(frozenset(x.checkpoint_id for x in trial))
        if sign * (of(tried[-1]) - best) >= 0:
            members, best = trial, of(tried[-1])
    return tried


def of(ids: frozenset[int]) -> float:
    return (sum(ids) * 7 % 5) / 4


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75]), min_size=2, max_size=6),
    st.sampled_from(["max", "min"]),
)
def test_greedy_tries_what_the_recipe_says_whenever_it_is_asked(scores, mode):
    candidates = by_score([row(n + 1, score) for n, score in enumerate(scores)], mode)
    tried: list[tuple[frozenset[int], float | None]] = []
    while trial := next_trial(candidates, tried, mode):
        tried.append((trial, of(trial)))
    assert [ids for ids, _ in tried] == greedy(scores, mode)


def test_a_trial_without_a_score_is_no_better():
    candidates = by_score([row(1, 0.5), row(2, 0.4), row(3, 0.3)], "max")
    assert next_trial(candidates, [(frozenset({1, 2}), None)], "max") == frozenset({1, 3})


@pytest.mark.parametrize(
    ("promote", "mode"),
    [("confirmed", "max"), ("confirmed", "min"), ("better", "max"), ("better", "min")],
)
def test_a_place_is_for_what_is_better_and_where_asked_surely_so(promote, mode):
    sign = 1 if mode == "max" else -1
    saved = [row(1, 0.5), row(2, 0.5 - 0.1 * sign)]
    sure, unsure, worse, unknown = (row(n, 0.5 + sign * gain) for n, gain in GAINS.items())
    ends = {3: (0.01, 0.2), 4: (-0.01, 0.05), 5: (-0.2, -0.1)}

    def differ(one, best):
        assert best.checkpoint_id == 1
        if one.checkpoint_id not in ends:
            return None
        low, high = sorted(sign * end for end in ends[one.checkpoint_id])
        return Difference(one.score - best.score, low, high)

    found = deserving([worse, sure, unknown, unsure], saved, promote, mode, differ)
    expected = [3] if promote == "confirmed" else [3, 4, 6]
    assert [one.checkpoint_id for one in found] == expected
    assert deserving([sure], saved, "never", mode, differ) == []
    assert deserving([sure], [], promote, mode, differ) == []


GAINS = {3: 0.1, 4: 0.02, 5: -0.15, 6: 0.01}
