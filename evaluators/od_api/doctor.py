"""Looks at a training environment for `checkpoint-watcher doctor`: `PYTHON .../doctor.py`.

Reads one JSON request from stdin, fields and options of the worker's `start` in one object, and
writes JSON lines on what was stdout when it started: `facts` (a name and a value each), `finding`
(check, severity, message, remedy), and at the end `done`. What was found before a crash or a time
limit has been said by then. Evaluates nothing and writes nothing that lasts. Only to compare a
checkpoint's variables with pipeline.config's (`check` of the request, as the worker's) is the model
built, on the CPU.
"""

import importlib.util
import pathlib
import sys
import threading
import time


def load_worker():
    """Returns the module `worker.py` of the folder above, whether or not that is searched.

    Its first statements bring the pipes to safety from what libraries print.
    """
    path = pathlib.Path(__file__).resolve().parents[1] / "worker.py"
    spec = importlib.util.spec_from_file_location("worker", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()

# Ids that COCO's own label map leaves out, by the number of classes.
UNUSED_IDS = {90: {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}}
BEGAN = time.monotonic()
RECORD_SECONDS = 20.0
# A box coder whose boxes have more than four numbers.
_KEYPOINTS = "keypoint_box_coder"
# Of the time limit, for all that comes before the end of the records.
RECORD_SHARE = 0.8
# For all that comes before the end of the check whether a checkpoint fits.
FIT_SHARE = 0.95
DECODED = 30


def examine(request, findings):
    """Runs all checks in an order in which each finds what it needs."""
    from evaluators import device, looking, protocol
    from evaluators.od_api import blockers, compat

    device.prepare_process(request)
    try:
        findings.fact("versions", compat.import_libraries())
    except protocol.Refusal as refusal:
        findings.say("environment", "error", refusal.message, refusal.hint or looking.SUPPORTED)
        return
    for what, command in blockers.after_import():
        findings.say("environment", "error", what, command)
    looking.check_device(request, findings)
    looking.compute_on_the_cpu()
    check_backends(request, findings)
    from evaluators.od_api.pipeline import Pipeline

    try:
        pipeline = Pipeline(request, with_label_map=False)
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
    check_labels(pipeline, findings)
    check_training_input(pipeline, findings)
    seconds = request.get("seconds")
    limit = BEGAN + RECORD_SHARE * seconds if seconds else time.monotonic() + RECORD_SECONDS
    check_records(pipeline, limit, findings)
    if request.get("check") and pipeline.label_map is not None:
        limit = BEGAN + FIT_SHARE * seconds if seconds else None
        check_fit(request["check"], pipeline, limit, findings)


def check_backends(request, findings):
    """Tells which program computes COCO metrics, or that the one asked for is missing."""
    from evaluators import coco, protocol

    try:
        findings.fact("coco_backend", coco.choose_backend(request.get("coco_backend")))
    except protocol.Refusal as refusal:
        findings.say("coco backend", "error", refusal.message, refusal.hint)


def check_labels(pipeline, findings):
    """Reads the label map and says what is wrong; returns its ids, None where there is none."""
    from evaluators import protocol
    from evaluators.od_api import label_map

    try:
        pipeline.read_label_map()
    except protocol.Refusal as refusal:
        findings.say("labels", "error", refusal.message, refusal.hint or label_map.HINT)
        return None
    for severity, text, remedy in pipeline.label_map.problems:
        findings.say("labels", severity, text, remedy)
    ids = sorted(category["id"] for category in pipeline.label_map.categories)
    compare_classes(pipeline, ids, findings)
    return ids


def compare_classes(pipeline, ids, findings):
    """Compares the label map's ids with the model's num_classes."""
    from evaluators.od_api.label_map import listed
    from evaluators.od_api.pipeline import number_of_classes

    label_map = pipeline.label_map.path
    classes = number_of_classes(pipeline.configs)
    if classes is None:
        return
    missing = sorted(set(range(1, classes + 1)) - {*ids} - UNUSED_IDS.get(classes, set()))
    if ids[-1] > classes:
        findings.say("labels", "error", *pipeline.never_detected())
    elif ids[-1] < classes:
        findings.say(
            "labels",
            "warning",
            "the model's num_classes is {}, and label map ({}) ends at id {}: what is detected"
            " above is not counted".format(classes, label_map, ids[-1]),
            "set num_classes to {}; or, if the model is trained with {}, use its label map".format(
                ids[-1], classes
            ),
        )
    elif missing:
        findings.say(
            "labels",
            "warning",
            "label map ({}) has {} of the model's {} classes (num_classes): none of id {}".format(
                label_map, len(ids), classes, listed(missing)
            ),
            "give each class an item, or train with as many classes as there are",
        )
    else:
        findings.say("labels", "ok", "{} classes, as num_classes says".format(len(ids)))


def check_training_input(pipeline, findings):
    """Says what of the trainer's own input is missing or differs from the evaluation's."""
    import tensorflow as tf

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
    if theirs and not tf.io.gfile.exists(theirs):
        findings.say(
            "labels",
            "warning",
            "train label map ({}) not found: the trainer will not start here".format(theirs),
            "check the path; a relative one starts at the folder of the trainer",
        )
    elif theirs and theirs != ours:
        compare_label_maps(theirs, ours, pipeline.label_map, findings)


def compare_label_maps(theirs, ours, label_map, findings):
    """Says whether the trainer's label map cannot be read or has other classes than `label_map`."""
    from evaluators import protocol
    from evaluators.od_api.label_map import LabelMap

    try:
        found = LabelMap(theirs)
    except protocol.Refusal as refusal:
        text = "the trainer cannot start: its {}".format(refusal.message)
        findings.say("labels", "error", text, refusal.hint)
        return
    if label_map is not None and found.ids_by_name != label_map.ids_by_name:
        findings.say(
            "labels",
            "error",
            "the label maps of training ({}) and evaluation ({}) differ".format(theirs, ours),
            "use the same one for both: scores would be those of mixed-up classes",
        )


def check_records(pipeline, deadline, findings):
    """Reads all records, decodes some, and tells the size of the eval set."""
    from evaluators import protocol
    from evaluators.od_api import record_checks, records
    from evaluators.od_api.pipeline import is_sequence

    try:
        found, tally, count, is_whole = record_checks.examine(pipeline, deadline, findings.progress)
        if not count:
            findings.say("eval set", "error", "the eval records hold no image", "check their paths")
            return
        found += record_checks.same_ids(tally) + record_checks.training_records(pipeline)
        for finding in found:
            findings.say(finding.check, finding.severity, finding.message, finding.remedy)
        if not is_sequence(pipeline.eval_input) and not any(f.is_fatal for f in found):
            records.spread(pipeline, count, DECODED, deadline)
    except protocol.Refusal as refusal:
        findings.say("eval set", "error", refusal.message, refusal.hint)
        return
    tell_size(pipeline, count, is_whole, findings)


def check_fit(prefix, pipeline, deadline, findings):
    """Says whether a checkpoint is one of pipeline.config's model, as the worker's start does.

    Args:
        prefix: the checkpoint's.
        pipeline: the Pipeline.
        deadline: when the answer is waited for no longer, None for never.
        findings: the Findings.
    """
    from evaluators import misfit
    from evaluators.od_api.pipeline import number_of_classes

    name, classes = pathlib.Path(prefix).name, number_of_classes(pipeline.configs)
    theirs = classes_of(prefix, pipeline)
    if classes and theirs and theirs != classes:  # at once, where the model takes long
        text = "checkpoint {} {}".format(name, misfit.other_classes(theirs, classes))
        findings.say("pipeline", "error", text, misfit.HINT)
        return
    said = []
    thread = threading.Thread(target=lambda: said.append(fit(prefix, pipeline)), daemon=True)
    findings.begin("building the model")
    thread.start()
    thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    late = "whether {} fits it could not be seen in time".format(name)
    said.append(("note", late, "give a larger --time-limit"))
    findings.say("pipeline", *said[0])


def classes_of(prefix, pipeline):
    """Returns how many classes a checkpoint's own shapes tell, None where they do not."""
    import tensorflow as tf

    from evaluators import misfit
    from evaluators.od_api import checkpoints

    model = pipeline.configs["model"]
    kind = model.WhichOneof("model")
    is_ssd = kind == "ssd" and model.ssd.box_coder.WhichOneof("box_coder_oneof") != _KEYPOINTS
    if not is_ssd and kind != "faster_rcnn":
        return None
    background = model.ssd.add_background_class if is_ssd else True
    try:
        shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    except checkpoints.READ_ERRORS:  # whoever evaluates it says so
        return None
    return misfit.classes_of_heads(shapes, int(background))


def fit(prefix, pipeline):
    """Returns severity, sentence and remedy: is a checkpoint of pipeline.config's model?"""
    from evaluators import protocol
    from evaluators.od_api import dataset
    from evaluators.od_api.model import Model

    name = pathlib.Path(prefix).name
    try:
        model = Model(pipeline)
        model.build(dataset.first_batch(pipeline, model.network))
        model.require_fit(prefix)
    except protocol.Refusal as refusal:
        return "error", refusal.message, refusal.hint or None
    except Exception as error:
        sys.stderr.write(protocol.last_traceback())
        text = "whether {} fits it could not be seen: {}: {}"
        return "warning", text.format(name, type(error).__name__, error), None
    return "ok", "{} fits it".format(name), None


def tell_size(pipeline, images, is_whole, findings):
    """Says how many images an evaluation has, and whether they are few."""
    from evaluators.od_api.pipeline import is_sequence

    sample = max(1, pipeline.eval_input.sample_1_of_n_examples)
    sampled = " (1 of {} records)".format(sample) if sample > 1 else ""
    if is_sequence(pipeline.eval_input):
        findings.say("eval set", "ok", "{} sequences of images".format(images))
        return
    findings.fact("images", images)
    if not is_whole:
        findings.say(
            "eval set",
            "note",
            "more than {} images: what is after them was not looked at in time".format(images),
            "give a larger --time-limit to look at all",
        )
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


def main():
    """Answers one request."""
    worker.die_with_parent()
    worker.load_package()
    from evaluators import looking

    looking.answer(worker.REQUEST_DESCRIPTOR, worker.REPLY_DESCRIPTOR, "pipeline", examine)


if __name__ == "__main__":
    main()
