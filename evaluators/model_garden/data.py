"""The eval set: Model Garden's own input pipeline, decoded once where memory allows."""

import collections
import itertools
import json

import tensorflow as tf
from official.common import dataset_fn

from evaluators.memory import default_cache_bytes, tensor_bytes
from evaluators.protocol import Refusal, one_line
from evaluators.reading import UNREADABLE

CODE = "bad_records"


class EvalSet:
    """All batches of an evaluation, in the order in which Model Garden's loop sees them.

    Args:
        experiment: the Experiment; warnings are added to it.
        task: Model Garden's task, which reads.
        cache_bytes: what may be kept in memory, None for a quarter of what is available.

    Attributes:
        dataset: a tf.data.Dataset of them, on one replica.
        images: how many they hold.
        batch_sizes: images of each.
        batch_bytes: what the largest takes in memory.
        kept: "memory", or "nowhere" where they are read and decoded anew each time.
        records: how many records its files hold, 0 where that is not known.
        source_ids: identities of the images, none where the task has no such thing.
        category_ids: those of the ground truth's boxes.
    """

    def __init__(self, experiment, task, cache_bytes=None):
        self._budget = default_cache_bytes() if cache_bytes is None else int(cache_bytes)
        try:
            dataset = task.build_inputs(experiment.validation_data)
            if experiment.steps > 0:
                dataset = dataset.take(experiment.steps)
            self._read(dataset)
            self.records = _count_records(experiment)
        except (*UNREADABLE, ValueError, LookupError, TypeError) as error:
            raise _cannot_read(experiment, error) from error
        self._warn(experiment, self.records)
        self._check_source_ids(experiment)

    def _read(self, dataset):
        """Reads all batches once. As long as they fit they stay where tf.data keeps them."""
        self.batch_sizes, self.batch_bytes, self._bytes = [], 0, 0
        self.source_ids, self.category_ids = [], set()
        self.dataset, self.kept = dataset.cache(), "memory"
        batches = iter(self.dataset)
        while True:
            batch = next(batches, None)
            if batch is None:
                break
            self._take(batch)
            if self.kept == "memory" and self._bytes > self._budget:
                # What was kept goes with its iterator; the rest is counted as it is read.
                self.dataset, self.kept = dataset, "nowhere"
                batches = iter(dataset.skip(len(self.batch_sizes)))
        self.images = sum(self.batch_sizes)

    def _take(self, batch):
        size = sum(tensor_bytes(tensor) for tensor in tf.nest.flatten(batch))
        self.batch_sizes.append(batch_size(batch))
        self.batch_bytes = max(self.batch_bytes, size)
        self._bytes += size
        truths = _truths(batch)
        self.source_ids += _source_ids(truths)
        self.category_ids |= _category_ids(truths)

    @property
    def alike(self):
        """How many batches there are, from the first on, of as many images as that."""
        alike = itertools.takewhile(lambda size: size == self.batch_sizes[0], self.batch_sizes)
        return len(list(alike))

    def _warn(self, experiment, records):
        if not self.images:
            raise Refusal(
                CODE,
                "task.validation_data of {} gives no image of {} records".format(
                    experiment.own_name, records
                ),
                "a batch (task.validation_data.global_batch_size, {}) that is not full is left out"
                " by drop_remainder".format(experiment.validation_data.global_batch_size),
            )
        if self.kept == "nowhere":
            experiment.warnings.append(
                "the decoded eval set takes {} MiB, more than the {} MiB for it in memory: decoded"
                " anew for each checkpoint".format(self._bytes >> 20, self._budget >> 20)
            )
        if records and self.images < records:
            experiment.warnings.append(
                "{} of {} images are left out of every evaluation by {}, as in Model Garden's own;"
                " whole_eval_set counts them".format(
                    records - self.images, records, experiment.left_out_by or "the input pipeline"
                )
            )

    def _check_source_ids(self, experiment):
        """Tells of identities that COCO's metrics cannot tell images apart by."""
        counts = collections.Counter(self.source_ids)
        shared = sum(count for count in counts.values() if count > 1)
        if shared:
            which, most = counts.most_common(1)[0]
            experiment.warnings.append(
                "{} of {} images share their source_id with another ({} of them have {}): Model"
                " Garden takes those for one image with the boxes of all".format(
                    shared, len(self.source_ids), most, which
                )
            )
        path = getattr(experiment.params.task, "annotation_file", "")
        if path and counts:
            _compare_annotations(experiment, path, counts.keys())


def _compare_annotations(experiment, path, source_ids):
    with tf.io.gfile.GFile(path) as file:
        try:
            known = {int(image["id"]) for image in json.load(file)["images"]}
        except (ValueError, LookupError, TypeError) as error:
            raise Refusal(
                "bad_annotations",
                "task.annotation_file ({}) is no COCO annotation file: {}".format(
                    path, one_line(error)
                ),
                "give the JSON file that belongs to the records",
            ) from error
    strange = set(source_ids) - known
    if strange:
        raise Refusal(
            "bad_annotations",
            "task.annotation_file ({}) lacks {} images of the records, source_id {} for one".format(
                path, len(strange), min(strange)
            ),
            "give the file that belongs to the records, or none:"
            " --params-override task.annotation_file=''",
        )
    missing = known - set(source_ids)
    if missing:
        experiment.warnings.append(
            "task.annotation_file ({}) has {} images that no evaluation sees, id {} for one: the"
            " metrics are of the others".format(path, len(missing), min(missing))
        )


def batch_size(batch):
    """Returns how many images a batch has: the first dimension of its first tensor."""
    return int(tf.nest.flatten(batch)[0].shape[0])


def _truths(batch):
    labels = batch[1] if isinstance(batch, tuple) and len(batch) > 1 else None
    return labels.get("groundtruths", {}) if isinstance(labels, dict) else {}


def _source_ids(truths):
    return truths["source_id"].numpy().ravel().tolist() if "source_id" in truths else []


def _category_ids(truths):
    if not {"classes", "num_detections"} <= truths.keys():
        return set()
    classes, counts = truths["classes"].numpy(), truths["num_detections"].numpy().ravel()
    return {int(label) for row, count in zip(classes, counts) for label in row[:count]}


def _count_records(experiment):
    """Returns how many records the files hold, 0 where that is not known."""
    if not experiment.validation_files:
        return 0
    file_type = getattr(experiment.validation_data, "file_type", "tfrecord")
    records = dataset_fn.pick_dataset_fn(file_type)(experiment.validation_files)
    return int(records.reduce(tf.constant(0, tf.int64), lambda count, _: count + 1))


def _cannot_read(experiment, error):
    text = one_line(error)
    if "StringToNumber" in text or "could not correctly convert string" in text:
        return Refusal(
            CODE,
            "a record of {} has a source_id that is no number: {}".format(
                experiment.validation_data.input_path, text.split(" could not correctly")[-1]
            ),
            "--params-override"
            " task.validation_data.decoder.simple_decoder.regenerate_source_id=true"
            " takes a hash of the image instead",
        )
    return Refusal(
        CODE,
        "the eval set of {} cannot be read: {}".format(experiment.own_name, text),
        "is it of the form that the experiment {} reads?".format(experiment.name),
    )
