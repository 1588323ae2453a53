"""Boxes of many images as columns of numbers, and masks as run-length codes."""

import numpy as np
from pycocotools import mask as mask_tools

PARTS_AT_ONCE = 512


class Columns:
    """Boxes of many images: one array for each field, filled image by image.

    Args:
        areas_count: whether the areas of detections are those of the table. Else they are the
            products of width and height, or of masks their pixels.
    """

    def __init__(self, areas_count=False):
        self.areas_count = areas_count
        self._parts = []
        self._rles = []

    def add(self, image_id, boxes, classes, last, masks=None):
        """Adds one image's boxes.

        Args:
            image_id: the image's integer identity.
            boxes: float32 [n, 4], [ymin, xmin, ymax, xmax] in pixels.
            classes: int [n].
            last: [n], the score of a detection or the crowd flag of ground truth.
            masks: uint8 [n, height, width] or None.
        """
        size = boxes[:, 2:] - boxes[:, :2]
        columns = np.empty((len(boxes), 8), np.float64)
        columns[:, 0] = image_id
        columns[:, 1:3] = boxes[:, 1::-1]
        columns[:, 3:5] = size[:, ::-1]
        columns[:, 5] = last
        columns[:, 6] = classes
        columns[:, 7] = size[:, 0] * size[:, 1]
        self._parts.append(columns)
        if masks is not None:
            self._rles.extend(run_lengths(masks))

    def add_rows(self, rows, rles=()):
        """Adds rows as `table` returns them, and the codes of their masks."""
        self._parts.append(rows)
        self._rles.extend(rles)

    def table(self):
        """Returns float64 [n, 8]: image, x, y, width, height, score or crowd, class, area."""
        # By and by: NumPy holds Python's lock for the whole of one concatenation of small parts.
        while len(self._parts) > 1:
            firsts = range(0, len(self._parts), PARTS_AT_ONCE)
            self._parts = [np.concatenate(self._parts[i : i + PARTS_AT_ONCE]) for i in firsts]
        return self._parts[0] if self._parts else np.empty((0, 8))

    @property
    def rles(self):
        """The masks as run-length codes, in the table's order."""
        return self._rles


def run_lengths(masks):
    """Returns the run-length codes of uint8 [n, height, width] masks."""
    if not len(masks):
        return []
    codes = mask_tools.encode(np.asfortranarray(np.moveaxis(masks, 0, -1)))
    for code in codes:
        code["counts"] = code["counts"].decode("ascii")
    return codes


def areas_of(rles):
    """Returns the pixels of each mask. Of more at once pycocotools raises under NumPy 2."""
    parts = (rles[first : first + 255] for first in range(0, len(rles), 255))
    return np.array([area for part in parts for area in mask_tools.area(part)], np.float64)
