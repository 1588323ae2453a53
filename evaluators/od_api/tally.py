"""Adds up what the eval records hold, and what the OD API makes of it without a word.

Follows `tf_example_decoder.py` and `inputs.transform_input_data`: where a record has class texts,
its labels are not looked at; a text is looked up among the label map's names and display names;
a box whose text is in neither, or that has a NaN, is dropped; of what is left in an image the first
`max_number_of_boxes` count.
"""

import collections

import numpy as np

from evaluators.od_api import records

# `box_list_ops.to_absolute_coordinates` raises above it.
LARGEST_COORDINATE = np.float32(1.1)
# Rounding puts a coordinate less far outside of an image.
_OUTSIDE = 0.002
# More different texts or ids than that are not told apart, so that memory stays bounded.
_DIFFERENT = 200000


class Occurrence:
    """How often something was seen, and where first."""

    def __init__(self, place, value):
        self.place = place
        self.value = value
        self.boxes = 0
        self.records = 0


class Tally:
    """Adds up what the records hold. Keeps no record.

    Attributes:
        names: the label map's ids by name and display name (`LabelMap.ids_by_text`), empty where it
            cannot be read.
        records, boxes: how many there are.
        classes: the label map's id of each box that the OD API keeps, counted.
        unknown: by text that is empty or not in the label map, [boxes, records].
        labels: by label that is not in the label map, where labels are looked at, boxes.
        source_ids: by image/source_id, records; those without one are left out.
        seen: by kind of fault, its Occurrence.
    """

    def __init__(self, pipeline):
        self.names = pipeline.label_map.ids_by_text if pipeline.label_map else {}
        self._ids = {text.encode(): number for text, number in self.names.items()}
        self._in_map = np.array(sorted(set(self.names.values())))
        self._most = pipeline.eval_input.max_number_of_boxes
        self.records = 0
        self.boxes = 0
        self.classes = collections.Counter()
        self.unknown = {}
        self.labels = collections.Counter()
        self.source_ids = collections.Counter()
        self.seen = {}

    def add(self, batch):
        """Takes one Batch of records."""
        fields = batch.fields
        self.records += batch.size
        for name in fields["image/source_id"].tolist():
            if name and (name in self.source_ids or len(self.source_ids) < _DIFFERENT):
                self.source_ids[name] += 1
        empty = np.flatnonzero(fields[records.IMAGE] == 0)
        self._note("no image", empty, batch, lambda at: None)
        sides = [fields[records.BOX + side] for side in records.SIDES]
        counts = [_count(rows, batch) for rows, _, _ in sides]
        texts, labels = fields[records.TEXT], fields[records.LABEL]
        has_text = _count(texts[0], batch) > 0
        named = np.where(has_text, _count(texts[0], batch), _count(labels[0], batch))
        uneven = np.any(np.array(counts) != counts[0], axis=0)
        rows = np.flatnonzero(uneven)
        self._note("uneven", rows, batch, lambda at: [int(count[rows[at]]) for count in counts])
        few = np.flatnonzero(~uneven & (named < counts[0]))
        self._note("few", few, batch, lambda at: (int(counts[0][few[at]]), int(named[few[at]])))
        more = np.flatnonzero(~uneven & (named > counts[0]))
        self._note("more", more, batch, lambda at: (int(counts[0][more[at]]), int(named[more[at]])))
        sound = ~uneven & (named >= counts[0])
        rows = sides[0][0][sound[sides[0][0]]]
        boxes = np.stack([values[sound[at]] for at, _, values in sides], axis=1)
        classes = np.full(len(rows), -1, np.int64)
        by_text, found = _of_boxes(texts, sound & has_text, counts[0])
        classes[has_text[rows]] = self._look_up(found, by_text)
        _, found = _of_boxes(labels, sound & ~has_text, counts[0])
        classes[~has_text[rows]] = self._check_labels(found)
        self._add_boxes(batch, rows, boxes, classes)

    def _look_up(self, texts, rows):
        if not self.names:  # a label map that cannot be read: the boxes are looked at all the same
            return np.ones(len(texts), np.int64)
        different, where = np.unique(texts, return_inverse=True)
        ids = np.array([self._ids.get(text, -1) for text in different], np.int64)
        for at, text in enumerate(different):
            unmapped = ids[at] < 0 and (text in self.unknown or len(self.unknown) < _DIFFERENT)
            if unmapped or not text:
                counts = self.unknown.setdefault(text, [0, 0])
                counts[0] += int(np.sum(where == at))
                counts[1] += len(np.unique(rows[where == at]))
        return ids[where] if len(texts) else np.zeros(0, np.int64)

    def _check_labels(self, labels):
        if not self.names:
            return labels
        strange = labels[~np.isin(labels, self._in_map)]
        for label, count in zip(*np.unique(strange, return_counts=True)):
            if label in self.labels or len(self.labels) < _DIFFERENT:
                self.labels[int(label)] += int(count)
        return labels

    def _add_boxes(self, batch, rows, boxes, classes):
        self.boxes += len(rows)
        is_nan = np.isnan(boxes).any(axis=1)
        self._note_boxes("nan", is_nan, rows, boxes, batch, np.isnan)
        kept = (classes > -1) & ~is_nan
        rows, boxes, classes = rows[kept], boxes[kept], classes[kept]
        turned = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
        self._note_boxes("turned", turned, rows, boxes, batch, None)
        in_image = _count(rows, batch)
        over = np.flatnonzero(in_image > self._most)
        self._note("over", over, batch, lambda at: int(in_image[over[at]]))
        if len(over):
            self.seen["over"].boxes += int(np.sum(in_image[over] - self._most))
            kept = np.arange(len(rows)) - np.searchsorted(rows, rows) < self._most
            rows, boxes, classes = rows[kept], boxes[kept], classes[kept]
        self._add_kept(batch, rows, boxes, classes)

    def _add_kept(self, batch, rows, boxes, classes):
        for label, count in zip(*np.unique(classes, return_counts=True)):
            self.classes[int(label)] += int(count)
        beyond = (boxes > LARGEST_COORDINATE).any(axis=1)
        self._note_boxes("beyond", beyond, rows, boxes, batch, lambda v: v > LARGEST_COORDINATE)
        outside = ((boxes < -_OUTSIDE) | (boxes > 1 + _OUTSIDE)).any(axis=1) & ~beyond
        self._note_boxes(
            "outside", outside, rows, boxes, batch, lambda v: (v < -_OUTSIDE) | (v > 1 + _OUTSIDE)
        )
        flat = (boxes[:, 2:] == boxes[:, :2]).any(axis=1)
        self._note_boxes("flat", flat, rows, boxes, batch, None)
        if len(rows) > 1:
            same = np.column_stack([rows, classes, boxes])
            twice = np.ones(len(rows), bool)
            twice[np.unique(same, axis=0, return_index=True)[1]] = False
            self._note_boxes("twice", twice, rows, boxes, batch, None)

    def _note_boxes(self, kind, chosen, rows, boxes, batch, is_bad):
        def describe(at):
            box = boxes[chosen][at]
            if is_bad is None:
                return ", ".join("{} {:g}".format(*pair) for pair in zip(records.SIDES, box))
            side = int(np.flatnonzero(is_bad(box))[0])
            return "{}{} is {:.8g}".format(records.BOX, records.SIDES[side], box[side])

        self._note(kind, rows[chosen], batch, describe, boxes=1)

    def _note(self, kind, rows, batch, describe, boxes=0):
        if not len(rows):
            return
        if kind not in self.seen:
            self.seen[kind] = Occurrence(batch.place(int(rows[0])), describe(0))
        self.seen[kind].boxes += boxes * len(rows)
        self.seen[kind].records += len(np.unique(rows))


def _count(rows, batch):
    return np.bincount(rows, minlength=batch.size)


def _of_boxes(entries, chosen, boxes):
    """Returns rows and values of the chosen records' entries, one for each of their boxes."""
    rows, columns, values = entries
    keep = chosen[rows] & (columns < boxes[rows])
    return rows[keep], values[keep]
