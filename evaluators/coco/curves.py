"""One category's detections by falling score, counted with weights of their images.

Of all areas, and of as many detections a pair as COCO counts at most.
"""

import numpy as np

from evaluators.coco.accumulation import Ranking
from evaluators.coco.matching import NOTHING, OBJECT

AREA = 0


class Curve:
    """The detections of one category at one IoU threshold.

    Attributes:
        hits: places of the detections that found an object, ascending.
        changed: places of those that count otherwise than unmatched ones, and `change`, by what.
        upto: how many of those come up to each of `hits`.
    """

    def __init__(self, places, outcomes, inside):
        hit = outcomes == OBJECT
        # One that found an object counts whatever its area, one that found an ignored one never.
        change = hit.astype(np.int8) - ((outcomes != NOTHING) & inside[places])
        some = np.flatnonzero(change)
        self.hits, self.changed, self.change = places[hit], places[some], change[some]
        self.upto = np.searchsorted(self.changed, self.hits, side="right")


class Curves:
    """The detections of one category by falling score, of equal ones by image and rank.

    Attributes:
        image: the place of each one's image.
        inside: bool, which count while they are unmatched.
        thresholds: a Curve for each IoU threshold.
    """

    def __init__(self, image, inside, places, outcomes):
        self.image, self.inside = image, inside
        self.thresholds = [Curve(places, outcome, inside) for outcome in outcomes]


def curves_of(matched):
    """Yields the Curves of each category of a Matched, in the order of its ids."""
    found, (low, high) = matched.found, matched.params.areaRng[AREA]
    ranking = Ranking(found)
    boxes, outcomes = ranking.sort(matched.matching)
    image = found.pair[ranking.order] % max(len(matched.pairs.images), 1)
    inside = ~((found.area < low) | (found.area > high))[ranking.order]
    every = np.arange(len(matched.pairs.categories) + 1)
    bounds = np.searchsorted(found.category[ranking.order], every)
    parts = np.searchsorted(found.category[boxes], every)
    for category in every[:-1]:
        some = slice(*bounds[category : category + 2])
        part = slice(*parts[category : category + 2])
        places = ranking.place[boxes[part]] - bounds[category]
        yield Curves(image[some], inside[some], places, outcomes[AREA][:, part])


def objects_of(matched):
    """Returns the image of each object that is looked for, an array for each category."""
    kept = ~matched.ignored[:, AREA]
    category, image = np.divmod(matched.objects.pair[kept], max(len(matched.pairs.images), 1))
    bounds = np.searchsorted(category, np.arange(1, len(matched.pairs.categories)))
    return np.split(image, bounds)[: len(matched.pairs.categories)]
