"""Holds the COCO backend `numpy` to pycocotools: reads a case a line, answers a line to each.

Runs in the training interpreter, without TensorFlow. A case is a JSON object:

- `iou_type` ("bbox" or "segm"), `areas_count`, `images` and `categories` (identities)
- `truth`: rows of image, x, y, width, height, crowd, category
- `found`: the same with a score in the place of crowd; all of them `times` times
- `backends` to compare (optional); "nothing" stands for one that computes nothing
- `drawn` (optional): how often each image counts, in the order of their identities

The answer is `{"numbers": N}`, how many numbers of precision and recall there were and were equal
to the last bit, or `{"differing": BACKEND}`. With it comes `error`: how far the average precision
of the replicate that has each image once is from pycocotools', overall and by category; where
images are `drawn`, that of the replicate with those from pycocotools' on as many copies of each.
"""

import json
import os
import pathlib
import sys

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # pycocotools prints

# Not by evaluators_package, which imports TensorFlow.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
import numpy as np  # noqa: E402
from evaluators import coco  # noqa: E402
from evaluators.coco import replicates, vectorised  # noqa: E402

SIZE = 160


class Truth:
    """Ground truth as `coco.precision_and_recall` takes it."""

    def __init__(self, case):
        self.iou_type = case["iou_type"]
        self.with_masks = self.iou_type == "segm"
        self.images = dict.fromkeys(case["images"], (SIZE, SIZE))
        self.categories = [{"id": number, "name": str(number)} for number in case["categories"]]
        self.columns = columns(case["truth"], self.with_masks)


def columns(rows, with_masks, areas_count=False):
    """Returns the rows as Columns; the area is a column of its own, in float32."""
    table = np.array(rows, float).reshape(-1, 7)
    table[:, 1:5] = table[:, 1:5].astype(np.float32)
    areas = (table[:, 3].astype(np.float32) * table[:, 4].astype(np.float32)).astype(float)
    found = coco.Columns(areas_count)
    masks = coco.run_lengths(draw(table)) if with_masks else ()
    found.add_rows(np.concatenate([table, areas[:, None]], axis=1), masks)
    return found


def draw(table):
    """Returns boxes as masks of a frame each, so that their overlaps are not those of boxes."""
    masks = np.zeros((len(table), SIZE, SIZE), np.uint8)
    for mask, (left, top, width, height) in zip(masks, table[:, 1:5]):
        left, top, right, bottom = (
            int(np.clip(np.nan_to_num(edge), 0, SIZE))
            for edge in (left, top, left + width, top + height)
        )
        mask[top:bottom, left:right] = 1
        mask[top + 4 : bottom - 4, left + 4 : right - 4] = 0
    return masks


def compare(case):
    """Returns the answer to one case."""
    truth = Truth(case)
    found = columns(
        case["found"] * case.get("times", 1), truth.with_masks, case.get("areas_count", False)
    )
    expected = coco.precision_and_recall("pycocotools", truth, found)
    for backend in case.get("backends", ["numpy"]):
        arrays = evaluate(backend, truth, found)
        if not all(np.array_equal(one, other) for one, other in zip(arrays, expected)):
            return {"differing": backend}
    drawn = case.get("drawn") or [1] * len(truth.images)
    if "drawn" in case:
        copied = {**case, "found": case["found"] * case.get("times", 1), "times": 1}
        copies = copied_images(copied, drawn)
        known = Truth(copies)
        several = columns(copies["found"], truth.with_masks, case.get("areas_count", False))
        expected = coco.precision_and_recall("pycocotools", known, several)
    numbers = sum(array.size for array in expected)
    return {"numbers": numbers, "error": error_of(truth, found, drawn, expected[0])}


def copied_images(case, drawn):
    """Returns a case with so many copies of each image."""
    copies = {
        image: [1000 * place + copy for copy in range(count)]
        for place, (image, count) in enumerate(zip(sorted(case["images"]), drawn))
    }
    copied = {"images": [one for some in copies.values() for one in some]}
    for name in ("truth", "found"):
        rows = [[copy, *row[1:]] for row in case[name] for copy in copies.get(row[0], ())]
        copied[name] = rows
    return {**case, **copied}


def error_of(truth, found, drawn, precision):
    """Returns how far the average precisions of one replicate are from those of COCOeval's array.

    None where nothing is matched since boxes are not finite.
    """
    matched = vectorised.match(truth, found)
    if matched is None or not truth.categories:
        return None
    values = replicates.precisions(matched, np.array([drawn], np.uint8).reshape(1, -1))
    ours = [replicates.overall(values, iou)[0] for iou in (None, 0, 5)]
    ours += values.mean(axis=0)[:, 0].tolist()
    part = precision[:, :, :, 0, -1]
    theirs = [coco.mean(one) for one in (part, part[0], part[5])]
    theirs += [coco.mean(part[:, :, place]) for place in range(part.shape[2])]
    ours = np.where(np.isnan(ours), -1, ours)
    return float(np.max(np.abs(ours - np.array(theirs))))


def evaluate(backend, truth, found):
    """Returns the arrays of a backend; of "nothing" such as are of no use."""
    if backend == "nothing":
        return [np.full(1, -1.0)] * 2
    return coco.precision_and_recall(backend, truth, found)


def main():
    """Answers until there is nothing more to read."""
    for line in sys.stdin:
        print(json.dumps(compare(json.loads(line))), file=ANSWER, flush=True)


if __name__ == "__main__":
    main()
