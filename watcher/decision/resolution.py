"""Resolution: what gap between two scores an eval set can tell apart, by their replicates. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from watcher.decision.metric import Metric
from watcher.decision.ties import Difference, Draws, paired
from watcher.decision.walk import StopPolicy
from watcher.types import ScoredCheckpoint

# Of the difference of two neighbouring leaders in mAP, the half width of its interval was so much
# over the root of the number of images: 0.0065 of 64 images on the demo. Between a third of that (a
# training that had come to its end) and five times as much (checkpoints less alike) was seen.
_RULE = 0.05


class Resolution(msgspec.Struct, frozen=True):
    """What an eval set can tell apart.

    Attributes:
        half: The median half width of the paired intervals of leaders next to each other.
        images: Of the eval set.
        pairs: How many pairs there were.
    """

    half: float
    images: int
    pairs: int


def half_width(one: Difference) -> float:
    """Return how far from the middle of a difference's interval its ends are."""
    return (one.high - one.low) / 2


def resolution(
    leaders: Sequence[ScoredCheckpoint], draws: Mapping[int, Draws], metric: Metric
) -> Resolution | None:
    """Return what the eval set tells apart, None where no two leaders can be paired.

    Args:
        leaders: The best evaluations in their order.
        draws, metric: As `paired` takes them.
    """
    known = [row for row in leaders if row.evaluation_id in draws]
    found = [paired(one, other, draws, metric) for one, other in pairwise(known)]
    halves = [half_width(one) for one in found if one is not None]
    if not halves:
        return None
    images = draws[known[0].evaluation_id].identity[1]
    return Resolution(statistics.median(halves), images, len(halves))


def rule_of_thumb(images: int) -> float:
    """Return about what `half` will be in mAP, before there is any evaluation."""
    return _RULE / math.sqrt(images)


def least_gain(policy: StopPolicy, reference: float) -> float:
    """Return the gain over a score that is none yet, by `min_delta`."""
    return policy.min_delta * abs(reference) if policy.min_delta_relative else policy.min_delta


def about_min_delta(gain: float, half: float, between: str) -> str:
    """Say whether the gain that patience asks for lies inside the noise.

    Args:
        gain: What `least_gain` returns.
        half: How exactly a difference is known.
        between: Which one, in words.
    """
    known = f"the difference {between} is known to within {half:.2g}"
    if gain >= half:
        return f"min_delta ({gain:.4g}) lies outside the noise: {known}"
    if not gain:
        return f"min_delta is 0, so any gain resets patience, and {known}: it may be chance"
    return f"min_delta ({gain:.4g}) lies inside the noise: {known}, so such a gain may be chance"
