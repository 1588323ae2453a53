"""Runs every COCO backend on made-up boxes: `coco_backends.py < CASES`.

Runs in the training interpreter, without any model. CASES is a JSON list of options (see DEFAULTS).
Prints a JSON list of an object for each: for every backend that can be imported its metrics and
category metrics, under `od_api` what the OD API's own evaluators give for the same numbers, and
under `plugin` what a metric plugin makes of them by brute force.
"""

import argparse
import json
import os
import pathlib
import sys

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from evaluators_package import VERSIONS  # noqa: E402, F401, I001
from evaluators.coco import BACKENDS, usable  # noqa: E402
from evaluators.od_api import coco, plugin_images, plugins  # noqa: E402

import numpy as np  # noqa: E402
from object_detection.metrics import coco_evaluation  # noqa: E402
from object_detection.protos import eval_pb2  # noqa: E402

SIZE = 200
DEFAULTS = {
    "images": 30,
    "classes": 3,
    "objects": 4,
    "detections": 30,
    "seed": 1,
    "masks": False,
    "nothing_found": False,
}


class Batch:
    """Made-up detections in the form of `evaluators.od_api.detections.AbsoluteDetections`."""

    has_masks = True

    def __init__(self, image_ids, images):
        self.image_ids = image_ids
        self._images = images

    def image(self, index, with_masks):
        """Returns (boxes, scores, classes, masks or None) of one image."""
        boxes, scores, classes = self._images[index]
        return boxes, scores, classes, draw(boxes) if with_masks else None


def draw(boxes):
    """Returns the boxes as filled masks."""
    masks = np.zeros((len(boxes), SIZE, SIZE), np.uint8)
    for mask, (top, left, bottom, right) in zip(masks, boxes.astype(int)):
        mask[top:bottom, left:right] = 1
    return masks


def made_up(options):
    """Returns (image identities, ground truth, detections); half the detections fit an object."""
    rng = np.random.default_rng(options.seed)
    identities = np.sort(rng.choice(1 << 31, options.images, replace=False)).astype(np.int64)
    # Images without a source_id get these from `dataset.EvalSet`.
    identities[::3] = (1 << 31) + np.arange(len(identities[::3]))
    rng.shuffle(identities)
    truths, found = [], []
    for _ in identities:
        count = int(rng.integers(0, 2 * options.objects + 1))
        corner = rng.random((count, 2)) * SIZE * 0.6
        size = 4 + rng.random((count, 2)) * SIZE * 0.35
        boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
        classes = rng.integers(1, options.classes + 1, count)
        crowd = rng.random(count) < 0.05
        truths.append((boxes, classes, crowd))
        extra = rng.integers(0, max(count, 1), options.detections) if count else []
        moved = boxes[extra] if count else np.zeros((0, 4), np.float32)
        noise = rng.normal(0, 6, moved.shape)
        moved = np.clip(moved + noise, 0, SIZE).astype(np.float32)
        moved = np.concatenate(
            [np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], 1
        )
        guessed = classes[extra] if count else np.zeros(0, np.int64)
        wrong = rng.random(len(guessed)) < 0.3
        # One class more than there are: what is found of it does not count.
        guessed = np.where(wrong, rng.integers(1, options.classes + 2, len(guessed)), guessed)
        # Coarse scores, so that ties between images and within one occur.
        scores = (np.round(rng.random(len(guessed)) * 50) / 50).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        found.append((moved[order], scores[order], guessed[order].astype(np.int64)))
    if options.nothing_found:
        found = [(b[:0], s[:0], c[:0]) for b, s, c in found]
    return identities, truths, found


def ground_truth(metrics_set, categories, identities, truths):
    """Returns our ground truth of the made-up objects."""
    truth = coco.GroundTruth(metrics_set, categories)
    for eval_dict in eval_dicts(truth.with_masks, identities, truths):
        truth.add(eval_dict)
    return truth


def eval_dicts(masks, identities, truths):
    """Yields the made-up objects as the OD API's evaluation dicts."""
    for identity, (boxes, classes, crowd) in zip(identities, truths):
        eval_dict = {
            "key": np.array([identity]),
            "num_groundtruth_boxes": np.array([len(boxes)]),
            "original_image_spatial_shape": np.array([[SIZE, SIZE]]),
            "groundtruth_boxes": boxes[None],
            "groundtruth_classes": classes[None],
            "groundtruth_is_crowd": crowd[None],
        }
        if masks:
            eval_dict["groundtruth_instance_masks"] = draw(boxes)[None]
        yield eval_dict


def by_plugin(masks, categories, identities, truths, found):
    """Returns the average precision at IoU 0.5 that a metric plugin computes."""
    file = pathlib.Path(__file__).resolve().parent / "metric_plugins.py"
    loaded = plugins.load(["{}:{}".format(file, "mask_ap50" if masks else "ap50")])
    images = plugin_images.Truths(loaded, categories)
    for eval_dict in eval_dicts(masks, identities, truths):
        images.add(eval_dict)
    images.try_out()
    run = plugin_images.PluginMetrics(images)
    run.add(Batch(identities, found))
    values, warnings = run.compute()
    assert not warnings, warnings
    return next(iter(values.values()))


def od_api(masks, categories, identities, truths, found):
    """Returns what the OD API's own evaluator gives."""
    kind = coco_evaluation.CocoMaskEvaluator if masks else coco_evaluation.CocoDetectionEvaluator
    evaluator = kind(categories)
    for identity, (boxes, classes, crowd), (moved, scores, guessed) in zip(
        identities, truths, found
    ):
        evaluator.add_single_ground_truth_image_info(
            identity,
            {
                "groundtruth_boxes": boxes,
                "groundtruth_classes": classes,
                "groundtruth_is_crowd": crowd,
                "groundtruth_instance_masks": draw(boxes) if masks else None,
            },
        )
        evaluator.add_single_detected_image_info(
            identity,
            {
                "detection_boxes": moved,
                "detection_scores": scores,
                "detection_classes": guessed,
                "detection_masks": draw(moved) if masks else None,
            },
        )
    return {name: float(value) for name, value in evaluator.evaluate().items()}


def case(options):
    """Returns the answers to one case."""
    options = argparse.Namespace(**{**DEFAULTS, **options})
    categories = [{"id": i, "name": "class {}".format(i)} for i in range(1, options.classes + 1)]
    identities, truths, found = made_up(options)
    name = "coco_mask_metrics" if options.masks else "coco_detection_metrics"
    truth = ground_truth(name, categories, identities, truths)
    answer = {
        "od_api": {"metrics": od_api(options.masks, categories, identities, truths, found)},
        "plugin": by_plugin(options.masks, categories, identities, truths, found),
    }
    for backend in [b for b in BACKENDS if usable(b)]:
        run = coco.CocoMetrics(truth, backend, eval_pb2.EvalConfig())
        run.add(Batch(identities, found))
        metrics, by_category = run.compute()
        answer[backend] = {"metrics": metrics, "categories": by_category}
    return answer


def main():
    """Prints the answers."""
    json.dump([*map(case, json.load(sys.stdin))], ANSWER)
    ANSWER.close()


if __name__ == "__main__":
    main()
