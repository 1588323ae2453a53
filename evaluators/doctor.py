"""Looks at a training environment for `checkpoint-watcher doctor`: `PYTHON .../doctor.py`.

Reads one JSON request from stdin, as the worker's `start` has it, and writes JSON lines on what was
stdout when it started: `facts` (a name and a value each), `finding` (check, severity, message,
remedy), and at the end `done`. What was found before a crash or a time limit has been said by
then. Builds no model, evaluates nothing and writes no file.
"""

import importlib.util
import json
import os
import pathlib
import struct
import sys
import time


def load_worker():
    """Returns the module `worker.py` beside this file, whether or not that folder is searched.

    Its first statements bring the pipes to safety from what libraries print.
    """
    path = pathlib.Path(__file__).resolve().with_name("worker.py")
    spec = importlib.util.spec_from_file_location("worker", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()

COUNT_SECONDS = 20.0
LOOKED_AT = 200
SUPPORTED = "see 'Environments that were run' in the README of checkpoint-watcher"


class Findings:
    """What is said on the pipe."""

    def __init__(self, replies):
        self._replies = replies
        self.facts = {}

    def fact(self, name, value):
        """Tells a value by name, and keeps it."""
        self.facts[name] = value
        self._replies.send("fact", name=name, value=value)

    def say(self, check, severity, message, remedy=None):
        """Tells a finding."""
        from evaluators.protocol import one_line

        self._replies.send(
            "finding", check=check, severity=severity, message=one_line(message), remedy=remedy
        )


def examine(request, findings):
    """Runs all checks in an order in which each finds what it needs."""
    from evaluators import compat, protocol

    compat.prepare_process(request)
    try:
        findings.fact("versions", compat.import_libraries())
    except protocol.Refusal as refusal:
        findings.say("environment", "error", refusal.message, refusal.hint or SUPPORTED)
        return
    check_device(request, findings)
    check_backends(request, findings)
    from evaluators.pipeline import Pipeline

    try:
        pipeline = Pipeline(request)
    except protocol.Refusal as refusal:
        findings.say("pipeline", "error", refusal.message, refusal.hint or None)
        return
    findings.fact("num_steps", int(pipeline.configs["train_config"].num_steps))
    findings.fact("metrics_sets", pipeline.metrics_sets)
    inputs = enumerate(pipeline.configs["eval_input_configs"])
    findings.fact("eval_inputs", [reader.name or str(index) for index, reader in inputs])
    for warning in pipeline.warnings:
        findings.say("pipeline", "note", warning)
    sets = ", ".join(pipeline.metrics_sets)
    findings.say(
        "pipeline", "ok", "it parses; eval input {}, {}".format(pipeline.eval_input_name, sets)
    )
    ids = check_labels(pipeline, findings)
    check_training_input(pipeline, findings)
    check_records(pipeline, ids, findings)
    tell_faster_backend(request, findings)


def check_device(request, findings):
    """Says whether TensorFlow sees the GPU that was asked for. Computes nothing on it."""
    import tensorflow as tf

    wanted = request.get("device") or "cpu"
    if wanted != "cpu" and not tf.config.list_physical_devices("GPU"):
        findings.say(
            "device",
            "error",
            "device ({}) is not visible to TensorFlow in this environment".format(wanted),
            "check nvidia-smi and the CUDA libraries of that environment, or choose cpu",
        )


def check_backends(request, findings):
    """Tells which program computes COCO metrics, or that the one asked for is missing."""
    from evaluators import coco, protocol

    try:
        findings.fact("coco_backend", coco.choose_backend(request.get("coco_backend")))
    except protocol.Refusal as refusal:
        findings.say("coco backend", "error", refusal.message, refusal.hint)


def tell_faster_backend(request, findings):
    """Tells which program would compute COCO metrics faster, and how it is installed, if one is."""
    from evaluators import coco

    faster = coco.recommendation(
        request.get("coco_backend"),
        findings.facts.get("coco_backend"),
        findings.facts.get("images", 0),
    )
    if faster:
        findings.fact("faster_coco", faster)


def check_labels(pipeline, findings):
    """Compares the label map with the model's num_classes; returns the map's ids."""
    from object_detection.utils import config_util

    ids = sorted(category["id"] for category in pipeline.categories)
    label_map = pipeline.eval_input.label_map_path
    try:
        classes = config_util.get_number_of_classes(pipeline.configs["model"])
    except ValueError:  # an architecture that has no such field
        return ids
    if not ids:
        findings.say("labels", "error", "label map ({}) holds no class".format(label_map))
    elif ids[-1] > classes:
        findings.say(
            "labels",
            "error",
            "label map ({}) has id {}, and the model's num_classes is {}: it never detects what is"
            " above".format(label_map, ids[-1], classes),
            "set num_classes to {}, and train anew".format(ids[-1]),
        )
    elif ids[-1] < classes:
        findings.say(
            "labels",
            "warning",
            "the model's num_classes is {}, and label map ({}) ends at id {}: what is detected"
            " above is not counted".format(classes, label_map, ids[-1]),
            "use the label map that the model is trained with",
        )
    else:
        findings.say("labels", "ok", "{} classes, as num_classes says".format(len(ids)))
    return ids


def check_training_input(pipeline, findings):
    """Says what of the trainer's own input is missing or differs from the evaluation's."""
    import tensorflow as tf
    from object_detection.utils import label_map_util

    reader = pipeline.configs["train_input_config"]
    for pattern in reader.tf_record_input_reader.input_path:
        if not tf.io.gfile.glob(pattern):
            findings.say(
                "pipeline",
                "warning",
                "train records ({}) not found: the trainer will not start here".format(pattern),
                "check the path; a relative one begins at {}, see --working-directory".format(
                    pathlib.Path.cwd()
                ),
            )
    theirs, ours = reader.label_map_path, pipeline.eval_input.label_map_path
    if theirs and theirs != ours and tf.io.gfile.exists(theirs):
        load = label_map_util.get_label_map_dict
        if load(theirs) != load(ours):
            findings.say(
                "labels",
                "error",
                "the label maps of training ({}) and evaluation ({}) differ".format(theirs, ours),
                "use the same one for both: scores would be those of mixed-up classes",
            )


def check_records(pipeline, ids, findings):
    """Counts the records, looks into the first ones, and tells the size of the eval set."""
    if not all(pathlib.Path(path).is_file() for path in pipeline.record_files):
        findings.say("eval set", "note", "the records are not local files and were not counted")
        return
    deadline, count, complete = time.monotonic() + COUNT_SECONDS, 0, True
    for path in pipeline.record_files:
        try:
            found, complete = count_records(path, deadline)
        except ValueError as error:
            remedy = "make the file again, or copy it again"
            findings.say("eval set", "error", "records ({}): {}".format(path, error), remedy)
            return
        count += found
        if not complete:
            break
    if not count:
        findings.say("eval set", "error", "the eval records hold no image", "check their paths")
        return
    strange = strange_labels(pipeline, ids, findings)
    if strange is None:
        return
    if strange:
        findings.say(
            "labels",
            "error",
            "the eval records have class {}, which is not in the label map".format(
                ", ".join(map(str, sorted(strange)[:5]))
            ),
            "make records and label map from the same list of classes",
        )
    tell_size(pipeline, count, complete, findings)


def tell_size(pipeline, count, complete, findings):
    """Says how many images an evaluation has, and whether they are few."""
    from evaluators.pipeline import is_sequence

    sample = max(1, pipeline.eval_input.sample_1_of_n_examples)
    images = -(-count // sample)
    sampled = " (1 of {} records)".format(sample) if sample > 1 else ""
    if is_sequence(pipeline.eval_input):
        findings.say("eval set", "ok", "{} sequences of images".format(count))
        return
    findings.fact("images", images)
    if not complete:
        message = "more than {} images; counting them all took too long".format(images)
        findings.say("eval set", "ok", message)
    elif images < 50:
        findings.say(
            "eval set",
            "warning",
            "only {} image{}{}: differences between checkpoints will mostly be chance".format(
                images, "" if images == 1 else "s", sampled
            ),
            "evaluate on more images, or smooth the scores for stopping (--smoothing median:3)",
        )
    else:
        findings.say("eval set", "ok", "{} images{}".format(images, sampled))


def count_records(path, deadline):
    """Counts the records of a TFRecord file by their lengths, without reading what they hold.

    The format: length (uint64, little-endian), its crc32c (4 bytes), data, its crc32c (4 bytes).

    Returns:
        (records, True), or (records so far, False) when the deadline came.

    Raises:
        ValueError: the file ends in the middle of a record, or is no TFRecord file.
    """
    size = pathlib.Path(path).stat().st_size
    count, position = 0, 0
    with pathlib.Path(path).open("rb") as file:
        while position < size:
            if count % 256 == 0 and time.monotonic() > deadline:
                return count, False
            file.seek(position)
            header = file.read(12)
            end = position + 16 + struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
            if not position < end <= size:
                raise ValueError(
                    "cut short after record {}".format(count) if count else "no TFRecord file"
                )
            position = end
            count += 1
    return count, True


def strange_labels(pipeline, ids, findings):
    """Returns the classes of the first records that are not in the label map.

    None when a record cannot be read, which has been told then.
    """
    import tensorflow as tf

    from evaluators.pipeline import is_sequence

    if is_sequence(pipeline.eval_input):
        return set()
    known, strange, images = set(ids), set(), 0
    try:
        for record in tf.data.TFRecordDataset(pipeline.record_files).take(LOOKED_AT):
            features = tf.train.Example.FromString(record.numpy()).features.feature
            images += "image/encoded" in features
            labels = features["image/object/class/label"].int64_list.value
            strange.update(label for label in labels if label not in known)
    except Exception as error:  # a damaged record is a protobuf error or one of TensorFlow's
        text = "the eval records cannot be read: {}: {}".format(type(error).__name__, error)
        findings.say("eval set", "error", text, "make the records again, or copy them again")
        return None
    if not images:
        text = "the eval records hold no image/encoded: they were not made for the OD API"
        findings.say("eval set", "error", text, "see dataset_tools of the OD API")
        return None
    return strange


def main():
    """Answers one request."""
    worker.die_with_parent()
    worker.load_package()
    from evaluators import protocol

    with os.fdopen(worker.REQUEST_DESCRIPTOR, "rb") as file:
        request = json.loads(file.read().decode("utf-8"))
    replies = protocol.Replies(worker.REPLY_DESCRIPTOR)
    findings = Findings(replies)
    try:
        examine(request, findings)
    except Exception as error:
        sys.stderr.write(protocol.last_traceback())
        text = "this could not be checked: {}: {}".format(type(error).__name__, error)
        findings.say("pipeline", "warning", text, "a fault of doctor's or of that environment")
    replies.send("done")
    sys.stderr.flush()
    os._exit(0)  # TensorFlow's own shutdown can hang and has nothing of ours to save


if __name__ == "__main__":
    main()
