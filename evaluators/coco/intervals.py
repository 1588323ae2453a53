"""What is said of replicates: of each metric its interval, and its value in every replicate."""

import base64

import numpy as np

from evaluators.coco import replicates
from evaluators.coco.curves import objects_of
from evaluators.protocol import Replicated

# Of the mean of all categories: which threshold's, None for all of them.
IOUS = (None, 0, 5)
LEVEL = 0.95
# A message has the values of so many categories at most, a megabyte; of others the interval.
MOST_CATEGORIES = 200
# And no more values than these of a set: beyond 16 MiB the watcher takes a line for endless.
MOST_VALUES = 1_000_000


def resampler(count, measured, naming=None):
    """Returns what computes replicates, None where there are none.

    Args:
        count: how many, 0 or None for none.
        measured: for each set of metrics (names, match): the names of the overall metrics in the
            order of IOUS, of which the first is that of each category too, and what returns the
            Matched, or None.
        naming: returns what images are called by their identities; None where that was told before.
    """
    return Resampler(count, measured, naming) if count and measured else None


class Resampler:
    """Computes the replicates of one evaluation, see `resampler`."""

    def __init__(self, count, measured, naming=None):
        self._count, self._measured, self._naming = count, measured, naming

    def compute(self):
        """Returns the fields of `protocol.Replicates` but its id."""
        metrics, images, influences, image_names = [], 0, None, None
        for names, match in self._measured:
            matched = match()
            # Drawn from one image all replicates are the same, which says nothing.
            if matched is None or len(matched.pairs.images) < 2:
                continue
            images = len(matched.pairs.images)
            metrics += _metrics(matched, names, replicates.draw_images(images, self._count))
            if influences is None:
                influences = _packed(replicates.influences(matched))
                image_names = self._naming and self._naming(matched.pairs.images.tolist())
        return {
            "scheme": replicates.SCHEME,
            "images": images,
            "count": self._count,
            "level": LEVEL,
            "metrics": metrics,
            "influences": influences,
            "image_names": image_names,
        }


def _metrics(matched, names, weights):
    """Returns a `Replicated` for each metric that has a value in any replicate."""
    values = replicates.precisions(matched, weights)
    categories = matched.pairs.categories.tolist()
    objects = [len(own) for own in objects_of(matched)]
    found = [
        _replicated(name, None, sum(objects), replicates.overall(values, iou))
        for name, iou in zip(names, IOUS)
    ]
    means = values.mean(axis=0)
    few = len(categories) <= MOST_CATEGORIES and len(categories) * len(weights) <= MOST_VALUES
    found += [
        _replicated(names[0], category, count, one, few)
        for category, count, one in zip(categories, objects, means)
    ]
    return [one for one in found if one is not None]


def _replicated(name, category, objects, values, with_values=True):
    values = values.astype(np.float32)
    there = values[~np.isnan(values)].astype(float)
    if not len(there):
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(there, [tail, 100 - tail])
    packed = _packed(values) if with_values else None
    return Replicated(name, category, objects, float(low), float(high), packed)


def _packed(values):
    """Returns numbers as little-endian float32 in base64, as a message has them."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")
