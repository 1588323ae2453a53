"""The eval set: the OD API's own input pipeline, decoded once where memory or disk allows."""

import pathlib
import tempfile

import tensorflow as tf
from object_detection import inputs
from object_detection.core import standard_fields

from evaluators import disk
from evaluators.memory import default_cache_bytes, tensor_bytes
from evaluators.od_api import compat, records
from evaluators.od_api.model import inputs_of_the_model
from evaluators.od_api.pipeline import is_sequence
from evaluators.protocol import Refusal
from evaluators.reading import UNREADABLE

FIELDS = standard_fields.InputDataFields
# Where the identities of images without a source_id begin: above every hash of one.
FIRST_NUMBERED = 1 << 31


class EvalSet:
    """All batches of the eval set, in the order the OD API's loop sees them.

    Kept decoded in memory up to `cache_bytes`; beyond that in a file of tf.data's cache, and
    where the disk has no room either, read and decoded anew each time.

    Args:
        pipeline: the Pipeline; warnings are added to it.
        model: the OD API's DetectionModel, whose preprocessing the pipeline runs.
        cache_bytes: None for a quarter of the memory available now, at most 4 GiB.
        cache_on_disk: whether a set too large for memory may be kept on disk.

    Attributes:
        images: images in the batches.
        batches: how many there are.
        numbered: those of them without a source_id, whose identity is their place.
        shapes: one batch for each combination of tensor shapes: each is traced apart.
        kept: "memory", "disk" or "nowhere".
    """

    def __init__(self, pipeline, model, cache_bytes=None, cache_on_disk=True):
        self._budget = default_cache_bytes() if cache_bytes is None else int(cache_bytes)
        self._with_pixels = _dataset(pipeline, model)
        self._dataset = self._with_pixels.map(_without_original_pixels)
        self._batches = []
        self._bytes = 0
        self.kept = "memory"
        self.images = 0
        self.batches = 0
        self.numbered = 0
        self.shapes = []
        seen = {}
        hashes = set()
        try:
            for features, labels in self._dataset:
                self._keep((features, labels))
                seen.setdefault(_shape_key(features, labels), (features, labels))
                keys = features[inputs.HASH_KEY].numpy()
                self.images += len(keys)
                self.batches += 1
                self.numbered += int((keys >= FIRST_NUMBERED).sum())
                hashes.update(keys.tolist())
        except UNREADABLE as error:
            raise _cannot_read(pipeline, error) from error
        self.shapes = list(seen.values())
        _check_complete(pipeline, self.images)
        if len(hashes) < self.images:
            pipeline.warnings.append(
                "{} of {} images share their source_id with another and are ignored by the OD "
                "API's metrics".format(self.images - len(hashes), self.images)
            )
        if self.kept != "memory":
            self._move_to_disk(pipeline, cache_on_disk)

    def __iter__(self):
        return iter(self._batches or self._dataset)

    def first_with_boxes(self):
        """Returns the first batch with ground truth, or the first of all where none has any.

        The OD API's weighted pascal VOC evaluators raise where there is none.
        """
        for features, labels in self:
            if tf.reduce_sum(labels[FIELDS.num_groundtruth_boxes]) > 0:
                return features, labels
        return self.shapes[0]

    def original_pixels(self, images):
        """Returns the original images of the first batches, until there are that many of them."""
        found, count = [], 0
        for features, _ in self._with_pixels:
            if count >= images:
                break
            found.append(features[FIELDS.original_image])
            count += len(found[-1])
        return found

    def _keep(self, batch):
        self._bytes += sum(tensor_bytes(t) for t in tf.nest.flatten(batch))
        if self._bytes > self._budget:
            self._batches = []
            self.kept = "nowhere"
        elif self.kept == "memory":
            self._batches.append(batch)

    def _move_to_disk(self, pipeline, allowed):
        # Room for what others write too: a full disk would stop the trainer's checkpoints.
        if allowed and disk.free_bytes(tempfile.gettempdir()) > 4 * self._bytes:
            folder = pathlib.Path(tempfile.mkdtemp(prefix="eval-set-"))
            self._dataset = self._dataset.cache(str(folder / "eval_set"))
            # Written whole now: tf.data refuses a cache that an iteration left half written.
            for _ in self._dataset:
                pass
            self.kept = "disk"
        pipeline.warnings.append(
            "the decoded eval set takes {} MiB, more than the {} MiB for it in memory: {}".format(
                self._bytes >> 20,
                self._budget >> 20,
                "kept on disk"
                if self.kept == "disk"
                else "decoded anew for each checkpoint (a TMPDIR on a disk with room spares that)",
            )
        )


def first_batch(pipeline, model):
    """Returns the first batch as the model gets it; raises Refusal where it cannot be read."""
    try:
        for batch in _dataset(pipeline, model).map(_without_original_pixels).take(1):
            return batch
    except UNREADABLE as error:
        raise _cannot_read(pipeline, error) from error
    raise Refusal(records.CODE, "the eval records hold no image", "check their paths")


def _shape_key(features, labels):
    features = inputs_of_the_model(features)
    return str(
        [sorted((k, tuple(t.shape)) for k, t in part.items()) for part in (features, labels)]
    )


def _dataset(pipeline, model):
    try:
        return _unconverted(pipeline, model)
    except Exception:  # whatever the code of a decoder raises where it does need AutoGraph
        return _built(pipeline, model)


def _built(pipeline, model):
    configs = pipeline.configs
    reader = type(pipeline.eval_input)()
    reader.CopyFrom(pipeline.eval_input)
    batch_size = pipeline.batch_size
    rebatched = batch_size != pipeline.pipeline_batch_size
    reader.include_source_id = True
    with compat.empty_source_ids():
        dataset = inputs.eval_input(
            eval_config=configs["eval_config"],
            eval_input_config=reader,
            model_config=configs["model"],
            model=model,
            params={"batch_size": 1 if rebatched else batch_size},
        )
    if rebatched:
        # The same images as at the pipeline's batch size: a dropped remainder stays dropped.
        dataset = dataset.unbatch()
        if not is_sequence(reader):
            dataset = dataset.take(_expected_images(pipeline)[0])
        dataset = dataset.batch(batch_size)
    return dataset.enumerate().map(lambda number, batch: _identified(number * batch_size, *batch))


# AutoGraph turns Python's `if` and `for` on tensors into operations. The OD API's input pipeline
# has none, and to convert all that it calls takes ten times as long as to build it.
_unconverted = tf.autograph.experimental.do_not_convert(_built)


def _identified(first, features, labels):
    """Numbers the images without a source_id in reading order; `first` images came before.

    Ground truth and detections are joined by this identity, and may be of two readings. The OD API
    hashes the source_id to 31 bits, and where there is none a random number: two images then share
    a hash in 1 of 172 evaluations of 5,000 images, and it ignores one of the two. Numbers never
    meet, so no image is lost, and no hash reaches them. COCO takes images in the order of their
    identities, which decides between equal scores: with numbers that order stays, too.
    """
    features = dict(features)
    source_ids, hashes = features.pop(FIELDS.source_id), features[inputs.HASH_KEY]
    places = first + tf.range(tf.size(source_ids, tf.int64), dtype=tf.int64)
    features[inputs.HASH_KEY] = tf.where(
        tf.equal(source_ids, ""), FIRST_NUMBERED + places, tf.cast(hashes, tf.int64)
    )
    return features, labels


def _without_original_pixels(features, labels):
    """Keeps of the original image its shape alone: no metric looks at a pixel of it."""
    features = dict(features)
    features[FIELDS.original_image] = features[FIELDS.original_image][..., :0]
    return features, labels


def _cannot_read(pipeline, error):
    if pipeline.batch_size > 1 and "cannot batch" in str(error).lower():
        return Refusal(
            "unsupported",
            "a batch size of {} is not possible: images differ in size after the image_resizer "
            "of pipeline.config".format(pipeline.batch_size),
            "use batch size 1, or an image_resizer that pads",
        )
    return records.explain(pipeline, error)


def _expected_images(pipeline):
    """Returns how many images an evaluation must see, and how many of the sample it leaves out."""
    reader = pipeline.eval_input
    records = int(
        tf.data.TFRecordDataset(pipeline.record_files).reduce(
            tf.constant(0, tf.int64), lambda count, _: count + 1
        )
    )
    sampled = -(-records // max(1, reader.sample_1_of_n_examples))
    left_out = sampled % pipeline.pipeline_batch_size if reader.drop_remainder else 0
    return sampled - left_out, left_out


def _check_complete(pipeline, images):
    if is_sequence(pipeline.eval_input):
        return
    expected, left_out = _expected_images(pipeline)
    if images != expected or not images:
        raise Refusal(
            "bad_pipeline_config",
            "the eval set gives {} images, its records hold {}".format(images, expected),
            "check the eval records of pipeline.config",
        )
    if left_out:
        pipeline.warnings.append(
            "drop_remainder leaves {} of {} images out of every evaluation, as it does in the OD "
            "API's own; set eval_input_reader.drop_remainder to false to count them".format(
                left_out, expected + left_out
            )
        )
