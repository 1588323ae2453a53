"""Detections of one batch as NumPy arrays, in pixels of the original image."""

import numpy as np
import tensorflow as tf
from object_detection import eval_util
from object_detection.core import standard_fields

from evaluators.protocol import Failure

DETECTIONS = standard_fields.DetectionResultFields
# The OD API refuses normalised boxes beyond this: they would be pixels already.
MAXIMUM_NORMALISED = 1.1


class AbsoluteDetections:
    """What `eval_util.result_dict_for_batched_example` makes of detections, without its graph.

    Float32 products and integer casts are the same in NumPy, so the numbers are equal to the last
    bit; masks go through the OD API's own function.

    Args:
        detections: what the model's postprocess returned, as tensors or NumPy arrays.
        image_ids: identities of the batch's images.
        sizes: int [batch, 2], height and width of each original image.
    """

    def __init__(self, detections, image_ids, sizes):
        self.image_ids = image_ids
        self._sizes = sizes
        self._counts = np.asarray(detections[DETECTIONS.num_detections]).astype(np.int32)
        self._scores = np.asarray(detections[DETECTIONS.detection_scores])
        if DETECTIONS.detection_classes in detections:
            classes = np.asarray(detections[DETECTIONS.detection_classes])
            self._classes = classes.astype(np.int64) + 1
        else:
            self._classes = np.ones(self._scores.shape, np.int64)
        boxes = np.asarray(detections[DETECTIONS.detection_boxes])
        if boxes.size and not boxes.max() <= MAXIMUM_NORMALISED:
            raise Failure(
                "not_finite",
                "a detected box reaches to {}: it must be at most {} of the image".format(
                    boxes.max(), MAXIMUM_NORMALISED
                ),
                permanent=True,
            )
        self._boxes = boxes * np.tile(sizes.astype(np.float32), 2)[:, None, :]
        self._masks = None
        self._found = detections

    @property
    def has_masks(self):
        """Whether the model gives masks."""
        return DETECTIONS.detection_masks in self._found

    def image(self, index, with_masks):
        """Returns (boxes, scores, classes, masks or None) of one image's detections."""
        count = self._counts[index]
        masks = None
        if with_masks:
            height, width = self._sizes[index]
            masks = self._resized_masks()[index][:count, :height, :width]
        return (
            self._boxes[index][:count],
            self._scores[index][:count],
            self._classes[index][:count],
            masks,
        )

    def _resized_masks(self):
        if self._masks is None:
            self._masks = eval_util.resize_detection_masks(
                tf.convert_to_tensor(self._found[DETECTIONS.detection_boxes]),
                tf.convert_to_tensor(self._found[DETECTIONS.detection_masks]),
                tf.constant(self._sizes),
            ).numpy()
            self._masks = (self._masks > 0).astype(np.uint8)
        return self._masks
