"""What an eval set can tell apart, by replicates on the same draws."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Sequence

import msgspec
import pytest
from ranked import row

from watcher.decision.metric import parse_metric
from watcher.decision.rank import RankPolicy, judge
from watcher.decision.ties import Draws, difference, interval, standings, tie_set

MAP, MAP50 = ("DetectionBoxes_Precision/mAP", ""), ("DetectionBoxes_Precision/mAP@.50IOU", "")
COUNT = 1000


def drawn(mean: float, own: float, seed: int, shared: float = 0.03) -> list[float]:
    """Replicates: a noise that all have on the same draws, and one of its own."""
    common, alone = random.Random(0), random.Random(seed)
    return [mean + common.gauss(0, shared) + alone.gauss(0, own) for _ in range(COUNT)]


def test_the_interval_leaves_out_two_and_a_half_percent_at_each_end():
    assert interval(range(1001)) == pytest.approx((25, 975))
    assert interval([*range(1001), math.nan]) == pytest.approx((25, 975))
    assert interval([0.0, 1.0], level=0.5) == (0.25, 0.75)  # between the two, as NumPy has it
    assert interval([math.nan]) is None


def test_a_paired_difference_is_told_where_the_intervals_overlap():
    one, other = drawn(0.40, 0.001, 1), drawn(0.41, 0.001, 2)
    ends, others = interval(one), interval(other)
    assert ends and others and ends[1] > others[0]
    found = difference(other, one, 0.01)
    assert found and found.value == 0.01
    assert 0.005 < found.low < 0.01 < found.high < 0.015
    assert found.is_told


def test_a_difference_within_the_noise_cannot_be_told():
    found = difference(drawn(0.400, 0.01, 1), drawn(0.401, 0.01, 2), -0.001)
    assert found and found.low < 0 < found.high and not found.is_told


def test_of_an_evaluation_with_fewer_replicates_only_so_many_are_paired():
    one = drawn(0.4, 0.01, 1)
    assert difference(one[:10], one, 0) == difference(one, one, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_tied_are_all_that_are_not_worse_than_the_best(sign: int):
    rows = {1: drawn(0.400, 0.002, 1), 2: drawn(0.399, 0.002, 2), 3: drawn(0.300, 0.002, 3)}
    rows = {id_: [sign * value for value in values] for id_, values in rows.items()}
    mode = "max" if sign == 1 else "min"
    found = standings(rows, 1, mode, 2)
    assert [one.tied for one in found.values()] == [True, True, False]
    assert [(one.rank_low, one.rank_high) for one in found.values()] == [(1, 2), (1, 2), (3, 3)]
    assert found[1].p_best + found[2].p_best == pytest.approx(1)
    assert found[1].p_best > 0.5 and found[3].p_best == 0
    assert [one.p_top_k for one in found.values()] == [1, 1, 0]
    assert tie_set(rows, 1, mode) == {1, 2}


def test_equal_ones_share_the_places():
    rows = dict.fromkeys((1, 2, 3), [0.5] * 10)
    found = standings(rows, 1, "max", 2)
    assert [one.p_best for one in found.values()] == pytest.approx([1 / 3] * 3)
    assert [one.p_top_k for one in found.values()] == pytest.approx([2 / 3] * 3)
    assert all(one.tied for one in found.values())


def test_a_replicate_without_a_value_is_the_worst_of_all():
    rows = {1: [0.5, math.nan], 2: [0.4, 0.1]}
    found = standings(rows, 1, "max", 1)
    assert [one.p_best for one in found.values()] == [0.5, 0.5]


def test_nothing_is_said_where_the_best_has_no_replicates():
    assert standings({}, 1, "max", 3) == {}
    assert standings({2: [0.1]}, 1, "max", 3) == {}
    assert tie_set({2: [0.1]}, 1, "max") == {1}


def test_of_one_alone_there_is_nothing_to_tell():
    assert standings({1: array("d", [0.1, 0.2])}, 1, "max", 3) == {}


def test_an_expression_is_computed_replicate_by_replicate():
    draws = Draws(("images-1", 8), {MAP: [0.25, 0.5, math.nan], MAP50: [0.5, 0.75, 1.0]})
    assert draws.of(parse_metric("mAP")) == [0.25, 0.5, pytest.approx(math.nan, nan_ok=True)]
    found = draws.of(parse_metric("mAP + 2 * mAP50"))
    assert found is not None and list(found)[:2] == [1.25, 2.0] and math.isnan(found[2])


def test_an_expression_with_a_part_that_has_no_replicates_has_none():
    draws = Draws(("images-1", 8), {MAP: [0.25]})
    assert draws.of(parse_metric("mAP - 0.001 * latency_ms")) is None


# -- what counts as equal in ranking


def ranked(tied: Sequence[int], **policy: object) -> list[int]:
    rows = [row(1, 0.40), row(2, 0.42), row(3, 0.41), row(4, 0.30)]
    chosen = msgspec.structs.replace(RankPolicy(ties_by="noise"), **policy)  # type: ignore[arg-type]
    return [one.global_step for one in judge(rows, chosen, tied=tied).leaders]


def test_those_that_are_tied_go_by_age_and_the_others_stay_behind():
    ids = {one.global_step: one.evaluation_id for one in [row(n, 0.4) for n in (1, 2, 3)]}
    assert ranked([]) == [2, 3, 1]
    assert ranked(list(ids.values())) == [1, 2, 3]
    assert ranked(list(ids.values()), ties="newest") == [3, 2, 1]
    assert ranked([ids[2], ids[1]]) == [1, 2, 3]
