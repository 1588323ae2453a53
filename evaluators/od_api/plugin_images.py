"""What metric plugins get: each image with its ground truth and its detections.

The arrays are copies: a plugin may change them, and neither another plugin nor the OD API's
metrics see it. Masks are kept as run-length codes and become arrays when they are asked for; those
of ground truth have gone through the model's input size, as those of the OD API's metrics have.
"""

import numpy as np
from object_detection.core import standard_fields
from object_detection.metrics import coco_tools

FIELDS = standard_fields.InputDataFields
FLAGS = {
    "groundtruth_is_crowd": FIELDS.groundtruth_is_crowd,
    "groundtruth_difficult": FIELDS.groundtruth_difficult,
    "groundtruth_group_of": FIELDS.groundtruth_group_of,
}


class Image:
    """One image of the eval set: what is in it and what the checkpoint found in it.

    Boxes are [ymin, xmin, ymax, xmax] in pixels of the original image, as floats; classes are the
    ids of the label map. n is the number of objects, m that of detections, in the model's order.

    Attributes:
        image_id: int, the OD API's identity: `tf.strings.to_hash_bucket_fast(source_id, 2**31)`;
            without a source_id 2**31 and the image's place in the eval set, from 0.
        height, width: int, of the original image.
        groundtruth_boxes: float32 [n, 4].
        groundtruth_classes: int64 [n].
        groundtruth_is_crowd, groundtruth_difficult, groundtruth_group_of: bool [n], False where
            the records do not say.
        detection_boxes: float32 [m, 4].
        detection_scores: float32 [m].
        detection_classes: int64 [m].
    """

    def __init__(self, image_id, truth, detections):
        self.image_id = image_id
        self._masks = {}
        for fields in (truth, detections):
            for name, value in fields.items():
                if name.endswith("_masks"):
                    self._masks[name] = value
                else:
                    setattr(self, name, value.copy() if isinstance(value, np.ndarray) else value)

    @property
    def groundtruth_masks(self):
        """uint8 [n, height, width] of 0 and 1, decoded anew each time; None without masks."""
        return self._decoded("groundtruth_masks")

    @property
    def detection_masks(self):
        """uint8 [m, height, width] of 0 and 1, decoded anew each time; None without masks."""
        return self._decoded("detection_masks")

    def _decoded(self, name):
        codes = self._masks[name]
        if codes is None:
            return None
        if not codes:
            return np.zeros((0, self.height, self.width), np.uint8)
        return np.ascontiguousarray(np.moveaxis(coco_tools.mask.decode(codes), -1, 0))


class Truths:
    """The ground truth that plugins get, the same for every checkpoint.

    Attributes:
        plugins: the plugins it is for.
        categories: {id: name}.
        with_masks: whether the eval records give masks; detections have them only then too.
    """

    def __init__(self, plugins, categories):
        self.plugins = plugins
        self.categories = {int(c["id"]): str(c["name"]) for c in categories}
        self.with_masks = False
        self._images = {}

    def add(self, eval_dict):
        """Adds one batch of the OD API's evaluation dict, as NumPy arrays."""
        self.with_masks = FIELDS.groundtruth_instance_masks in eval_dict
        for i, image_id in enumerate(eval_dict[FIELDS.key]):
            # As in the OD API's metrics, an identity that was seen before is ignored.
            if int(image_id) not in self._images:
                self._images[int(image_id)] = self._of_one(eval_dict, i)

    def _of_one(self, eval_dict, i):
        count = int(eval_dict[FIELDS.num_groundtruth_boxes][i])
        height, width = map(int, eval_dict[FIELDS.original_image_spatial_shape][i])
        truth = {
            "height": height,
            "width": width,
            "groundtruth_boxes": eval_dict[FIELDS.groundtruth_boxes][i][:count].copy(),
            "groundtruth_classes": eval_dict[FIELDS.groundtruth_classes][i][:count].copy(),
            "groundtruth_masks": None,
        }
        for name, key in FLAGS.items():
            truth[name] = np.zeros(count, bool)
            if key in eval_dict:
                truth[name] = eval_dict[key][i][:count] > 0
        if self.with_masks:
            masks = eval_dict[FIELDS.groundtruth_instance_masks][i]
            truth["groundtruth_masks"] = _codes(masks[:count, :height, :width] > 0)
        return truth

    def try_out(self):
        """Calls each plugin with one image, whose ground truth is also what was found in it.

        So no model is needed, the trial is the same every time, and what a plugin does with
        detections is run through before hours are spent on checkpoints.

        Raises:
            Refusal: a plugin fails or returns no metrics.
        """
        truths = self._images.items()
        filled = (item for item in truths if len(item[1]["groundtruth_boxes"]))
        image_id, truth = next(filled, next(iter(truths)))
        found = {
            "detection_boxes": truth["groundtruth_boxes"],
            "detection_scores": np.ones(len(truth["groundtruth_boxes"]), np.float32),
            "detection_classes": truth["groundtruth_classes"],
            "detection_masks": truth["groundtruth_masks"],
        }
        for plugin in self.plugins:
            plugin.try_out([Image(image_id, truth, found)], dict(self.categories))

    def images(self, detections):
        """Returns the images with these detections ({image id: fields}), all arrays copied."""
        return [Image(i, truth, detections[i]) for i, truth in self._images.items()]


class PluginMetrics:
    """Takes the detections of one evaluation and gives the plugins' metrics."""

    def __init__(self, truths):
        self._truths = truths
        self._detections = {}

    def add(self, detections):
        """Takes one batch of detections (`detections.AbsoluteDetections`)."""
        for i, image_id in enumerate(detections.image_ids):
            if int(image_id) in self._detections:
                continue
            with_masks = self._truths.with_masks and detections.has_masks
            boxes, scores, classes, masks = detections.image(i, with_masks)
            self._detections[int(image_id)] = {
                # Not views, which would keep the whole batch.
                "detection_boxes": boxes.copy(),
                "detection_scores": scores.copy(),
                "detection_classes": classes.copy(),
                "detection_masks": None if masks is None else _codes(masks),
            }

    def compute(self):
        """Returns ({metric: float or None}, [a sentence for each reason of no value])."""
        values, sentences = {}, []
        for plugin in self._truths.plugins:
            images = self._truths.images(self._detections)
            found, reasons = plugin.compute(images, dict(self._truths.categories))
            values.update(found)
            sentences += reasons
        return values, sentences


def _codes(masks):
    """Returns run-length codes of masks [n, height, width]."""
    if not len(masks):
        return []
    planes = np.asfortranarray(np.moveaxis(masks, 0, -1).astype(np.uint8))
    return coco_tools.mask.encode(planes)
