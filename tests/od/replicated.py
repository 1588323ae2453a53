"""Says what replicates of a made-up evaluation are like; without TensorFlow.

`image_names` are those of two sets of metrics, as of boxes and of masks.

Prints a JSON object: `draws` (sha256 of what is drawn), `prefix` (whether fewer replicates are the
first of more), `sum` of the influences, `agreement` (correlation of them with what leaving each
image out takes away), `fields` (of the message), `few` (whether each metric has its values where
those of categories are too many).
"""

import hashlib
import json
import os
import pathlib
import sys
import types

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # pycocotools prints

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
import numpy as np  # noqa: E402
from evaluators import coco  # noqa: E402
from evaluators.coco import intervals, replicates, vectorised  # noqa: E402

IMAGES, CLASSES = 48, 3


def made_up():
    """Returns ground truth and detections: some objects are missed, some found where none is."""
    rng = np.random.RandomState(3)
    truth = types.SimpleNamespace(iou_type="bbox", with_masks=False, columns=coco.Columns())
    truth.categories = [{"id": n, "name": str(n)} for n in range(1, CLASSES + 1)]
    truth.images = dict.fromkeys(range(IMAGES), (200, 200))
    found = coco.Columns()
    for image in truth.images:
        count = rng.randint(1, 6)
        corners = rng.random_sample((count, 2)) * 120
        boxes = np.concatenate([corners, corners + 30 + 20 * rng.random_sample((count, 2))], 1)
        kinds = rng.randint(1, CLASSES + 1, count)
        truth.columns.add(image, boxes.astype(np.float32), kinds, np.zeros(count))
        quality = rng.uniform(1, 9)
        moved = np.sort((boxes + rng.normal(0, quality, boxes.shape)).reshape(-1, 2, 2), axis=1)
        found.add(image, moved.reshape(-1, 4).astype(np.float32), kinds, rng.random_sample(count))
    return truth, found


def main():
    """Prints the answer."""
    drawn = replicates.draw_images(IMAGES, 100)
    matched = vectorised.match(*made_up())
    influence = replicates.influences(matched)
    ones = np.ones((IMAGES + 1, IMAGES), np.uint8)
    ones[np.arange(IMAGES), np.arange(IMAGES)] = 0
    values = replicates.overall(replicates.precisions(matched, ones))
    said = coco.resampler(200, [(["mAP", "mAP50", "mAP75"], lambda: matched)]).compute()
    intervals.MOST_VALUES = CLASSES * 200 - 1
    few = coco.resampler(200, [(["mAP", "mAP50", "mAP75"], lambda: matched)]).compute()
    both = [(["mAP", "mAP50", "mAP75"], lambda: matched), (["a", "b", "c"], lambda: matched)]
    named = coco.resampler(2, both, lambda ids: ["image {}".format(one) for one in ids]).compute()
    answer = {
        "few": {"{0.name} {0.category}".format(one): bool(one.values) for one in few["metrics"]},
        "draws": hashlib.sha256(drawn.tobytes()).hexdigest(),
        "prefix": bool(np.array_equal(replicates.draw_images(IMAGES, 7), drawn[:7])),
        "sum": float(influence.sum()),
        "agreement": float(np.corrcoef(influence, values[-1] - values[:-1])[0, 1]),
        "image_names": named["image_names"],
        "fields": {**said, "metrics": [vars(one) for one in said["metrics"]]},
    }
    json.dump(answer, ANSWER)
    ANSWER.close()


if __name__ == "__main__":
    main()
