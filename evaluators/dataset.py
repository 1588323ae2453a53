"""The eval set: the OD API's own input pipeline, read once and kept decoded."""

import time

import tensorflow as tf
from object_detection import inputs
from object_detection.core import standard_fields

from evaluators.pipeline import is_sequence
from evaluators.protocol import Refusal

FIELDS = standard_fields.InputDataFields


class EvalSet:
    """All batches of the eval set, in the order the OD API's loop sees them.

    Attributes:
        images: images in the batches.
        unique_images: images with an identity of their own; the OD API's metrics ignore the
            second image with the hash of an earlier one.
        seconds: time it took to read and decode.
    """

    def __init__(self, pipeline, model):
        began = time.perf_counter()
        self._batches = list(_dataset(pipeline, model))
        self.seconds = time.perf_counter() - began
        hashes = [int(h) for features, _ in self._batches for h in features[inputs.HASH_KEY]]
        self.images = len(hashes)
        self.unique_images = len(set(hashes))
        _check_complete(pipeline, self.images)
        if self.unique_images < self.images:
            pipeline.warnings.append(
                "{} of {} images share their source_id with another and are ignored by the OD "
                "API's metrics".format(self.images - self.unique_images, self.images)
            )

    def __iter__(self):
        return iter(self._batches)

    def first_of_each_shape(self):
        """Returns one batch for each combination of tensor shapes: each is traced apart."""
        seen = {}
        for batch in self._batches:
            seen.setdefault(str(tf.nest.map_structure(lambda t: t.shape, batch)), batch)
        return list(seen.values())


def _dataset(pipeline, model):
    configs = pipeline.configs
    dataset = inputs.eval_input(
        eval_config=configs["eval_config"],
        eval_input_config=pipeline.eval_input,
        model_config=configs["model"],
        model=model,
        params={"batch_size": pipeline.batch_size},
    )
    return dataset.map(_without_original_pixels)


def _without_original_pixels(features, labels):
    """Keeps of the original image its shape alone: no metric looks at a pixel of it."""
    features = dict(features)
    features[FIELDS.original_image] = features[FIELDS.original_image][..., :0]
    return features, labels


def _check_complete(pipeline, images):
    reader = pipeline.eval_input
    if is_sequence(reader):
        return
    records = int(
        tf.data.TFRecordDataset(pipeline.record_files).reduce(
            tf.constant(0, tf.int64), lambda count, _: count + 1
        )
    )
    sampled = -(-records // max(1, reader.sample_1_of_n_examples))
    expected = sampled
    if reader.drop_remainder:
        expected -= sampled % pipeline.batch_size
    if images != expected or not images:
        raise Refusal(
            "bad_pipeline_config",
            "the eval set gives {} images, its records hold {}".format(images, expected),
            "check the eval records of pipeline.config",
        )
    if expected < sampled:
        pipeline.warnings.append(
            "drop_remainder leaves {} of {} images out of every evaluation, as it does in the OD "
            "API's own; set eval_input_reader.drop_remainder to false to count them".format(
                sampled - expected, sampled
            )
        )
