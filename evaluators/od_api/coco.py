"""COCO metrics of the OD API's boxes and masks, under its names.

The conventions are those of `object_detection/metrics/coco_tools.py`: boxes as [x, y, width,
height] in pixels, widths and heights subtracted in float32, areas of ground truth multiplied in
float32.
"""

import numpy as np
from object_detection.core import standard_fields
from object_detection.metrics import coco_tools

from evaluators.coco import Columns, evaluate, mean, summarize

FIELDS = standard_fields.InputDataFields
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
        self._detections = Columns(known=truth.known)
        self._match = None

    def add(self, detections):
        """Takes one batch of detections (`detections.AbsoluteDetections`)."""
        for i, image_id in enumerate(detections.image_ids):
            if int(image_id) in self._seen:
                continue
            self._seen.add(int(image_id))
            boxes, scores, classes, masks = detections.image(i, self._truth.with_masks)
            if masks is not None:
                keep = np.isin(classes, self._truth.known)
                boxes, scores, classes, masks = (
                    one[keep] for one in (boxes, scores, classes, masks)
                )
            self._detections.add(int(image_id), boxes, classes, scores, masks)

    def compute(self):
        """Returns ({metric: value}, [category metric]) under the OD API's names."""
        precision, recall, self._match = evaluate(self._backend, self._truth, self._detections)
        stats = summarize(precision, recall)
        prefix = self._truth.prefix
        metrics = {
            prefix + name: float(stats[index])
            for name, index in coco_tools.COCO_METRIC_NAMES_AND_INDEX
        }
        by_category = self._by_category(precision, recall)
        metrics.update(self._configured_categories(by_category))
        return metrics, by_category

    def to_resample(self):
        """Returns what `coco.resampler` takes of this set, once it is computed."""
        return [self._truth.prefix + name for name, _ in CATEGORY_PRECISIONS], self._match

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
