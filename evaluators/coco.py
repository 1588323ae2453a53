"""COCO metrics of boxes and masks from columns of numbers, through one of three backends.

Libraries of models keep a dict for each box and hand them to pycocotools. Here ground truth and
detections are columns (one array for each field), which every backend can take; `pycocotools` is
the reference the others must equal. Boxes are [x, y, width, height] in pixels.
"""

import importlib
import shlex
import sys

import numpy as np
from pycocotools import coco, cocoeval
from pycocotools import mask as mask_tools

from evaluators.protocol import Refusal

BACKENDS = ("hotcoco", "faster-coco-eval", "pycocotools")
# Those equal to pycocotools to the last bit, the fastest first. faster-coco-eval is not one: on
# 5,000 images of 80 categories a few precisions of single categories differed by 7e-18.
EXACT_BACKENDS = ("hotcoco", "pycocotools")
# From here on pycocotools takes seconds for each checkpoint.
MANY_IMAGES = 1000
MODULES = {
    "hotcoco": "hotcoco",
    "faster-coco-eval": "faster_coco_eval",
    "pycocotools": "pycocotools",
}


def choose_backend(wanted):
    """Returns the backend to use: the one asked for, or under "auto" the fastest exact one.

    Raises:
        Refusal: it is unknown or cannot be imported here.
    """
    if wanted in (None, "auto"):
        return next(name for name in EXACT_BACKENDS if importable(name))
    if wanted not in BACKENDS:
        raise Refusal(
            "unsupported",
            "coco_backend ({}) is unknown".format(wanted),
            "choose auto, " + ", ".join(BACKENDS),
        )
    if not importable(wanted):
        raise Refusal(
            "unsupported",
            "coco_backend ({}) cannot be imported in the training environment".format(wanted),
            "install it there, or choose auto",
        )
    return wanted


def recommendation(wanted, backend, images):
    """Returns what a faster backend is good for, and the command that installs it.

    None where a fast one is used, none would run, or so few images are evaluated that it would
    not be felt.
    """
    if wanted not in (None, "auto") or backend != "pycocotools" or sys.version_info < (3, 10):
        return None
    if images < MANY_IMAGES:
        return None
    said = (
        "pycocotools computes the COCO metrics of {} images; hotcoco, which needs no other "
        "package, gives the same numbers many times faster"
    ).format(images)
    return said, "{} -m pip install --no-deps hotcoco".format(shlex.quote(sys.executable))


def importable(name):
    """Tells whether a backend can be used here."""
    try:
        importlib.import_module(MODULES[name])
    except Exception:  # a broken optional library must not end an evaluation that can do without
        return False
    return True


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
        return np.concatenate(self._parts) if self._parts else np.empty((0, 8))

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


def mean(values):
    """Returns the mean of the values there are, COCO's -1 where there are none."""
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else -1.0


def summarize(precision, recall):
    """Returns the 12 numbers of COCOeval.summarize, in its order.

    Computed here from the arrays for every backend, since not all sum in the same order.

    Args:
        precision: [IoU, recall, category, area, maxDets], with the areas all, small, medium,
            large and 1, 10, 100 detections.
        recall: the same without the second axis.
    """
    sizes = range(1, precision.shape[3])
    return [
        mean(precision[:, :, :, 0, -1]),
        mean(precision[0, :, :, 0, -1]),
        mean(precision[5, :, :, 0, -1]),
        *(mean(precision[:, :, :, size, -1]) for size in sizes),
        *(mean(recall[:, :, 0, count]) for count in range(recall.shape[3])),
        *(mean(recall[:, :, size, -1]) for size in sizes),
    ]


def precision_and_recall(backend, truth, detections):
    """Returns COCOeval's arrays of precision and recall.

    Args:
        backend: one of BACKENDS.
        truth: `images` {identity: (height, width)}, `categories` (dicts with `id` and `name`),
            `columns`, `iou_type` ("bbox" or "segm") and `with_masks`.
        detections: Columns.
    """
    run = {"hotcoco": _run_hotcoco, "faster-coco-eval": _run_faster}.get(backend, _run_pycocotools)
    return run(truth, detections)


def _run_hotcoco(truth, detections):
    import hotcoco

    table, found = truth.columns.table(), detections.table()
    masks = truth.with_masks
    reference = hotcoco.COCO.from_arrays(
        _images(truth),
        truth.categories,
        table[:, 0].astype(np.int64),
        table[:, 6].astype(np.int64),
        table[:, 1:5],
        area=table[:, 7],
        iscrowd=table[:, 5].astype(bool),
        segmentation=truth.columns.rles if masks else None,
    )
    result = reference.load_res(
        np.ascontiguousarray(found[:, :7]), segmentation=detections.rles if masks else None
    )
    if len(found) and (masks or detections.areas_count):
        # It takes the area of the box otherwise, where pycocotools takes that of the mask.
        areas = found[:, 7].copy() if detections.areas_count else _areas(detections.rles)
        result.update_anns(ids=np.arange(1, len(found) + 1), area=areas)
    evaluator = hotcoco.COCOeval(reference, result, truth.iou_type)
    return _arrays(evaluator)


def _areas(rles):
    """Returns the pixels of each mask. Of more at once pycocotools raises under NumPy 2."""
    parts = (rles[first : first + 255] for first in range(0, len(rles), 255))
    return np.concatenate([mask_tools.area(part) for part in parts]).astype(np.float64)


def _run_faster(truth, detections):
    import faster_coco_eval

    reference, result = _datasets(faster_coco_eval.COCO, truth, detections)
    return _arrays(
        faster_coco_eval.COCOeval_faster(
            reference, result, truth.iou_type, print_function=lambda *args: None
        )
    )


def _run_pycocotools(truth, detections):
    reference, result = _datasets(coco.COCO, truth, detections)
    return _arrays(cocoeval.COCOeval(reference, result, iouType=truth.iou_type))


def _arrays(evaluator):
    evaluator.evaluate()
    evaluator.accumulate()
    found = evaluator.eval
    shape = found["counts"]
    recall_shape = (shape[0], *shape[2:])
    precision = np.asarray(found["precision"]).reshape(shape)
    return precision, np.asarray(found["recall"]).reshape(recall_shape)


def _images(truth):
    return [{"id": i, "height": h, "width": w} for i, (h, w) in truth.images.items()]


def _datasets(factory, truth, detections):
    """Returns ground truth and detections as two data sets of dicts."""
    images = _images(truth)
    pairs = []
    for columns, last in ((truth.columns, "iscrowd"), (detections, "score")):
        annotations = _annotations(columns, last, truth.with_masks)
        dataset = factory()
        dataset.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": truth.categories,
        }
        dataset.createIndex()
        pairs.append(dataset)
    return pairs


def _annotations(columns, last, with_masks):
    table = columns.table()
    annotations = []
    for number, row in enumerate(table.tolist(), start=1):
        image, x, y, width, height, value, category, area = row
        annotation = {
            "id": number,
            "image_id": int(image),
            "category_id": int(category),
            "bbox": [x, y, width, height],
            "area": area if last == "iscrowd" or columns.areas_count else width * height,
            "iscrowd": int(value) if last == "iscrowd" else 0,
            last: int(value) if last == "iscrowd" else value,
        }
        annotations.append(annotation)
    if with_masks:
        for annotation, code in zip(annotations, columns.rles):
            annotation["segmentation"] = code
            if last == "score" and not columns.areas_count:
                annotation["area"] = float(mask_tools.area(code))
    return annotations
