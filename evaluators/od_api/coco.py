"""COCO metrics of boxes and masks from columns of numbers, through one of three backends.

The OD API keeps a dict for each box and hands them to pycocotools. Here ground truth and
detections are columns (one array for each field), which every backend can take; `pycocotools` is
the reference the others must equal. The conventions are those of
`object_detection/metrics/coco_tools.py`: boxes as [x, y, width, height] in pixels, widths and
heights subtracted in float32, areas of ground truth multiplied in float32.
"""

import importlib
import shlex
import sys

import numpy as np
from object_detection.core import standard_fields
from object_detection.metrics import coco_tools

from evaluators.protocol import Refusal

FIELDS = standard_fields.InputDataFields
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
SETS = {
    "coco_detection_metrics": ("DetectionBoxes_", "bbox"),
    "coco_mask_metrics": ("DetectionMasks_", "segm"),
}
# The overall metrics that are also given for each category: name, index of the IoU threshold.
CATEGORY_PRECISIONS = (
    ("Precision/mAP", None),
    ("Precision/mAP@.50IOU", 0),
    ("Precision/mAP@.75IOU", 5),
)
# COCO's areas in pixels; a box of exactly such a size is counted in both.
SMALL, LARGE = 32**2, 96**2
CATEGORY_RECALL = "Recall/AR@100"


def choose_backend(wanted):
    """Returns the backend to use: the one asked for, or under "auto" the fastest exact one.

    Raises:
        Refusal: it is unknown or cannot be imported here.
    """
    if wanted in (None, "auto"):
        return next(name for name in EXACT_BACKENDS if _importable(name))
    if wanted not in BACKENDS:
        raise Refusal(
            "unsupported",
            "coco_backend ({}) is unknown".format(wanted),
            "choose auto, " + ", ".join(BACKENDS),
        )
    if not _importable(wanted):
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


def _importable(name):
    try:
        importlib.import_module(MODULES[name])
    except Exception:  # a broken optional library must not end an evaluation that can do without
        return False
    return True


class Columns:
    """Boxes of many images: one array for each field, filled image by image."""

    def __init__(self):
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
            self._rles.extend(_rles(masks))

    def table(self):
        """Returns float64 [n, 8]: image, x, y, width, height, score or crowd, class, area."""
        return np.concatenate(self._parts) if self._parts else np.empty((0, 8))

    @property
    def rles(self):
        """The masks as run-length codes, in the table's order."""
        return self._rles


def _rles(masks):
    if not len(masks):
        return []
    codes = coco_tools.mask.encode(np.asfortranarray(np.moveaxis(masks, 0, -1)))
    for code in codes:
        code["counts"] = code["counts"].decode("ascii")
    return codes


class GroundTruth:
    """The ground truth of one metric set, the same for every checkpoint.

    Attributes:
        images: {identity: (height, width)}, in the order first seen.
    """

    def __init__(self, metrics_set, categories):
        self.prefix, self.iou_type = SETS[metrics_set]
        # Backends stumble over what else a label map holds, keypoints for one.
        self.categories = [{"id": int(c["id"]), "name": c["name"]} for c in categories]
        self.known = np.array(sorted(c["id"] for c in categories))
        self.images = {}
        self.columns = Columns()

    @property
    def with_masks(self):
        """Whether masks are compared, not boxes."""
        return self.iou_type == "segm"

    def describe(self):
        """Returns what there is to find: boxes in all and by COCO's sizes, and classes without.

        Crowds are left out: a detection of one counts neither way.
        """
        table = self.columns.table()
        table = table[table[:, 5] == 0]
        areas, there = table[:, 7], set(table[:, 6].astype(int).tolist())
        return {
            "boxes": len(table),
            "small": int(np.sum(areas <= SMALL)),
            "medium": int(np.sum((areas >= SMALL) & (areas <= LARGE))),
            "large": int(np.sum(areas >= LARGE)),
            "without": [str(c["name"]) for c in self.categories if c["id"] not in there],
        }

    def add(self, eval_dict):
        """Adds one batch of the OD API's evaluation dict, as NumPy arrays.

        An image whose identity was seen before is ignored, as the OD API does.
        """
        for i, image_id in enumerate(eval_dict[FIELDS.key]):
            if int(image_id) in self.images:
                continue
            count = int(eval_dict[FIELDS.num_groundtruth_boxes][i])
            height, width = map(int, eval_dict[FIELDS.original_image_spatial_shape][i])
            classes = eval_dict[FIELDS.groundtruth_classes][i][:count]
            crowd = np.zeros(count)
            if FIELDS.groundtruth_is_crowd in eval_dict:
                crowd = eval_dict[FIELDS.groundtruth_is_crowd][i][:count]
            keep = np.isin(classes, self.known)
            masks = None
            if self.with_masks:
                masks = eval_dict[FIELDS.groundtruth_instance_masks][i][:count, :height, :width]
                masks = (masks[keep] > 0).astype(np.uint8)
            boxes = eval_dict[FIELDS.groundtruth_boxes][i][:count]
            self.columns.add(int(image_id), boxes[keep], classes[keep], crowd[keep], masks)
            self.images[int(image_id)] = (height, width)


class CocoMetrics:
    """Takes the detections of one evaluation and gives COCO's metrics of one set."""

    def __init__(self, truth, backend, eval_config):
        self._truth = truth
        self._backend = backend
        self._eval_config = eval_config
        self._seen = set()
        self._detections = Columns()

    def add(self, detections):
        """Takes one batch of detections (`detections.AbsoluteDetections`)."""
        for i, image_id in enumerate(detections.image_ids):
            if int(image_id) in self._seen:
                continue
            self._seen.add(int(image_id))
            boxes, scores, classes, masks = detections.image(i, self._truth.with_masks)
            keep = np.isin(classes, self._truth.known)
            if not keep.all():
                boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
                masks = masks[keep] if masks is not None else None
            self._detections.add(int(image_id), boxes, classes, scores, masks)

    def compute(self):
        """Returns ({metric: value}, [category metric]) under the OD API's names."""
        run = {"hotcoco": _run_hotcoco, "faster-coco-eval": _run_faster}.get(
            self._backend, _run_pycocotools
        )
        precision, recall = run(self._truth, self._detections)
        stats = summarize(precision, recall)
        prefix = self._truth.prefix
        metrics = {
            prefix + name: float(stats[index])
            for name, index in coco_tools.COCO_METRIC_NAMES_AND_INDEX
        }
        by_category = self._by_category(precision, recall)
        metrics.update(self._configured_categories(by_category))
        return metrics, by_category

    def _by_category(self, precision, recall):
        """Averages COCOeval's arrays over one category at a time, by its id; -1 where it has none.

        Precision is [IoU, recall, category, area, maxDets], recall the same without recall;
        the overall metrics are the same averages over all categories.
        """
        found = []
        for k, category_id in enumerate(self._truth.known):
            for name, iou in CATEGORY_PRECISIONS:
                part = precision[:, :, k, 0, -1] if iou is None else precision[iou, :, k, 0, -1]
                found.append(self._category_metric(name, int(category_id), part))
            part = recall[:, k, 0, -1]
            found.append(self._category_metric(CATEGORY_RECALL, int(category_id), part))
        return found

    def _category_metric(self, name, category, values):
        return {"name": self._truth.prefix + name, "category": category, "value": mean(values)}

    def _configured_categories(self, by_category):
        """The OD API's own per-category names, which it cannot fill with stock pycocotools."""
        if not self._eval_config.include_metrics_per_category:
            return {}
        prefix = self._truth.prefix
        names = {c["id"]: c["name"] for c in self._truth.categories}
        return {
            prefix + "PerformanceByCategory/mAP/" + names[metric["category"]]: metric["value"]
            for metric in by_category
            if metric["name"] == prefix + "Precision/mAP"
        }


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
    if masks and len(found):
        # It takes the area of the box otherwise, where pycocotools takes that of the mask.
        result.update_anns(ids=np.arange(1, len(found) + 1), area=_areas(detections.rles))
    evaluator = hotcoco.COCOeval(reference, result, truth.iou_type)
    return _arrays(evaluator)


def _areas(rles):
    """Returns the pixels of each mask. Of more at once pycocotools raises under NumPy 2."""
    parts = (rles[first : first + 255] for first in range(0, len(rles), 255))
    return np.concatenate([coco_tools.mask.area(part) for part in parts]).astype(np.float64)


def _run_faster(truth, detections):
    import faster_coco_eval

    reference, result = _datasets(faster_coco_eval.COCO, truth, detections)
    return _arrays(
        faster_coco_eval.COCOeval_faster(
            reference, result, truth.iou_type, print_function=lambda *args: None
        )
    )


def _run_pycocotools(truth, detections):
    reference, result = _datasets(coco_tools.coco.COCO, truth, detections)
    return _arrays(coco_tools.cocoeval.COCOeval(reference, result, iouType=truth.iou_type))


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
            "area": area if last == "iscrowd" else width * height,
            "iscrowd": int(value) if last == "iscrowd" else 0,
            last: int(value) if last == "iscrowd" else value,
        }
        annotations.append(annotation)
    if with_masks:
        for annotation, code in zip(annotations, columns.rles):
            annotation["segmentation"] = code
            if last == "score":
                annotation["area"] = float(coco_tools.mask.area(code))
    return annotations
