"""Which detections and objects of one pair overlap enough to be matched, and how much."""

import functools

import numpy as np
from pycocotools import mask as mask_tools

from evaluators.coco.boxes import Boxes, Pairs

# Comparisons at once: a few MiB of temporaries of boxes; of masks, which are compared under
# Python's lock, well below a millisecond.
BOXES_AT_ONCE, MASKS_AT_ONCE = 1 << 18, 1 << 8


class Overlaps:
    """Overlaps of at least some IoU: arrays `found` and `truth` (indices of boxes), and `iou`.

    In the order of the detections, and of one detection from the least wanted to the most: by IoU,
    of equal ones by the ground truth's order.
    """

    def __init__(self, parts):
        self.found, self.truth, self.iou = (
            np.concatenate([part[field] for part in parts] or [np.empty(0, kind)])
            for field, kind in enumerate((np.int64, np.int64, np.float64))
        )
        # They come in the order of the detections and objects; most detections have a single one.
        equal = self.found[1:] == self.found[:-1]
        mixed = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        order = mixed[np.lexsort((self.iou[mixed], self.found[mixed]))]
        self.truth[mixed], self.iou[mixed] = self.truth[order], self.iou[order]


def of_boxes(found, truth, crowd, least):
    """Returns the Overlaps of boxes, computed as pycocotools' C code does, in its order.

    Args:
        found: Boxes of the detections.
        truth: Boxes of the ground truth.
        crowd: bool [ground truth]; the IoU with a crowd is over the detection's own area.
        least: the IoU from which on an overlap counts, above 0.
    """
    first = np.searchsorted(truth.pair, found.pair)
    count = np.searchsorted(truth.pair, found.pair, side="right") - first
    before = np.concatenate([[0], np.cumsum(count)])
    parts = []
    begin = 0
    while begin < len(found):
        end = np.searchsorted(before, before[begin] + BOXES_AT_ONCE, side="right") - 1
        end = max(end, begin + 1)
        counts = count[begin:end]
        boxes = np.repeat(np.arange(begin, end), counts)
        objects = np.arange(len(boxes))
        objects += np.repeat(first[begin:end] - before[begin:end] + before[begin], counts)
        parts.append(_intersect(found, truth, crowd, least, boxes, objects))
        begin = end
    return Overlaps(parts)


def _intersect(found, truth, crowd, least, boxes, objects):
    """Returns (detections, objects, IoU) of those that overlap enough."""
    width = np.minimum(found.right[boxes], truth.right[objects])
    width -= np.maximum(found.left[boxes], truth.left[objects])
    beside = np.flatnonzero(width > 0)
    boxes, objects, width = boxes[beside], objects[beside], width[beside]
    height = np.minimum(found.bottom[boxes], truth.bottom[objects])
    height -= np.maximum(found.top[boxes], truth.top[objects])
    beside = np.flatnonzero(height > 0)
    boxes, objects = boxes[beside], objects[beside]
    shared = width[beside] * height[beside]
    own = found.product[boxes]
    iou = shared / np.where(crowd[objects], own, own + truth.product[objects] - shared)
    enough = np.flatnonzero(iou >= least)
    return boxes[enough], objects[enough], iou[enough]


def of_masks(found, truth, crowd, least, found_rles, truth_rles):
    """Returns the Overlaps of masks; the codes are in the order of the tables."""
    parts = []
    pairs, begins = np.unique(found.pair, return_index=True)
    ends = np.append(begins[1:], len(found))
    firsts = np.searchsorted(truth.pair, pairs)
    lasts = np.searchsorted(truth.pair, pairs, side="right")
    for place in np.flatnonzero(firsts < lasts):
        first, last = firsts[place], lasts[place]
        objects = [truth_rles[row] for row in truth.rows[first:last]]
        crowds = crowd[first:last].astype(np.uint8).tolist()
        step = max(MASKS_AT_ONCE // len(objects), 1)
        for begin in range(begins[place], ends[place], step):
            end = min(begin + step, ends[place])
            masks = [found_rles[row] for row in found.rows[begin:end]]
            iou = mask_tools.iou(masks, objects, crowds)
            box, thing = np.nonzero(iou >= least)
            parts.append((box + begin, thing + first, iou[box, thing]))
    return Overlaps(parts)


@functools.lru_cache(None)
def equal_pycocotools():
    """Tells whether `of_boxes` gives the IoU of pycocotools' C code to the last bit, on trial."""
    rng = np.random.RandomState(0)
    table = np.zeros((200, 8))
    table[:, 1:5] = rng.uniform(1, 100, (200, 4)).astype(np.float32)
    boxes = Boxes(table, Pairs([0], [0]))
    crowd = rng.uniform(size=200) < 0.1
    theirs = mask_tools.iou(table[:, 1:5], table[:, 1:5], crowd.astype(np.uint8))
    ours = np.zeros(theirs.shape)
    found = of_boxes(boxes, boxes, crowd, np.finfo(float).tiny)
    ours[found.found, found.truth] = found.iou
    return np.array_equal(ours, theirs)
