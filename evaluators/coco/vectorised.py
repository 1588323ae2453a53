"""COCOeval's arrays of all images at once, in NumPy; equal to pycocotools to the last bit."""

import numpy as np
from pycocotools import cocoeval

from evaluators.coco import overlaps
from evaluators.coco.accumulation import accumulate
from evaluators.coco.boxes import Boxes, Pairs
from evaluators.coco.columns import areas_of
from evaluators.coco.matching import Matching


class Matched:
    """Detections and the objects of the ground truth, matched.

    Attributes:
        pairs: the Pairs.
        params: COCOeval's parameters.
        found, objects: Boxes of the detections and of the ground truth.
        ignored: bool [object, area range], which are not looked for.
        matching: the Matching.
    """

    def __init__(self, pairs, params, found, objects, ignored, matching):
        self.pairs, self.params = pairs, params
        self.found, self.objects = found, objects
        self.ignored, self.matching = ignored, matching

    def arrays(self):
        """Returns arrays of precision and recall, see `coco.precision_and_recall`."""
        kept = (self.objects.category[~column] for column in self.ignored.T)
        kinds = len(self.pairs.categories)
        counts = [np.bincount(categories, minlength=kinds) for categories in kept]
        return accumulate(self.found, self.matching, np.stack(counts, axis=1), self.params)


def match(truth, detections):
    """Returns what is Matched; None where a box is NaN or infinite.

    What COCOeval makes of such is an accident of its loops, and only a broken model has them.
    """
    params = cocoeval.Params(iouType=truth.iou_type)
    pairs = Pairs(truth.images, [category["id"] for category in truth.categories])
    objects = Boxes(truth.columns.table(), pairs)
    found = Boxes(detections.table(), pairs, most=params.maxDets[-1])
    if not truth.with_masks and not (objects.finite and found.finite):
        return None
    crowd = objects.last.astype(np.int64) != 0
    lows, highs = np.array(params.areaRng, float).T
    areas = objects.area[:, None]
    ignored = (areas < lows) | (areas > highs) | crowd[:, None]
    compared = found, objects, crowd, params.iouThrs[0]
    if truth.with_masks:
        overlapping = overlaps.of_masks(*compared, detections.rles, truth.columns.rles)
    else:
        overlapping = overlaps.of_boxes(*compared)
    if not detections.areas_count:
        found.area = found.product
        if truth.with_masks:
            found.area = areas_of([detections.rles[row] for row in found.rows])
    matching = Matching(overlapping, found.pair, params.iouThrs, ignored, crowd)
    return Matched(pairs, params, found, objects, ignored, matching)
