"""The programs that compute COCOeval's arrays, and which of them is used."""

import importlib

import numpy as np

from evaluators.coco import overlaps, reference, vectorised
from evaluators.coco.columns import areas_of
from evaluators.protocol import Refusal

# The first computes here, in NumPy; the others are packages of that name.
BACKENDS = ("numpy", "hotcoco", "faster-coco-eval", "pycocotools")
# Those equal to pycocotools to the last bit. faster-coco-eval is not one: on 5,000 images of 80
# categories a few precisions of single categories differed by 7e-18.
EXACT_BACKENDS = ("numpy", "hotcoco", "pycocotools")


def choose_backend(wanted):
    """Returns the backend to use: the one asked for, or under "auto" the fastest exact one.

    Raises:
        Refusal: it is unknown or cannot be used here.
    """
    if wanted in (None, "auto"):
        return "numpy" if usable("numpy") else "pycocotools"
    if wanted not in BACKENDS:
        raise Refusal(
            "unsupported",
            "coco_backend ({}) is unknown".format(wanted),
            "choose auto, " + ", ".join(BACKENDS),
        )
    if not usable(wanted):
        raise Refusal(
            "unsupported",
            "coco_backend ({}) cannot be used in the training environment".format(wanted),
            "install it there, or choose auto",
        )
    return wanted


def usable(name):
    """Tells whether a backend can be used here.

    That of NumPy needs a pycocotools that computes an IoU in the same steps; one that was compiled
    to fuse some, as compilers do on some processors, differs from it in a last bit.
    """
    if name == "numpy":
        return overlaps.equal_pycocotools()
    try:
        importlib.import_module(name.replace("-", "_"))
    except Exception:  # a broken optional library must not end an evaluation that can do without
        return False
    return True


def precision_and_recall(backend, truth, detections):
    """Returns COCOeval's arrays of precision and recall.

    Args:
        backend: one of BACKENDS.
        truth: `images` {identity: (height, width)}, `categories` (dicts with `id` and `name`),
            `columns`, `iou_type` ("bbox" or "segm") and `with_masks`.
        detections: Columns.
    """
    return evaluate(backend, truth, detections)[:2]


def evaluate(backend, truth, detections):
    """Returns arrays of precision and recall, and a function that returns what is Matched.

    That is called once, when there is time; what it returns is None where nothing can be matched.
    """
    if backend == "numpy":
        matched = vectorised.match(truth, detections)
        arrays = matched.arrays() if matched else reference.evaluate(truth, detections)
        return (*arrays, lambda: matched)
    arrays = _EVALUATE[backend](truth, detections)
    return (*arrays, lambda: vectorised.match(truth, detections))


def _evaluate_hotcoco(truth, detections):
    import hotcoco

    table, found = truth.columns.table(), detections.table()
    masks = truth.with_masks
    known = hotcoco.COCO.from_arrays(
        reference.images_of(truth),
        truth.categories,
        table[:, 0].astype(np.int64),
        table[:, 6].astype(np.int64),
        table[:, 1:5],
        area=table[:, 7],
        iscrowd=table[:, 5].astype(bool),
        segmentation=truth.columns.rles if masks else None,
    )
    result = known.load_res(
        np.ascontiguousarray(found[:, :7]), segmentation=detections.rles if masks else None
    )
    if len(found) and (masks or detections.areas_count):
        # It takes the area of the box otherwise, where pycocotools takes that of the mask.
        areas = found[:, 7].copy() if detections.areas_count else areas_of(detections.rles)
        result.update_anns(ids=np.arange(1, len(found) + 1), area=areas)
    return reference.arrays(hotcoco.COCOeval(known, result, truth.iou_type))


def _evaluate_faster(truth, detections):
    import faster_coco_eval

    known, found = reference.datasets(faster_coco_eval.COCO, truth, detections)
    return reference.arrays(
        faster_coco_eval.COCOeval_faster(
            known, found, truth.iou_type, print_function=lambda *args: None
        )
    )


# All but numpy, whose arrays are made of what it matched.
_EVALUATE = {
    "hotcoco": _evaluate_hotcoco,
    "faster-coco-eval": _evaluate_faster,
    "pycocotools": reference.evaluate,
}
