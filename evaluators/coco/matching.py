"""Which detection takes which object, at every IoU threshold and in every range of areas at once.

COCO's rule, pair by pair: detections choose in the order of their scores. Each takes, of the
objects that are free and overlap enough, the one that it overlaps most; one that is ignored only
where there is no other. A crowd is ignored, and never taken.

Pairs do not depend on each other: in one round the first detection of every pair chooses, in the
next the second. Only detections that overlap something take part.
"""

import numpy as np

from evaluators.coco.boxes import counted, run_starts

# What becomes of a detection: matched to nothing, to an object, or to one that is ignored.
NOTHING, OBJECT, IGNORED = range(3)
# Overlaps at once: a few dozen MiB of temporaries.
AT_ONCE = 1 << 16


class Matching:
    """Objects that are taken, and what became of each detection.

    Args:
        overlaps: the Overlaps.
        pair: the pair of each detection.
        thresholds: the IoU thresholds.
        ignored: bool [object, area range].
        crowd: bool [object].

    Attributes:
        found: indices of the detections that overlap something, ascending.
        outcomes: uint8 [detection of `found`, area range, threshold].
    """

    def __init__(self, overlaps, pair, thresholds, ignored, crowd):
        self._overlaps, self._thresholds = overlaps, thresholds
        self._ignored, self._crowd = ignored, crowd
        self._places = ignored.shape[1], len(thresholds)
        starts = run_starts(overlaps.found)
        ends = np.append(starts[1:], len(overlaps.found))
        self.found = overlaps.found[starts]
        self._taken = np.zeros((len(crowd), np.prod(self._places)), bool)
        self._outcomes = np.zeros((len(starts), np.prod(self._places)), np.uint8)
        pair = pair[self.found]
        first = 0
        while first < len(starts):
            last = np.searchsorted(starts, starts[first] + AT_ONCE)
            # To the end of a pair.
            last = np.searchsorted(pair, pair[last - 1], side="right")
            self._match(np.arange(first, last), pair[first:last], starts, ends)
            first = last
        self.outcomes = self._outcomes.reshape(len(starts), *self._places)

    def _match(self, boxes, pair, starts, ends):
        """Matches detections of whole pairs, in rounds."""
        turn = counted(pair)
        order = np.argsort(turn, kind="stable")
        boxes, turn = boxes[order], turn[order]
        begins, sizes = starts[boxes], ends[boxes] - starts[boxes]
        before = np.concatenate([[0], np.cumsum(sizes)])
        overlaps = np.arange(before[-1]) + np.repeat(begins - before[:-1], sizes)
        rounds = np.append(run_starts(turn), len(turn))
        for first, last in zip(rounds[:-1], rounds[1:]):
            part = overlaps[before[first] : before[last]]
            self._choose(boxes[first:last], part, before[first:last] - before[first])

    def _choose(self, boxes, overlaps, starts):
        """Lets detections choose, one of each pair.

        Args:
            boxes: their places in `found`.
            overlaps: indices of their overlaps.
            starts: where those of each begin.
        """
        objects, count = self._overlaps.truth[overlaps], len(overlaps)
        enough = self._overlaps.iou[overlaps, None] >= self._thresholds
        ignored = self._ignored[objects]
        # The later one of a detection is wanted more, and all that count before all ignored.
        wanted = np.arange(1, count + 1, dtype=np.int32)[:, None] + np.int32(count) * ~ignored
        free = ~self._taken[objects].reshape(count, *self._places)
        free &= enough[:, None, :]
        choice = (free * wanted[:, :, None]).reshape(count, -1)
        if len(boxes) < count:
            choice = np.maximum.reduceat(choice, starts, axis=0)
        chose = choice > 0
        self._outcomes[boxes] = IGNORED * chose.view(np.uint8) - (choice > count)
        chose = np.flatnonzero(chose)
        chosen = objects[(choice.ravel()[chose] - 1) % count]
        self._taken[chosen, chose % choice.shape[1]] = ~self._crowd[chosen]
