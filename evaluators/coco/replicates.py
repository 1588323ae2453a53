"""Replicates of the average precision: what it is on eval sets drawn anew from this one.

A bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993): each replicate draws as
many images as there are, with replacement, and is what COCOeval would give on those, each as often
as it was drawn. Who matches whom does not depend on other images. So detections are matched once,
and every replicate counts them with the weights of their images.

What is drawn depends on the number of images and on nothing else. So two checkpoints of one
evaluation are counted on the same draws, and the differences of their replicates, one by one, are
those of a paired bootstrap.
"""

import numpy as np

from evaluators.coco.curves import curves_of, objects_of

# Recorded with replicates: those of one scheme and one number of images have the same draws.
SCHEME = "images-1"
SEED = 20
# Numbers at once: a few MiB of temporaries, a millisecond.
AT_ONCE = 1 << 18


def draw_images(images, replicates):
    """Returns how often each image is drawn: uint8 [replicate, image]; of more the same and more.

    `RandomState` is frozen: every version of NumPy draws the same.
    """
    generator = np.random.RandomState(SEED)
    counts = np.empty((replicates, images), np.uint8)
    for row in counts:
        drawn = (generator.random_sample(images) * images).astype(np.int64)
        row[:] = np.minimum(np.bincount(drawn, minlength=images), 255)
    return counts


def precisions(matched, weights):
    """Returns the average precision: float64 [IoU threshold, category, replicate].

    NaN where a replicate has no object of a category.

    Args:
        matched: a Matched.
        weights: uint8 [replicate, image], how often each image counts, images by their identities.
    """
    recalls, objects = np.asarray(matched.params.recThrs), objects_of(matched)
    found = np.full((len(matched.params.iouThrs), len(objects), len(weights)), np.nan)
    for place, (curves, own) in enumerate(zip(curves_of(matched), objects)):
        if len(own):
            found[:, place] = _of_category(curves, own, weights, recalls)
    return found


def overall(values, iou=None):
    """Returns the mean over the categories that there are, and over all thresholds or of one.

    Args:
        values: what `precisions` returns.
        iou: the index of a threshold.

    Returns:
        float64 [replicate], NaN where there is nothing to find.
    """
    means = values.mean(axis=0) if iou is None else values[iou]
    there = ~np.isnan(means)
    count = there.sum(axis=0)
    return np.where(count, np.where(there, means, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def _of_category(curves, objects, weights, recalls):
    """Returns float64 [IoU threshold, replicate] of one category.

    Args:
        curves: its Curves.
        objects: the image of each of its objects.
        weights, recalls: see `precisions`.
    """
    found = np.empty((len(curves.thresholds), len(weights)))
    step = max(AT_ONCE // max(len(curves.image), len(objects)), 1)
    for first in range(0, len(weights), step):
        drawn = weights[first : first + step]
        count = drawn.take(objects, axis=1).sum(axis=1, dtype=np.int64)
        table, begins = _reached(count, recalls)
        found[:, first : first + step] = _draw(curves, drawn, table, begins)
        found[:, first : first + step][:, count == 0] = np.nan
    return found / len(recalls)


def _reached(count, recalls):
    """Returns how many recalls so many right ones reach, and where the table of each begins.

    Args:
        count: int [replicate], how many objects there are.
        recalls: ascending.

    Returns:
        A table for each number of objects, one behind the other, and int [replicate].
    """
    numbers, which = np.unique(count, return_inverse=True)
    # By COCOeval's own comparison, in floating point.
    tables = [
        np.searchsorted(recalls, np.arange(number + 1) / max(number, 1), side="right")
        for number in numbers
    ]
    for table in tables:
        table[0] = 0  # a recall of 0 is reached with the first right one
    begins = np.cumsum([0] + [len(table) for table in tables[:-1]])
    return np.concatenate(tables).astype(np.int16), begins[which.ravel()]


def _draw(curves, weights, table, begins):
    """Returns float64 [IoU threshold, replicate]: the sum of the precision at every recall."""
    drawn = weights.take(curves.image, axis=1)
    so_far = np.cumsum(drawn * curves.inside, axis=1, dtype=np.int32)
    return [_sum(curve, drawn, so_far, table, begins) for curve in curves.thresholds]


def _sum(curve, drawn, so_far, table, begins):
    right = np.cumsum(drawn.take(curve.hits, axis=1), axis=1, dtype=np.int32)
    counted = so_far.take(curve.hits, axis=1)
    if len(curve.changed):
        changes = drawn.take(curve.changed, axis=1) * curve.change
        changes = np.cumsum(changes, axis=1, dtype=np.int32)
        later = curve.upto > 0
        counted[:, later] += changes.take(curve.upto[later] - 1, axis=1)
    precision = right / np.maximum(counted, 1)
    # Of each the highest that follows.
    backwards = precision[:, ::-1]
    np.maximum.accumulate(backwards, axis=1, out=backwards)
    reached = table.take(right + begins[:, None])
    return np.einsum("ij,ij->i", precision, np.diff(reached, axis=1, prepend=np.int16(0)))


def influences(matched):
    """Returns float64 [image]: by how much mAP rises with the weight of each image, all being 1.

    The derivative (Jaeckel, The Infinitesimal Jackknife, 1972) of the areas under the curves, since
    the mean at COCO's recalls has none. They sum to 0; an image that is left out takes about as
    much away as it has here.
    """
    images, objects = len(matched.pairs.images), objects_of(matched)
    found = np.zeros(images)
    for curves, own in zip(curves_of(matched), objects):
        if len(own):
            for curve in curves.thresholds:
                found += _influence(curve, curves, np.bincount(own, minlength=images))
    there = sum(len(own) > 0 for own in objects) * len(matched.params.iouThrs)
    return found / max(there, 1)


def _influence(curve, curves, own):
    """Returns float64 [image] of the area under one curve; `own` are the objects of each image."""
    images, objects, hits = len(own), own.sum(), len(curve.hits)
    if not hits:
        return np.zeros(images)
    counts = curves.inside.astype(np.int8)
    counts[curve.changed] += curve.change
    counted, right = np.cumsum(counts)[curve.hits], np.arange(1, hits + 1)
    precision = right / np.maximum(counted, 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    # What is under the curve is decided at the places where it is highest.
    tops = np.flatnonzero(precision == highest)
    width = np.zeros(hits)
    width[tops] = np.diff(tops, prepend=-1) / objects
    per_right = _from_each(width / np.maximum(counted, 1))
    per_counted = _from_each(width * right / np.maximum(counted, 1) ** 2)
    image = curves.image
    found = np.bincount(image[curve.hits], per_right[:-1] + highest / objects, images)
    later = np.searchsorted(curve.hits, np.arange(len(image)))
    found -= np.bincount(image, counts * per_counted[later], images)
    return found - highest.sum() / objects * own / objects


def _from_each(values):
    """Returns the sum of each value and all behind it, and 0 at the end."""
    return np.append(np.cumsum(values[::-1])[::-1], 0)
