"""Looks at a training environment for `checkpoint-watcher doctor`: `PYTHON .../doctor.py`.

Reads one JSON request from stdin, fields and options of the worker's `start` in one object, and
answers as `evaluators/looking.py` says. Evaluates nothing and writes nothing that lasts. Only to
compare a checkpoint's variables with the experiment's (`check` of the request, as the worker's) is
the model built, on the CPU.
"""

import importlib.util
import pathlib
import tempfile
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

BEGAN = time.monotonic()
# Of the time limit, for all that comes before the end of the last check.
SHARE = 0.95
FEW_IMAGES = 50
SCHEDULE = ("train_steps", "checkpoint_interval", "steps_per_loop", "max_to_keep")


def examine(request, findings):
    """Runs all checks in an order in which each finds what it needs."""
    from evaluators import coco, device, looking, protocol
    from evaluators.model_garden import libraries
    from evaluators.snapshot import Snapshot

    device.prepare_process(request)
    try:
        findings.fact("versions", libraries.import_libraries())
    except protocol.Refusal as refusal:
        findings.say("environment", "error", refusal.message, refusal.hint or looking.SUPPORTED)
        return
    looking.check_device(request, findings)
    looking.compute_on_the_cpu()
    try:
        findings.fact("coco_backend", coco.choose_backend(request.get("coco_backend")))
    except protocol.Refusal as refusal:
        findings.say("coco backend", "error", refusal.message, refusal.hint)
    from evaluators.model_garden.experiment import Experiment

    try:
        experiment = Experiment(request, Snapshot(), on_gpu=False)
    except protocol.Refusal as refusal:
        findings.say("experiment", "error", refusal.message, refusal.hint or None)
        return
    for name in SCHEDULE:
        findings.fact(name, getattr(experiment.params.trainer, name, None))
    text = "{} takes {}".format(experiment.name, experiment.own_name)
    findings.say("experiment", "ok", text)
    seconds = request.get("seconds")
    deadline = BEGAN + SHARE * seconds if seconds else None
    look_further(experiment, request, deadline, findings)


def look_further(experiment, request, deadline, findings):
    """Reads the eval set, and builds the model where a checkpoint has to fit, as far as time is.

    Args:
        experiment: the Experiment.
        request: as `examine` has it.
        deadline: when the answer is waited for no longer, None for never.
        findings: the Findings.
    """
    thread = threading.Thread(target=read, args=(experiment, request, findings), daemon=True)
    thread.start()
    thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    if thread.is_alive():
        late = "not all of the eval set and the model could be looked at in time"
        findings.say("eval set", "note", late, "give a larger --time-limit")


def read(experiment, request, findings):
    """Says what the eval set holds, and whether a checkpoint is of the experiment's model."""
    from evaluators import protocol
    from evaluators.model_garden.data import EvalSet
    from evaluators.model_garden.trainer import Model

    check = "experiment"
    try:
        model = Model(experiment, pathlib.Path(tempfile.mkdtemp(prefix="doctor-")))
        check = "eval set"
        findings.begin("reading the eval set")
        eval_set = EvalSet(experiment, model.task, 0)
        tell_images(experiment, eval_set, findings)
        prefix = request.get("check")
        if prefix:
            check = "experiment"
            findings.begin("building the model")
            model.build(eval_set.dataset)
            model.require_fit(prefix)
            findings.say(check, "ok", "{} fits it".format(pathlib.Path(prefix).name))
    except protocol.Refusal as refusal:
        findings.say(check, "error", refusal.message, refusal.hint or None)
    except Exception as error:  # a broken environment raises anything
        text = "this could not be looked at: {}: {}".format(type(error).__name__, error)
        findings.say(check, "warning", text)


def tell_images(experiment, eval_set, findings):
    """Says how many images an evaluation has, and what else there is to say of them."""
    findings.fact("images", eval_set.images)
    for warning in experiment.warnings:
        if "decoded anew" not in warning:  # nothing is kept here, whatever there is room for
            findings.say("eval set", "warning", warning)
    if eval_set.images < FEW_IMAGES:
        findings.say(
            "eval set",
            "warning",
            "only {} images: differences between checkpoints will mostly be chance".format(
                eval_set.images
            ),
            "evaluate on more images, or smooth the scores for stopping (--smoothing median:3)",
        )
    else:
        findings.say("eval set", "ok", "{} images".format(eval_set.images))


def main():
    """Answers one request."""
    worker.die_with_parent()
    worker.load_package()
    from evaluators import looking

    looking.answer(worker.REQUEST_DESCRIPTOR, worker.REPLY_DESCRIPTOR, "experiment", examine)


if __name__ == "__main__":
    main()
