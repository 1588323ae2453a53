"""COCO's metrics of one evaluation, computed apart from the Trainer, whose own wait for them.

Model Garden keeps a dict for each box and copies all of them, several times. Here its COCOEvaluator
collects as ever, and what it collected becomes columns (`evaluators.coco`), while the next
checkpoint may be in the model. The conventions are those of `coco_evaluator.py` and `coco_utils.py`
of `official.vision.evaluation`: float32 boxes [x, y, width, height], float32 areas, every detection
counted, of whatever score, only images that were evaluated, metrics rounded to float32.
"""

import copy

import numpy as np
from official.vision.evaluation import coco_evaluator, coco_utils
from official.vision.ops import box_ops
from pycocotools import coco as pycoco
from pycocotools import mask as mask_tools

from evaluators import coco

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
RECALLS = ("ARmax1", "ARmax10", "ARmax100", "ARs", "ARm", "ARl")
# What is also given for each category: name, index of the IoU threshold.
CATEGORY_PRECISIONS = (("AP", None), ("AP50", 0), ("AP75", 5))
CATEGORY_RECALL = "ARmax100"
PREFIXES = {"bbox": "", "segm": "mask_"}


class Truth:
    """The ground truth of boxes or masks, as `coco.precision_and_recall` takes it.

    Args:
        dataset: a COCO data set as pycocotools indexed it.
        images: the identities of the images that are evaluated.
        iou_type: "bbox" or "segm".
    """

    def __init__(self, dataset, images, iou_type):
        self.iou_type = iou_type
        self.with_masks = iou_type == "segm"
        self.known = sorted(dataset.getCatIds())
        self.categories = [{"id": number, "name": str(number)} for number in self.known]
        self.images = {}
        for image in dataset.loadImgs(sorted(set(images))):
            self.images[image["id"]] = (image.get("height", 0), image.get("width", 0))
        found = dataset.loadAnns(dataset.getAnnIds(imgIds=list(self.images), catIds=self.known))
        rows = [
            (
                *(one["image_id"], *one["bbox"], bool(one.get("iscrowd"))),
                *(one["category_id"], one["area"]),
            )
            for one in found
        ]
        rles = [_text(dataset.annToRLE(one)) for one in found] if self.with_masks else []
        self.columns = coco.Columns()
        self.columns.add_rows(np.array(rows, np.float64).reshape(-1, 8), rles)


class DeferredCoco:
    """Keeps what a task's COCOEvaluator collected, so that its metrics are computed later.

    A task without one is left alone, as is a user's own that makes something else of its metrics.
    One that measures keypoints is computed by Model Garden.

    Args:
        task: Model Garden's task.
        backend: one of `coco.BACKENDS`.
    """

    def __init__(self, task, backend):
        metric = getattr(task, "coco_metric", None)
        is_known = type(task).reduce_aggregated_logs.__module__.startswith("official.")
        is_coco = isinstance(metric, coco_evaluator.COCOEvaluator)
        self._metric = metric if is_coco and is_known else None
        self._backend = backend
        self._truths = None, []
        self._taken = None
        if is_coco:
            _let_numpy_count()
        if self._metric is not None:
            self._metric.result = self._take

    @property
    def is_there(self):
        """Whether the task has COCO metrics."""
        return self._metric is not None

    def _take(self):
        """Stands in for the evaluator's `result`."""
        taken = copy.copy(self._metric)
        del taken.result
        self._metric.reset_states()
        self._taken = taken
        return {}

    def taken(self):
        """Returns a function that computes the metrics of what was collected, to be called once.

        It returns ({metric: value}, [(metric, category, value)], [what `coco.resampler` takes]).
        """
        taken, self._taken = self._taken, None
        if taken is None:
            return lambda: ({}, [], [])
        if taken._include_keypoint:
            return lambda: (taken.result(), [], [])
        return lambda: self._compute(taken)

    def _compute(self, taken):
        values, by_category, to_resample = {}, [], []
        truths = self._truths_of(taken)
        table = _detections(taken, truths[0].known)
        for truth in truths:
            precision, recall, match = coco.evaluate(self._backend, truth, table)
            prefix = PREFIXES[truth.iou_type]
            to_resample.append(([prefix + name for name, _ in CATEGORY_PRECISIONS], match))
            found = coco.summarize(precision, recall)
            for name, value in zip((*NAMES, *RECALLS), found):
                values[prefix + name] = np.float32(value)
            by_category += _by_category(prefix, truth.known, precision, recall)
        return values, by_category, to_resample

    def _truths_of(self, taken):
        """Returns a Truth for each type, read once for the images that were evaluated."""
        seen = frozenset(np.concatenate(taken._predictions["source_id"]).tolist())
        if self._truths[0] != seen:
            if taken._annotation_file:
                dataset = taken._coco_gt
            else:
                found = coco_utils.convert_groundtruths_to_coco_dataset(taken._groundtruths)
                dataset = pycoco.COCO()
                dataset.dataset = found
                dataset.createIndex()
            types = ("bbox", "segm") if taken._include_mask else ("bbox",)
            self._truths = seen, [Truth(dataset, seen, iou_type) for iou_type in types]
        return self._truths[1]


def _detections(taken, known):
    """Returns the Columns of what was detected, of the known categories alone."""
    predictions = taken._predictions
    columns = coco.Columns(areas_count=True)
    if taken._include_mask:
        # Masks are pasted into their images by Model Garden itself.
        for one in coco_utils.convert_predictions_to_coco_annotations(dict(predictions)):
            if one["category_id"] in known:
                area = mask_tools.area(one["segmentation"])
                row = (one["image_id"], *one["bbox"], one["score"], one["category_id"], area)
                columns.add_rows(np.array([row], np.float64), [_text(one["segmentation"])])
        return columns
    for place, identities in enumerate(predictions["source_id"]):
        classes = predictions["detection_classes"][place]
        boxes = box_ops.yxyx_to_xywh(predictions["detection_boxes"][place])
        rows = np.empty((*classes.shape, 8), np.float64)
        rows[..., 0] = np.reshape(identities, (-1, 1))
        rows[..., 1:5] = boxes
        rows[..., 5] = predictions["detection_scores"][place]
        rows[..., 6] = classes
        rows[..., 7] = boxes[..., 2] * boxes[..., 3]
        columns.add_rows(rows[np.isin(classes, known)])
    return columns


def _text(rle):
    counts = rle["counts"]
    return {**rle, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _by_category(prefix, known, precision, recall):
    """Yields (metric, category, value): COCOeval's arrays averaged over one category each."""
    for place, category in enumerate(known):
        for name, iou in CATEGORY_PRECISIONS:
            part = precision[:, :, place, 0, -1] if iou is None else precision[iou, :, place, 0, -1]
            yield prefix + name, int(category), coco.mean(part)
        yield prefix + CATEGORY_RECALL, int(category), coco.mean(recall[:, place, 0, -1])


def _let_numpy_count():
    """Lets Model Garden count the boxes of an image where NumPy is 2.4 or newer.

    It asks for an array of one number to be a number, which NumPy refuses since then.
    """
    convert = coco_utils.convert_groundtruths_to_coco_dataset

    def converted(groundtruths, *arguments):
        counts = [np.reshape(count, [-1]) for count in groundtruths["num_detections"]]
        return convert(dict(groundtruths, num_detections=counts), *arguments)

    coco_utils.convert_groundtruths_to_coco_dataset = converted
