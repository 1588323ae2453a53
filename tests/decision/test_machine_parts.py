"""Two machines: in which parts they differ, and whether they measured the same."""

from __future__ import annotations

import math

import pytest

from watcher.decision.machines import (
    Deviation,
    deviations_text,
    differing,
    largest,
    parts_text,
    sufficient,
)

RECORDED = {("mAP", ""): 0.5, ("Loss/total", ""): 1.25, ("AP", "cat"): None, ("AP", "dog"): 0.0}


def test_what_is_equal_to_the_last_bit_does_not_differ():
    assert differing(RECORDED, dict(RECORDED), ()) == []


@pytest.mark.parametrize("measured", [math.nan, None])
def test_no_number_is_like_no_number(measured: float | None):
    assert differing({("mAP", ""): math.nan}, {("mAP", ""): measured}, ()) == []
    assert differing({("mAP", ""): None}, {("mAP", ""): measured}, ()) == []


def test_zero_is_like_minus_zero_which_the_database_does_not_tell_apart():
    assert differing({("mAP", ""): 0.0}, {("mAP", ""): -0.0}, ()) == []


def test_one_bit_is_a_difference_and_the_largest_comes_first():
    measured = {
        **RECORDED,
        ("mAP", ""): math.nextafter(0.5, 1),
        ("Loss/total", ""): 1.5,
    }
    found = differing(RECORDED, measured, ())
    assert [(one.label, one.size) for one in found] == [("Loss/total", 0.25), ("mAP", 2**-53)]
    assert largest(found) == 0.25


def test_a_number_that_is_there_on_one_side_alone_is_beyond_every_tolerance():
    found = differing(RECORDED, {**RECORDED, ("AP", "cat"): 0.5}, ())
    assert [one.label for one in found] == ["AP[cat]"] and largest(found) == math.inf
    assert sufficient(largest(found)) is None
    assert "AP[cat] (0.5, recorded no number)" in deviations_text(found, 4)
    lacking = {key: value for key, value in RECORDED.items() if key[1] != "dog"}
    assert [one.label for one in differing(RECORDED, lacking, ())] == ["AP[dog]"]


def test_what_is_drawn_at_random_or_a_time_is_not_compared():
    assert differing(RECORDED, {**RECORDED, ("Loss/total", ""): 2.0}, {"Loss/total"}) == []
    assert differing(RECORDED, {**RECORDED, ("latency_ms", ""): 9.0}, {"latency_ms"}) == []


@pytest.mark.parametrize("size", [1.1920928955078125e-07, 2.38e-7, 0.25, 9.99e-5, 1.0])
def test_the_tolerance_that_is_named_lets_the_difference_in(size: float):
    enough = sufficient(size)
    assert enough is not None and size <= enough <= 1.2 * size


def test_of_long_lists_the_words_are_told_that_differ():
    one = {"device": "cpu", "instructions": "x86_64 avx avx2 fma"}
    other = {"device": "cpu", "instructions": "x86_64 avx avx2 avx512f fma"}
    assert parts_text(one, one) == ""
    assert parts_text(one, other) == "instructions with avx512f"
    assert parts_text(other, one) == "instructions without avx512f"
    gpu = {"device": "NVIDIA H100", "cudnn": "90300"}
    assert parts_text(one, gpu).startswith("device NVIDIA H100, not cpu; instructions not told")


def test_the_figures_are_told_by_how_much_they_differ():
    found = [Deviation("mAP", "", 0.5, 0.75), *(Deviation(f"m{n}", "", 0.0, 0.1) for n in range(4))]
    said = deviations_text(found, 9)
    assert said.startswith("5 of 9 figures differ: mAP by 0.25 (0.75, recorded 0.5), m0 by 0.1")
    assert said.endswith(" and 2 more")
