"""The COCO metric step: `coco_step.py IMAGES CLASSES`.

Runs in the training interpreter, without any model, on boxes made up by `coco_backends.py`: about
7 objects and 100 detections an image. Prints JSON: the number of detections, and for the OD API's
evaluator with pycocotools (`od_api`) and for the exact backends under our evaluator the metrics and
the `seconds` from the detections of each image to the metrics, without adding ground truth.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "od"))
import coco_backends
from evaluators.coco import EXACT_BACKENDS, usable
from evaluators.od_api import coco
from object_detection.metrics import coco_evaluation
from object_detection.protos import eval_pb2

ROUNDS = 3


def od_api(categories, identities, truths, found):
    """Returns metrics and seconds of the OD API's evaluator."""
    evaluator = coco_evaluation.CocoDetectionEvaluator(categories)
    for identity, (boxes, classes, crowd) in zip(identities, truths):
        evaluator.add_single_ground_truth_image_info(
            identity,
            {
                "groundtruth_boxes": boxes,
                "groundtruth_classes": classes,
                "groundtruth_is_crowd": crowd,
            },
        )
    began = time.perf_counter()
    for identity, (boxes, scores, classes) in zip(identities, found):
        evaluator.add_single_detected_image_info(
            identity,
            {
                "detection_boxes": boxes,
                "detection_scores": scores,
                "detection_classes": classes,
            },
        )
    metrics = {name: float(value) for name, value in evaluator.evaluate().items()}
    return {"metrics": metrics, "seconds": time.perf_counter() - began}


def ours(truth, backend, identities, found):
    """Returns metrics and median seconds of our evaluator with one backend."""
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run = coco.CocoMetrics(truth, backend, eval_pb2.EvalConfig())
        run.add(coco_backends.Batch(identities, found))
        metrics, _ = run.compute()
        seconds.append(time.perf_counter() - began)
    return {"metrics": metrics, "seconds": statistics.median(seconds)}


def main(images, classes):
    """Prints the answer."""
    options = argparse.Namespace(
        images=images, classes=classes, objects=7, detections=100, seed=1, nothing_found=False
    )
    categories = [{"id": i, "name": "class {}".format(i)} for i in range(1, classes + 1)]
    identities, truths, found = coco_backends.made_up(options)
    truth = coco_backends.ground_truth("coco_detection_metrics", categories, identities, truths)
    answer = {"detections": sum(len(scores) for _, scores, _ in found)}
    for backend in EXACT_BACKENDS[:-1]:
        if usable(backend):
            answer[backend] = ours(truth, backend, identities, found)
    answer["od_api"] = od_api(categories, identities, truths, found)
    json.dump(answer, coco_backends.ANSWER)
    coco_backends.ANSWER.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
