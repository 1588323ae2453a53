"""What the numbers of an evaluation by Model Garden depend on."""

import hashlib
import json

from evaluators import EVALUATOR_VERSION, device
from evaluators.fingerprint import file_sha256
from evaluators.model_garden.libraries import COMPARED_VERSIONS

# Of the training's own data, what tasks look at when they evaluate.
_OF_TRAIN_DATA = ("is_multilabel", "image_field_key", "label_field_key")
# Of the eval set's, what names files or changes speed alone.
_OF_NO_MATTER = (
    "input_path",
    "cache",
    "cycle_length",
    "block_length",
    "prefetch_buffer_size",
    "shuffle_buffer_size",
    "tfds_data_dir",
    "tf_data_service_address",
    "tf_data_service_job_name",
    "enable_tf_data_service",
    "autotune_algorithm",
    "ram_budget",
    "trainer_id",
)
# Of the task, what is for training, names files, or is looked at above.
_OF_TRAINING = (
    "train_data",
    "validation_data",
    "init_checkpoint",
    "init_checkpoint_modules",
    "annotation_file",
    "allow_image_summary",
    "name",
)


def identity(experiment, versions):
    """Returns the parts of the fingerprint, by name. Reads every file of the eval set.

    Paths are left out and the content of what they name is put in, so that a moved data set keeps
    its scores.
    """
    params = experiment.params.as_dict()
    task = {name: value for name, value in params["task"].items() if name not in _OF_TRAINING}
    data = params["task"]["validation_data"]
    train_data = params["task"].get("train_data") or {}
    parts = {
        "experiment": experiment.name,
        "task": _sha256(task),
        "data": _sha256({name: value for name, value in data.items() if name not in _OF_NO_MATTER}),
        "labels": {name: train_data[name] for name in _OF_TRAIN_DATA if name in train_data},
        "steps": experiment.steps,
        "averages": bool(params["trainer"]["optimizer_config"].get("ema")),
        "precision": params["runtime"]["mixed_precision_dtype"],
        "files": [file_sha256(path) for path in experiment.files],
        "imports": sorted(map(file_sha256, experiment.own_code)),
        "evaluator": EVALUATOR_VERSION,
        "versions": {name: versions[name] for name in COMPARED_VERSIONS},
    }
    numbers = device.numbers_of_device()
    if numbers:
        parts["device"] = numbers
    return parts


def _sha256(value):
    return text_sha256(json.dumps(value, sort_keys=True, default=str))


def text_sha256(text):
    """Returns the hex sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
