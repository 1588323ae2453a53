"""Boxes of many images as columns of numbers, and masks as run-length codes."""

import numpy as np
from pycocotools import mask as mask_tools

# NumPy holds Python's lock for the whole of one concatenation of small arrays, pycocotools for all
# masks that it encodes at once.
PARTS_AT_ONCE, MASK_BYTES_AT_ONCE = 512, 1 << 22


class Columns:
    """Boxes of many images: one array for each field, filled image by image.

    While images are added nothing is computed but the codes of masks: the table is made when it is
    asked for, in another thread than the one that adds.

    Args:
        areas_count: whether the areas of detections are those of the table. Else they are the
            products of width and height, or of masks their pixels.
        known: the classes that are kept of boxes without masks; None for all.
    """

    def __init__(self, areas_count=False, known=None):
        self.areas_count = areas_count
        self._known = known
        self._added = []
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
        self._added.append((image_id, boxes, classes, last))
        if masks is not None:
            self._rles.extend(run_lengths(masks))

    def add_rows(self, rows, rles=()):
        """Adds rows as `table` returns them, and the codes of their masks."""
        self._make_rows()
        self._parts.append(rows)
        self._rles.extend(rles)

    def table(self):
        """Returns float64 [n, 8]: image, x, y, width, height, score or crowd, class, area."""
        self._make_rows()
        while len(self._parts) > 1:
            self._parts = [np.concatenate(some) for some in _portions(self._parts)]
        return self._parts[0] if self._parts else np.empty((0, 8))

    def _make_rows(self):
        """Makes rows of what was added."""
        added, self._added = self._added, []
        for some in _portions(added):
            rows = _rows(*zip(*some))
            if self._known is not None:
                rows = rows[np.isin(rows[:, 6], self._known)]
            self._parts.append(rows)

    @property
    def rles(self):
        """The masks as run-length codes, in the table's order."""
        return self._rles


def _portions(parts):
    """Returns the parts in lists of so many as are concatenated at once."""
    return [parts[i : i + PARTS_AT_ONCE] for i in range(0, len(parts), PARTS_AT_ONCE)]


def _rows(image_ids, boxes, classes, last):
    """Returns rows of the table; a tuple for each field, with an entry for each image."""
    counts = [len(some) for some in boxes]
    boxes = np.concatenate(boxes)
    size = boxes[:, 2:] - boxes[:, :2]
    rows = np.empty((len(boxes), 8), np.float64)
    rows[:, 0] = np.repeat(np.array(image_ids, np.int64), counts)
    rows[:, 1:3] = boxes[:, 1::-1]
    rows[:, 3:5] = size[:, ::-1]
    rows[:, 5] = np.concatenate(last)
    rows[:, 6] = np.concatenate(classes)
    rows[:, 7] = size[:, 0] * size[:, 1]
    return rows


def run_lengths(masks):
    """Returns the run-length codes of uint8 [n, height, width] masks."""
    codes = []
    step = max(MASK_BYTES_AT_ONCE // max(masks[:1].nbytes, 1), 1)
    for first in range(0, len(masks), step):
        some = np.moveaxis(masks[first : first + step], 0, -1)
        codes += mask_tools.encode(np.asfortranarray(some))
    for code in codes:
        code["counts"] = code["counts"].decode("ascii")
    return codes


def areas_of(rles):
    """Returns the pixels of each mask. Of more at once pycocotools raises under NumPy 2."""
    parts = (rles[first : first + 255] for first in range(0, len(rles), 255))
    return np.array([area for part in parts for area in mask_tools.area(part)], np.float64)
