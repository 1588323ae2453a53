"""Precision and recall of all images together, from what became of each detection.

COCO walks down the detections of a category by their scores, and keeps of the precision at each
the highest that follows. Between two objects that are found precision only falls. So it is
computed where one is found alone, however many detections there are.
"""

import numpy as np

from evaluators.coco.boxes import ordered, run_starts
from evaluators.coco.matching import NOTHING, OBJECT


class Ranking:
    """The detections of every category by falling score; of equal ones by image and rank.

    Args:
        found: Boxes of the detections.

    Attributes:
        order: the detections, one category after another.
        place: where in it each detection is.
    """

    def __init__(self, found):
        self.order = ordered(-found.last, found.category)
        self.place = np.empty(len(found), np.int64)
        self.place[self.order] = np.arange(len(found))

    def sort(self, matching):
        """Returns (detections, outcomes) of a Matching in the order of the ranking.

        Outcomes are [area range, threshold, detection].
        """
        order = np.argsort(self.place[matching.found])
        outcomes = np.moveaxis(matching.outcomes[order], 0, -1)
        return matching.found[order], np.ascontiguousarray(outcomes)


def accumulate(found, matching, objects, params):
    """Returns COCOeval's arrays of precision and recall.

    Args:
        found: Boxes of the detections.
        matching: their Matching.
        objects: int [category, area range], those that are not ignored.
        params: COCOeval's parameters.
    """
    shape = len(params.iouThrs), len(objects), len(params.recThrs)
    ranges = len(params.areaRng), len(params.maxDets)
    precision, recall = np.empty((*ranges, *shape)), np.empty((*ranges, *shape[:2]))
    ranking = Ranking(found)
    boxes, outcomes = ranking.sort(matching)
    for area, (low, high) in enumerate(params.areaRng):
        inside = ~((found.area < low) | (found.area > high))
        for number, most in enumerate(params.maxDets):
            kept = np.flatnonzero(found.rank[boxes] < most)
            counts = inside & (found.rank < most)
            curves = Curves(found.category, ranking, counts, inside, boxes[kept], objects[:, area])
            for threshold, outcome in enumerate(outcomes[area]):
                recall[area, number, threshold] = curves.draw(
                    outcome[kept], params.recThrs, precision[area, number, threshold]
                )
        # Of each the highest that follows.
        backwards = precision[area, ..., ::-1]
        np.maximum.accumulate(backwards, axis=-1, out=backwards)
        for values in (precision, recall):
            values[area, :, :, objects[:, area] == 0] = -1  # where there is nothing to find
    return precision.transpose(2, 4, 3, 0, 1), recall.transpose(2, 3, 0, 1)


class Curves:
    """Precision against recall in one range of areas, with at most so many detections a pair.

    Args:
        category: the category of each detection.
        ranking: the Ranking of all.
        counts: bool [detection], which count while they are unmatched.
        inside: bool [detection], which have an area of the range.
        boxes: the detections that may be matched, of so many a pair, in the order of the ranking.
        objects: how many objects each category has.
    """

    def __init__(self, category, ranking, counts, inside, boxes, objects):
        self._objects = objects
        self._category, self._inside = category[boxes], inside[boxes]
        every = np.arange(len(objects))
        self._begins = np.searchsorted(self._category, every)
        so_far = np.cumsum(counts[ranking.order])
        before = np.concatenate([[0], so_far])[np.searchsorted(category, every)]
        # Those that count were they all unmatched, up to and with each.
        self._unmatched = so_far[ranking.place[boxes]] - before[self._category]

    def draw(self, outcomes, recalls, curve):
        """Draws the curves of one IoU threshold, and returns the recall of each category in all.

        Args:
            outcomes: what became of the detections.
            recalls: where precision is asked for, ascending.
            curve: [category, recall]; gets the highest precision up to the next of the recalls.
        """
        hit = outcomes == OBJECT
        # One that found an object counts whatever its area, one that found an ignored one never.
        change = hit.astype(np.int8) - ((outcomes != NOTHING) & self._inside)
        change = np.concatenate([[0], np.cumsum(change, dtype=np.int64)])
        hits = np.flatnonzero(hit)
        category = self._category[hits]
        counted = self._unmatched[hits] + change[hits + 1] - change[self._begins[category]]
        count = np.bincount(category, minlength=len(self._objects))
        before = np.cumsum(count) - count
        right = np.arange(1, len(hits) + 1) - before[category]
        # COCOeval's order of operations, to the last bit.
        precision = right / ((counted - right).astype(float) + right + np.spacing(1))
        reached = np.searchsorted(recalls, right / self._objects[category], side="right")
        # Ascending, as both of what it is made of.
        place = category * len(recalls) + reached - 1
        starts = run_starts(place)
        curve[:] = 0
        if len(starts):
            curve.ravel()[place[starts]] = np.maximum.reduceat(precision, starts)
        return count / np.maximum(self._objects, 1)
