"""Resolution: what an eval set tells apart, by replicates whose differences are known."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

import pytest
from ranked import row

from watcher.decision.metric import parse_metric
from watcher.decision.resolution import (
    about_min_delta,
    half_width,
    least_gain,
    paired,
    resolution,
    rule_of_thumb,
)
from watcher.decision.ties import Draws
from watcher.decision.walk import StopPolicy

MAP = "DetectionBoxes_Precision/mAP"
METRIC = parse_metric("mAP")
# From -1 to 1 evenly: 95 % of them lie between -0.95 and 0.95.
EVEN = [at / 100 - 1 for at in range(201)]


def draws(offset: float, own: float, images: int = 64) -> Draws:
    """Replicates that differ from those of `draws(0, 0)` by `offset`, give or take `own`."""
    shared = [0.3 + at % 7 / 50 for at in range(201)]
    values = array("d", (a + offset + own * b for a, b in zip(shared, EVEN, strict=True)))
    return Draws(("images-1", images), {(MAP, ""): values})


KNOWN: Mapping[int, Draws] = {
    1: draws(0.0, 0.0),
    2: draws(-0.01, 0.02),
    3: draws(-0.02, 0.02),
    4: draws(-0.03, -0.02),
}


def test_a_paired_difference_has_the_width_of_what_two_do_not_share():
    found = paired(row(2, 0.34), row(1, 0.35), KNOWN, METRIC)
    assert found is not None and found.value == pytest.approx(-0.01)
    assert (found.low, found.high) == pytest.approx((-0.029, 0.009))
    assert half_width(found) == pytest.approx(0.019)


def test_what_was_drawn_otherwise_or_not_at_all_is_not_paired():
    other = {**KNOWN, 2: draws(-0.01, 0.02, images=65)}
    assert paired(row(2, 0.34), row(1, 0.35), other, METRIC) is None
    assert paired(row(9, 0.34), row(1, 0.35), KNOWN, METRIC) is None
    assert paired(row(2, 0.34), row(1, 0.35), KNOWN, parse_metric("loss")) is None


def test_the_resolution_is_the_median_between_neighbours_and_skips_what_has_no_replicates():
    leaders = [row(1, 0.35), row(9, 0.345), row(2, 0.34), row(3, 0.33), row(4, 0.32)]
    found = resolution(leaders, KNOWN, METRIC)
    assert found is not None and (found.images, found.pairs) == (64, 3)
    # 1 and 2 differ by 0.02 of EVEN, 2 and 3 by nothing, 3 and 4 by 0.04 of it.
    assert found.half == pytest.approx(0.019)
    assert resolution(leaders[:2], KNOWN, METRIC) is None


def test_four_times_as_many_images_halve_the_rule_of_thumb():
    assert rule_of_thumb(64) == pytest.approx(0.00625)
    assert rule_of_thumb(4 * 64) == pytest.approx(rule_of_thumb(64) / 2)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (StopPolicy(min_delta=0.0), "min_delta is 0, so any gain resets patience"),
        (StopPolicy(min_delta=0.01), "min_delta (0.01) lies inside the noise"),
        (StopPolicy(min_delta=0.02), "min_delta (0.02) lies outside the noise"),
        (
            StopPolicy(min_delta=0.02, min_delta_relative=True),
            "min_delta (0.008) lies inside the noise",
        ),
    ],
    ids=["none", "inside", "outside", "relative"],
)
def test_a_min_delta_is_held_to_how_exactly_a_difference_is_known(policy: StopPolicy, said: str):
    told = about_min_delta(least_gain(policy, 0.4), 0.015, "of a and b")
    assert told.startswith(said) and "the difference of a and b is known to within 0.015" in told
