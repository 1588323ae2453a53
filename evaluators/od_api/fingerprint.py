"""What the numbers of an evaluation by the OD API depend on."""

import hashlib

from google.protobuf import text_format

from evaluators import EVALUATOR_VERSION
from evaluators.fingerprint import file_sha256

COMPARED_VERSIONS = (
    "tensorflow",
    "object_detection",
    "tf_models_official",
    "pycocotools",
    "numpy",
)
# Fields of eval_config that change pictures and no score.
_FOR_PICTURES = ("num_visualizations", "max_num_boxes_to_visualize")


def fingerprint_parts(pipeline, versions):
    """Returns what the numbers of an evaluation depend on, by name.

    Paths are left out and the content of what they name is put in, so that a moved data set keeps
    its scores. Reads every record file.
    """
    configs = pipeline.configs
    train_config = configs["train_config"]
    eval_input = type(pipeline.eval_input)()
    eval_input.CopyFrom(pipeline.eval_input)
    eval_input.ClearField("label_map_path")
    eval_input.ClearField("tf_record_input_reader")
    eval_config = type(configs["eval_config"])()
    eval_config.CopyFrom(configs["eval_config"])
    for name in _FOR_PICTURES:
        eval_config.ClearField(name)
    return {
        "model": text_sha256(pipeline.written_model),
        "eval_config": text_sha256(eval_config),
        "eval_input": text_sha256(eval_input),
        "regularization_loss": bool(train_config.add_regularization_loss),
        "averages": bool(configs["eval_config"].use_moving_averages),
        "label_map": file_sha256(pipeline.eval_input.label_map_path),
        "records": [file_sha256(path) for path in pipeline.record_files],
        "batch_size": pipeline.batch_size,
        "evaluator": EVALUATOR_VERSION,
        "versions": {name: versions[name] for name in COMPARED_VERSIONS},
    }


def text_sha256(message):
    """Returns the hex sha256 of a message's text form."""
    text = text_format.MessageToString(message)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
