"""Detections and ground truth of one batch as NumPy arrays, in pixels of the original image.

They are what `eval_util.result_dict_for_batched_example` gives, without its operations for each
image. Float32 products and quotients and integer casts are the same in NumPy, so the numbers are
equal to the last bit; masks go through the OD API's own functions.
"""

import numpy as np
import tensorflow as tf
from object_detection import eval_util
from object_detection.core import standard_fields

from evaluators.protocol import Failure, Refusal

FIELDS = standard_fields.InputDataFields
DETECTIONS = standard_fields.DetectionResultFields
# The OD API refuses normalised boxes beyond this: they would be pixels already.
MAXIMUM_NORMALISED = 1.1
_FLAGS = (
    FIELDS.groundtruth_is_crowd,
    FIELDS.groundtruth_difficult,
    FIELDS.groundtruth_group_of,
)


def truth_arrays(features, labels, class_agnostic):
    """Returns the ground truth of a batch but for masks, by the keys of an evaluation dict.

    Args:
        features, labels: the batch.
        class_agnostic: whether the model gives no classes, so that all count as one.

    Raises:
        Refusal: a box reaches further than the OD API takes.
    """
    sizes = features[FIELDS.original_image_spatial_shape].numpy()
    boxes = labels[FIELDS.groundtruth_boxes].numpy()
    # Boxes are fractions of the padded image, and become ones of the image in it.
    padded = np.array(features[FIELDS.original_image].shape[1:3], np.float32)
    true = features[FIELDS.true_image_shape].numpy()[:, :2].astype(np.float32)
    boxes = boxes * np.tile(np.float32(1) / (true / padded), 2)[:, None, :]
    if boxes.size and not boxes.max() <= np.float32(MAXIMUM_NORMALISED):
        raise Refusal(
            "bad_records",
            "a box of the eval records reaches to {:.8g}, and above {:g} of the image the OD API"
            " breaks off".format(boxes.max(), MAXIMUM_NORMALISED),
            "boxes are fractions of the image's width and height",
        )
    if class_agnostic:
        classes = np.ones(boxes.shape[:2], np.int64)
    else:
        classes = np.argmax(labels[FIELDS.groundtruth_classes].numpy(), axis=2) + 1
    return {
        FIELDS.original_image_spatial_shape: sizes,
        FIELDS.num_groundtruth_boxes: labels[FIELDS.num_groundtruth_boxes].numpy(),
        FIELDS.groundtruth_boxes: boxes * np.tile(sizes.astype(np.float32), 2)[:, None, :],
        FIELDS.groundtruth_classes: classes,
        **{key: labels[key].numpy() for key in _FLAGS if key in labels},
    }


class AbsoluteDetections:
    """The detections of a batch.

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
