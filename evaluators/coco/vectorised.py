"""COCOeval's arrays of all images at once, in NumPy; equal to pycocotools to the last bit."""

import numpy as np
from pycocotools import cocoeval

from evaluators.coco import overlaps, reference
from evaluators.coco.accumulation import accumulate
from evaluators.coco.boxes import Boxes, Pairs
from evaluators.coco.columns import areas_of
from evaluators.coco.matching import Matching


def evaluate(truth, detections):
    """Returns arrays of precision and recall, see `coco.precision_and_recall`."""
    params = cocoeval.Params(iouType=truth.iou_type)
    pairs = Pairs(truth.images, [category["id"] for category in truth.categories])
    objects = Boxes(truth.columns.table(), pairs)
    found = Boxes(detections.table(), pairs, most=params.maxDets[-1])
    if not truth.with_masks and not (objects.finite and found.finite):
        # What COCOeval makes of NaN is an accident of its loops, and only a broken model's.
        return reference.evaluate(truth, detections)
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
    kept = (objects.category[~column] for column in ignored.T)
    counts = [np.bincount(categories, minlength=len(pairs.categories)) for categories in kept]
    return accumulate(found, matching, np.stack(counts, axis=1), params)
