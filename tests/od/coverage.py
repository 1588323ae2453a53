"""How often intervals hold the truth: `coverage.py IMAGES SETS REPLICATES TRUTH_IMAGES [RARE]`.

Runs in the training interpreter, without TensorFlow. Detectors are simulated, two checkpoints of
one training, so the truth is known: what they score on TRUTH_IMAGES. Of each of SETS eval sets the
intervals of one's mAP and of their difference are computed as a worker and the watcher do.

Prints JSON: of `score` and `difference` the `truth`, the `covered` share of the intervals, the
median `half` of their widths and the `mean` over all sets; and the `tied` share of the sets which
do not tell the two apart. With RARE there are so many categories, the n-th of them 1/n as frequent
as the first (Zipf's law), else three of one frequency; of as many objects in all. Everything is
drawn by `RandomState`, so it is the same each time.
"""

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
from evaluators.coco import replicates, vectorised  # noqa: E402

CATEGORIES, OBJECTS = 3, 2.4  # in an image, on average
FALSE = 1.5
# The better checkpoint finds more, and finds it more exactly; that is about 0.008 of mAP.
ABILITIES = (0.5, 0.46)
# How much of what is chance in a detection two checkpoints of one training have in common.
COMMON = 0.9
LEVEL = 95


def rates(rare):
    """Returns how many objects of each category an image has on average."""
    shares = 1 / np.arange(1, rare + 1) if rare else np.ones(CATEGORIES)
    return OBJECTS * shares / shares.sum()


def eval_set(rng, images, means):
    """Returns ground truth and what each checkpoint detects, as `vectorised.match` takes them."""
    count = rng.poisson(means, (images, len(means)))
    image, category = (np.repeat(axis.ravel(), count.ravel()) for axis in np.indices(count.shape))
    boxes = _boxes(rng, len(image))
    truth = types.SimpleNamespace(iou_type="bbox", with_masks=False, columns=coco.Columns())
    truth.categories = [{"id": n + 1, "name": str(n)} for n in range(len(means))]
    truth.images = dict.fromkeys(range(images), (640, 640))
    truth.columns.add_rows(_rows(image, boxes, np.zeros(len(image)), category))
    quality, chance = rng.normal(0, 0.7, images)[image], rng.normal(0, 1, (len(image), 6))
    false = np.repeat(np.arange(images), rng.poisson(FALSE, images))
    others = _boxes(rng, len(false)), rng.randint(0, len(means), len(false))
    guess = rng.normal(-0.8, 1, len(false))
    found = []
    for ability in ABILITIES:
        able = ability + quality
        mixed = _mix(rng, chance)
        seen = able + 0.8 * mixed[:, 0] > -0.5
        moved = boxes + 0.06 * np.exp(-0.6 * able)[:, None] * mixed[:, 2:] * boxes[:, [2, 3, 2, 3]]
        moved[:, 2:] = np.maximum(moved[:, 2:], 1)
        scores = able + 0.8 * mixed[:, 1]
        columns = coco.Columns()
        columns.add_rows(_rows(image[seen], moved[seen], _share(scores[seen]), category[seen]))
        columns.add_rows(_rows(false, others[0], _share(_mix(rng, guess)), others[1]))
        found.append(columns)
    return truth, found


def _boxes(rng, count):
    """Returns [x, y, width, height] of boxes of all sizes."""
    return np.hstack([500 * rng.random_sample((count, 2)), rng.uniform(20, 140, (count, 2))])


def _mix(rng, chance):
    return np.sqrt(COMMON) * chance + np.sqrt(1 - COMMON) * rng.normal(0, 1, chance.shape)


def _share(values):
    return 1 / (1 + np.exp(-values))


def _rows(image, boxes, last, category):
    """Returns rows of a table of `coco.Columns`."""
    area = boxes[:, 2] * boxes[:, 3]
    return np.column_stack([image, boxes, last, category + 1, area]).astype(np.float64)


def scores(truth, found, weights):
    """Returns mAP: float64 [checkpoint, replicate]."""
    every = (vectorised.match(truth, one) for one in found)
    return np.array([replicates.overall(replicates.precisions(one, weights)) for one in every])


def values(rng, images, weights, means):
    """Returns what an eval set gives of each quantity, and that in each replicate."""
    once = np.ones((1, images), np.uint8)
    drawn = scores(*eval_set(rng, images, means), np.vstack([once, weights]))
    kinds = {"score": drawn[0], "difference": drawn[0] - drawn[1]}
    return {name: (one[0], one[1:]) for name, one in kinds.items()}


def main(images, sets, count, truth_images, rare=0):
    """Prints the answer."""
    rng, means = np.random.RandomState(7), rates(rare)
    truth = values(rng, truth_images, np.empty((0, truth_images), np.uint8), means)
    weights = replicates.draw_images(images, count)
    seen = [values(rng, images, weights, means) for _ in range(sets)]
    tail = (100 - LEVEL) / 2
    answer = {"images": images, "sets": sets, "replicates": count}
    for name, (true, _) in truth.items():
        ends = np.array([np.nanpercentile(one[name][1], [tail, 100 - tail]) for one in seen])
        answer[name] = {
            "truth": float(true),
            "mean": float(np.mean([one[name][0] for one in seen])),
            "covered": float(np.mean((ends[:, 0] <= true) & (true <= ends[:, 1]))),
            "half": float(np.median(ends[:, 1] - ends[:, 0]) / 2),
        }
    answer["tied"] = float(np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0)))
    json.dump(answer, ANSWER)
    ANSWER.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
