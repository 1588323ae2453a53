"""Boxes as they are compared: one array for each field, those of a pair beside each other.

A pair is an image and a category. Pairs are numbered by category first, so that the boxes of a
category are beside each other too.
"""

import numpy as np


class Pairs:
    """The pairs there are, numbered.

    Args:
        images: identities of the images that are evaluated.
        categories: ids of the categories.
    """

    def __init__(self, images, categories):
        self.images = np.unique(np.array(list(images), np.int64))
        self.categories = np.unique(np.array(list(categories), np.int64))

    def of(self, table):
        """Returns the rows of a table that belong to a pair, their images and their categories.

        Images and categories are places, counted in ascending order of the identities.
        """
        image, known_image = _places(table[:, 0], self.images)
        category, known_category = _places(table[:, 6], self.categories)
        rows = np.flatnonzero(known_image & known_category)
        return rows, image[rows], category[rows]


def _places(values, known):
    """Returns where each value is in an ascending array, and whether it is there."""
    values = values.astype(np.int64)
    if not len(known):
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    # Images come box after box.
    starts = run_starts(values)
    lengths = np.diff(starts, append=len(values))
    places = np.minimum(np.searchsorted(known, values[starts]), len(known) - 1)
    there = known[places] == values[starts]
    return np.repeat(places, lengths), np.repeat(there, lengths)


def run_starts(values):
    """Returns where a run of equal values begins."""
    return np.flatnonzero(np.concatenate([[True] * bool(len(values)), values[1:] != values[:-1]]))


def counted(values):
    """Returns how many equal values are before each, of values in ascending order."""
    starts = run_starts(values)
    return np.arange(len(values)) - np.repeat(starts, np.diff(starts, append=len(values)))


def ordered(first, *places):
    """Returns the stable order of values by the last of the keys, then the one before it, ...

    All keys but the first are places: small numbers, which NumPy sorts fastest in few bits.
    """
    order = np.argsort(first, kind="stable")
    for key in places:
        few_bits = key.astype(np.min_scalar_type(key.max() if len(key) else 0))
        order = order[np.argsort(few_bits[order], kind="stable")]
    return order


class Boxes:
    """Boxes in the order of their pairs.

    Args:
        table: what `Columns.table` returns.
        pairs: the Pairs.
        most: of detections the number that counts in a pair, the highest scores of it; of equal
            scores the one that comes first in the table. None for ground truth.

    Attributes:
        rows: the row of the table of each box.
        pair, category: its pair, and the place of its category.
        rank: how many of its pair are before it.
        left, top, right, bottom, product: as COCO compares them; product is width by height.
        area: that of the table.
        last: the score or the crowd flag.
        finite: whether every edge and size is.
    """

    def __init__(self, table, pairs, most=None):
        rows, image, category = pairs.of(table)
        order = ordered(image if most is None else -table[rows, 5], image, category)
        pair = category[order] * len(pairs.images) + image[order]
        rank = counted(pair)
        if most is not None:
            kept = np.flatnonzero(rank < most)
            order, pair, rank = order[kept], pair[kept], rank[kept]
        self.rows, self.category, self.pair, self.rank = rows[order], category[order], pair, rank
        _, self.left, self.top, width, height, self.last, _, self.area = np.ascontiguousarray(
            np.take(table, self.rows, axis=0).T
        )
        with np.errstate(invalid="ignore"):
            self.right, self.bottom = width + self.left, height + self.top
            self.finite = bool(np.isfinite(self.right + self.bottom).all())
            self.product = width * height

    def __len__(self):
        return len(self.rows)
