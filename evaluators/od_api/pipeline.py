"""Reads pipeline.config as the OD API's evaluation does, and refuses early what cannot work."""

import pathlib

import tensorflow as tf
from object_detection import eval_util
from object_detection.protos import input_reader_pb2, pipeline_pb2
from object_detection.utils import config_util

from evaluators.od_api import prototext
from evaluators.od_api.label_map import LabelMap
from evaluators.protocol import Refusal
from evaluators.snapshot import Snapshot

# Of the batch size: the pipeline's, and as many images at once as change no bit of it.
AUTO = "auto"


class Pipeline:
    """The parts of one pipeline.config that its evaluation depends on.

    Args:
        request: fields and options of `start` in one dict (`protocol.Start.set_up`).
        with_label_map: False leaves the label map to `read_label_map`.

    Attributes:
        configs: the OD API's configuration objects by name, with the overrides of
            `eval_continuously` applied.
        eval_input: the chosen InputReader.
        eval_input_name: its name, or its index as text where it has none.
        record_files: the chosen input's record files, globs expanded, in reading order.
        label_map: the LabelMap, None until it is read.
        batch_size: images in one batch of the evaluation, on which its losses depend.
        fixed_batch_size: whether as many must go through the model at once, no more.
        warnings: sentences the operator should read once.
        written_model: the model's configuration as it is written, with the user's own paths.

    Args:
        request: fields and options of `start` in one dict (`protocol.Start.set_up`).
        snapshot: the Snapshot of the run's files, None for none.
        with_label_map: whether to read the label map, which else is left to the caller.
    """

    def __init__(self, request, snapshot=None, with_label_map=True):
        self.warnings = []
        self.configs = _read(request["pipeline_config"])
        _override(self.configs, request.get("sample_1_of_n"))
        self.eval_input, self.eval_input_name = _choose(
            self.configs["eval_input_configs"], request.get("eval_input")
        )
        self._take_label_maps(snapshot or Snapshot())
        self._refuse_unsupported()
        self.label_map = None
        if with_label_map:
            self.read_label_map()
            self.warnings += [said for how, said, _ in self.label_map.problems if how != "note"]
            if self.unmeasured:
                self.warnings.append(self.unmeasured)
        self.record_files = _existing_files(self.eval_input)
        self._settle_order()
        # The OD API's loop needs the original image's shape and crashes without it.
        self.configs["eval_config"].retain_original_images = True
        self.pipeline_batch_size = self.configs["eval_config"].batch_size
        # Another batch size is another evaluation: faster, and not equal to the last bit.
        wanted = request.get("eval_batch_size") or AUTO
        self.fixed_batch_size = wanted != AUTO
        self.batch_size = int(wanted) if self.fixed_batch_size else self.pipeline_batch_size

    @property
    def metrics_sets(self):
        """Names of the metric sets that will be computed, each once."""
        sets = self.configs["eval_config"].metrics_set
        return list(dict.fromkeys(sets)) or [eval_util.EVAL_DEFAULT_METRIC]

    @property
    def unmeasured(self):
        """A sentence about classes of the label map that the model never detects, None for none."""
        return ": ".join(self.never_detected()) or None

    def never_detected(self):
        """Returns a sentence about classes that the model cannot detect, and a remedy, () for none.

        The OD API trains and evaluates without a word about them.
        """
        classes = number_of_classes(self.configs)
        highest = max(category["id"] for category in self.label_map.categories)
        if classes is None or highest <= classes:
            return ()
        text = "label map ({}) has id {}, and the model's num_classes is {}: it never detects what"
        return (
            (text + " is above").format(self.label_map.path, highest, classes),
            "set num_classes to {}, and train anew".format(highest),
        )

    def read_label_map(self):
        """Reads the eval input's label map.

        Raises:
            Refusal: there is none, or the OD API cannot read it.
        """
        path = self.eval_input.label_map_path
        if not path:
            raise Refusal("bad_pipeline_config", "the eval_input_reader has no label_map_path")
        if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
            raise _missing("label map", path)
        self.label_map = LabelMap(path)

    def _take_label_maps(self, snapshot):
        """Has the configuration name label maps as they were when the run began."""
        model = self.configs["model"]
        self.written_model = type(model)()
        self.written_model.CopyFrom(model)
        readers = [(self.eval_input, "label_map_path")]
        if model.WhichOneof("model") == "center_net":
            readers.append((model.center_net, "keypoint_label_map_path"))
        for reader, field in readers:
            path = getattr(reader, field)
            name = field.replace("_path", ".pbtxt")
            try:
                setattr(reader, field, snapshot.take(path, name) if path else path)
            except OSError as error:
                self.warnings.append(
                    "label map ({}) could not be copied into the state folder, so a change of it"
                    " counts from the next worker on: {}".format(path, error)
                )

    def _refuse_unsupported(self):
        eval_config = self.configs["eval_config"]
        for name in eval_config.metrics_set:
            if name not in eval_util.EVAL_METRICS_CLASS_DICT:
                raise Refusal(
                    "bad_pipeline_config",
                    "metrics_set ({}) is none the OD API knows".format(name),
                    "it knows " + ", ".join(sorted(eval_util.EVAL_METRICS_CLASS_DICT)),
                )
        kind = self.eval_input.WhichOneof("input_reader")
        if kind is None:
            raise Refusal(
                "bad_pipeline_config",
                "the eval_input_reader ({}) has no tf_record_input_reader".format(
                    self.eval_input_name
                ),
                "name its records: tf_record_input_reader { input_path: 'val.tfrecord' }",
            )
        if kind != "tf_record_input_reader":
            raise _unsupported("eval_input_reader." + kind)
        if self.eval_input.sample_from_datasets_weights:
            raise _unsupported("eval_input_reader.sample_from_datasets_weights (a random sample)")
        if "coco_panoptic_metrics" in eval_config.metrics_set:
            raise _unsupported("metrics_set coco_panoptic_metrics")
        if "coco_keypoint_metrics" in eval_config.metrics_set:
            raise Refusal(
                "bad_pipeline_config",
                "metrics_set coco_keypoint_metrics names no class and no keypoints",
                "use parameterized_metric { coco_keypoint_metrics { class_label: ... } } instead",
            )
        _refuse_per_category(eval_config)
        optimizer = self.configs["train_config"].optimizer
        if eval_config.use_moving_averages and not optimizer.use_moving_average:
            raise Refusal(
                "bad_pipeline_config",
                "eval_config.use_moving_averages is set and the optimizer keeps none",
                "set use_moving_average in the optimizer, or clear it in eval_config",
            )

    def _settle_order(self):
        if self.eval_input.shuffle:
            # A random order changes which images a dropped last batch holds and how ties in
            # scores fall: scores of two checkpoints would not be comparable.
            self.eval_input.shuffle = False
            self.warnings.append("eval_input_reader.shuffle is ignored: images stay in file order")


def _refuse_per_category(eval_config):
    """Refuses the per-category options with which the OD API's evaluators raise.

    `include_metrics_per_category` by itself is filled by `coco.py`, and for COCO's sets the others
    change nothing without it.
    """
    sets = eval_config.metrics_set
    detailed = eval_config.include_metrics_per_category
    wanted = [
        option
        for option in ("super_categories", "all_metrics_per_category")
        if getattr(eval_config, option, None)
    ]
    if "lvis_mask_metrics" in sets and (wanted or detailed):
        raise _unsupported_option((wanted or ["include_metrics_per_category"])[0], sets)
    if "coco_detection_metrics" in sets and eval_config.skip_predictions_for_unlabeled_class:
        wanted.append("skip_predictions_for_unlabeled_class")
    if detailed and wanted:
        raise _unsupported_option(wanted[0] + " with include_metrics_per_category", sets)


def _unsupported_option(option, sets):
    return Refusal(
        "unsupported",
        "eval_config.{} is not supported for metrics_set ({})".format(option, ", ".join(sets)),
        "clear it: AP and AR of each category are stored without it",
    )


def _unsupported(what):
    return Refusal("unsupported", what + " is not supported", "")


def _read(path):
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise Refusal("missing_file", "pipeline config ({}) is not a file".format(path))
    pipeline = pipeline_pb2.TrainEvalPipelineConfig()
    hint = "the trainer must be able to read the same file"
    prototext.read("pipeline config", path, pipeline, hint)
    configs = config_util.create_configs_from_pipeline_proto(pipeline)
    if configs["model"].WhichOneof("model") is None:
        raise Refusal("bad_pipeline_config", "pipeline config ({}) has no model".format(path))
    if not configs["eval_input_configs"]:
        raise Refusal(
            "bad_pipeline_config", "pipeline config ({}) has no eval_input_reader".format(path)
        )
    return configs


def _override(configs, sample_1_of_n):
    # 1 is the command line's default and means what it means to model_main_tf2: as configured.
    overrides = {"eval_num_epochs": 1, "use_bfloat16": False}
    if sample_1_of_n and int(sample_1_of_n) > 1:
        overrides["sample_1_of_n_eval_examples"] = int(sample_1_of_n)
    config_util.merge_external_params_with_configs(configs, kwargs_dict=overrides)


def _choose(eval_inputs, wanted):
    """Returns the eval input of that name or index, and the name to call it by."""
    names = [reader.name for reader in eval_inputs]
    if wanted is None or wanted == "":
        wanted = 0
    if isinstance(wanted, str) and names.count(wanted) == 1:
        index = names.index(wanted)
    elif str(wanted).isdigit() and int(wanted) < len(eval_inputs):
        index = int(wanted)
    else:
        known = ", ".join("{} ({})".format(i, n or "unnamed") for i, n in enumerate(names))
        raise Refusal(
            "bad_pipeline_config",
            "eval_input ({}) names no single eval_input_reader".format(wanted),
            "there are " + known,
        )
    return eval_inputs[index], names[index] or str(index)


def _existing_files(eval_input):
    patterns = list(eval_input.tf_record_input_reader.input_path)
    if not patterns:
        raise Refusal("bad_pipeline_config", "the eval_input_reader has no input_path")
    for pattern in patterns:
        if not tf.io.gfile.glob(pattern):
            raise _missing("eval records", pattern)
    return tf.io.gfile.glob(patterns)


def _missing(what, path):
    hint = "the trainer must be able to read the same file"
    if not pathlib.Path(path).is_absolute() and "://" not in path:
        hint = "a relative path begins at {}; --working-directory names another folder".format(
            pathlib.Path.cwd()
        )
    return Refusal("missing_file", "{} ({}) not found".format(what, path), hint)


def number_of_classes(configs):
    """Returns the model's num_classes, None for an architecture that has no such field."""
    try:
        return config_util.get_number_of_classes(configs["model"])
    except ValueError:
        return None


def is_sequence(eval_input):
    """Says whether a record holds many images (a SequenceExample)."""
    return eval_input.input_type == input_reader_pb2.InputType.Value("TF_SEQUENCE_EXAMPLE")
