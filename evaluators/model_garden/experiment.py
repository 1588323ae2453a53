"""The parameters of an experiment, made as `official.vision.train` makes them."""

import difflib
import json
import pathlib

import gin
import tensorflow as tf
import yaml
from official.core import base_trainer, exp_factory, input_reader
from official.modeling import hyperparams

from evaluators.model_garden import libraries
from evaluators.protocol import Refusal, one_line

# What evaluates alike on one device; of the others Model Garden needs a cluster.
ONE_DEVICE = ("mirrored", "one_device", "off")
GIN_FILE = "operative_config.train.gin"
BAD_PARAMS = "bad_params"
NUM_EVAL_DETECTIONS = 100
# What override_params_dict, the classes of the configuration and YAML raise.
_WRONG = (KeyError, ValueError, TypeError, AttributeError, yaml.YAMLError)


class Experiment:
    """One experiment's parameters, locked.

    Args:
        request: fields and options of `start` in one dict (`protocol.Start.set_up`).
        snapshot: the Snapshot of the run's files.
        on_gpu: whether the one device is a GPU.

    Attributes:
        name: the experiment's.
        params: Model Garden's ExperimentConfig.
        warnings: sentences the operator should read once.
        validation_files: the record files of the eval set, globs expanded; none where TFDS reads.
        own_code: the files of what registers an experiment of the user's own.
    """

    def __init__(self, request, snapshot, on_gpu):
        self.name = request.get("experiment")
        self.warnings = []
        self._snapshot = snapshot
        self._config_file = request["config_file"]
        self._whole = bool(request.get("whole_eval_set"))
        imports = request.get("garden_imports") or ()
        known = set(_names())
        self.own_code = libraries.import_users_own(imports, snapshot.original)
        self._read_gin()
        self.params = _registered(self.name, imports, known)
        self._override("config_file", self._config_file)
        for given in request.get("params_overrides") or ():
            self._override("params_override", given)
        self._fit_to_one_device(on_gpu)
        self._settle_evaluation()
        self._lock()
        self._refuse_unsupported()
        self.validation_files = self._existing_files()

    @property
    def validation_data(self):
        """The DataConfig of the eval set."""
        return self.params.task.validation_data

    @property
    def steps(self):
        """Batches in one evaluation, -1 for all."""
        return int(self.params.trainer.validation_steps)

    @property
    def left_out_by(self):
        """Returns what makes an evaluation leave out images, as text; "" where nothing does."""
        data = self.validation_data
        steps = "" if self.steps < 0 else "trainer.validation_steps ({})".format(self.steps)
        drop = "task.validation_data.drop_remainder" if data.drop_remainder else ""
        return " and ".join(filter(None, (drop, steps)))

    @property
    def own_name(self):
        """What the user calls the file of the parameters."""
        return self._snapshot.original(self._config_file)

    @property
    def files(self):
        """All files that the numbers depend on, in reading order."""
        others = [getattr(self.params.task, "annotation_file", ""), self._label_map]
        return [*self.validation_files, *filter(None, others)]

    @property
    def _label_map(self):
        decoder = getattr(self.validation_data, "decoder", None)
        chosen = decoder.get() if getattr(decoder, "type", None) == "label_map_decoder" else None
        return getattr(chosen, "label_map", "")

    def category_names(self):
        """Returns {id: name} as far as the files beside the records tell."""
        path = getattr(self.params.task, "annotation_file", "")
        if path:
            with tf.io.gfile.GFile(path) as file:
                found = json.load(file).get("categories", [])
            return {int(one["id"]): str(one.get("name", one["id"])) for one in found}
        return {}

    def _read_gin(self):
        beside = pathlib.Path(self.own_name).parent / GIN_FILE
        path = self._snapshot.take(str(beside), GIN_FILE)
        if not tf.io.gfile.exists(path):
            return
        try:
            gin.parse_config_file(path)
        except Exception as error:  # gin evaluates it, and what it names raises anything
            raise Refusal(
                BAD_PARAMS,
                "{} cannot be read: {}".format(beside, one_line(error)),
                "name the module that it configures (--garden-import)",
            ) from error
        self._refuse_another_trainer(beside)

    def _refuse_another_trainer(self, beside):
        """Another Trainer may evaluate in another way, which nobody held to its own numbers."""
        try:
            bound = gin.query_parameter("create_trainer.trainer_cls")
        except ValueError:  # it is not bound
            return
        chosen = getattr(getattr(bound, "configurable", None), "wrapped", bound)
        if chosen is not base_trainer.Trainer:
            raise Refusal(
                "unsupported",
                "{} has a trainer of its own (create_trainer.trainer_cls is {}): only what"
                " Model Garden's own Trainer evaluates is evaluated".format(beside, bound),
                "evaluate with the trainer's own --mode=continuous_eval",
            )

    def _override(self, setting, given):
        """Overrides parameters by a file or a text, as `--config_file` and `--params_override`."""
        named = self._snapshot.original(given)
        is_file = setting == "config_file" or tf.io.gfile.exists(given)
        if setting == "config_file" and not tf.io.gfile.exists(given):
            hint = "the trainer writes params.yaml into MODEL_DIR when it starts"
            raise Refusal("missing_file", "config_file ({}) not found".format(named), hint)
        try:
            hyperparams.override_params_dict(self.params, given, is_strict=True)
        except (*_WRONG, tf.errors.OpError) as error:
            unknown = _unknown_field(self.params, given, is_file)
            raise _bad_override(setting, named, unknown, self.name, error) from error
        wrong = _wrong_type(_registered(self.name).as_dict(), self.params.as_dict())
        if wrong:
            raise Refusal(
                BAD_PARAMS,
                "{} ({}): {} ({}) must be a number".format(setting, named, *wrong),
                "Model Garden takes any text there, and fails later",
            )

    def _fit_to_one_device(self, on_gpu):
        runtime = self.params.runtime
        trained = runtime.distribution_strategy, int(runtime.num_gpus or 0)
        strategy = trained[0] if trained[0] in ONE_DEVICE else "one_device"
        runtime.override({"distribution_strategy": strategy, "num_gpus": int(on_gpu), "tpu": ""})
        replicas = trained[1] > 1 or trained[0] not in ONE_DEVICE
        if replicas:
            self.warnings.append(
                "the training runs on several replicas (runtime.distribution_strategy {}, num_gpus"
                " {}), the evaluation on one: a loss, which is a mean of batches, may differ from"
                " Model Garden's own".format(*trained)
            )

    def _settle_evaluation(self):
        """Sets what changes no number, and `whole_eval_set`, which does."""
        task, data = self.params.task, self.params.task.validation_data
        if not isinstance(data, hyperparams.Config):
            raise self._no_data()
        if hasattr(task, "allow_image_summary"):  # pictures for TensorBoard, all kept in memory
            task.override({"allow_image_summary": False})
        if hasattr(data, "enable_tf_data_service"):
            data.override({"enable_tf_data_service": False})
        # Its results are the same, and an image cannot be counted in a loop of TensorFlow's.
        self.params.trainer.override({"eval_tf_while_loop": False})
        if self._whole:
            data.override({"drop_remainder": False})
            self.params.trainer.override({"validation_steps": -1})

    def _lock(self):
        try:
            self.params.validate()
        except _WRONG as error:
            raise Refusal(
                BAD_PARAMS,
                "{} contradicts itself: {}".format(self.own_name, one_line(error)),
                "train with it first, with the same interpreter",
            ) from error
        self.params.lock()

    def _no_data(self):
        return Refusal(
            BAD_PARAMS,
            "{} names no eval set: task.validation_data has no input_path and no tfds_name".format(
                self.own_name
            ),
            "give it: --params-override task.validation_data.input_path=FILE",
        )

    def _refuse_unsupported(self):
        data, task = self.validation_data, self.params.task
        if not data.input_path and not getattr(data, "tfds_name", ""):
            raise self._no_data()
        most = getattr(task, "max_num_eval_detections", NUM_EVAL_DETECTIONS)
        if most != NUM_EVAL_DETECTIONS and getattr(task, "use_coco_metrics", True):
            raise Refusal(
                "unsupported",
                "task.max_num_eval_detections ({}) of {} makes every AP -1: pycocotools gives it"
                " for {} detections alone".format(most, self.own_name, NUM_EVAL_DETECTIONS),
                "--params-override task.max_num_eval_detections={}".format(NUM_EVAL_DETECTIONS),
            )
        if not self.steps:
            raise Refusal(
                BAD_PARAMS,
                "trainer.validation_steps (0) of {} evaluates no image".format(self.own_name),
                "--params-override trainer.validation_steps=-1",
            )
        annotations = getattr(task, "annotation_file", "")
        if annotations and not tf.io.gfile.exists(annotations):
            raise Refusal(
                "missing_file",
                "task.annotation_file ({}) of {} not found".format(annotations, self.own_name),
                "the trainer must be able to read the same file; without one the records' own"
                " boxes count: --params-override task.annotation_file=''",
            )

    def _existing_files(self):
        paths = self.validation_data.input_path
        if not paths:
            return []
        given = paths.as_dict().values() if isinstance(paths, hyperparams.Config) else [paths]
        found = []
        for one in given:
            try:
                found += input_reader.match_files(one)
            except (ValueError, tf.errors.OpError) as error:
                raise Refusal(
                    "missing_file",
                    "task.validation_data.input_path ({}) of {} not found".format(
                        one, self.own_name
                    ),
                    "the trainer must be able to read the same files",
                ) from error
        return sorted(found)


def _registered(name, imports=(), known_before=()):
    try:
        return exp_factory.get_exp_config(name)
    except (LookupError, TypeError, AttributeError) as error:
        known = sorted(_names())
        near = difflib.get_close_matches(str(name), known, 3, 0.5)
        hint = "what registers one of your own is given as --garden-import"
        if imports:
            own = ", ".join(set(known) - set(known_before)) or "none"
            hint = "garden_import ({}) registers {}".format(", ".join(imports), own)
        raise Refusal(
            "unknown_experiment",
            "experiment ({}) is not registered".format(name),
            "{}; {}".format(
                "the nearest are " + ", ".join(near) if near else "see --experiment of the trainer",
                hint,
            ),
        ) from error


def _names():
    return _flat(exp_factory._REGISTERED_CONFIGS)


def _flat(registered, before=""):
    for name, entry in registered.items():
        if isinstance(entry, dict):
            yield from _flat(entry, before + name + "/")
        else:
            yield before + name


def _bad_override(setting, named, unknown, experiment, error):
    if unknown:
        return Refusal(
            BAD_PARAMS,
            "{} ({}): {} is no field of the experiment {}".format(
                setting, named, unknown, experiment
            ),
            "was it written by another version of tf-models-official, or for another experiment?",
        )
    return Refusal(
        BAD_PARAMS,
        "{} ({}) cannot be read: {}: {}".format(
            setting, named, type(error).__name__, one_line(error)
        ),
        "give a YAML file, YAML, or field=value with commas between",
    )


def _unknown_field(params, given, is_file):
    """Returns the first field of an override that the parameters do not have, "" for none."""
    try:
        if is_file:
            with tf.io.gfile.GFile(given) as file:
                said = yaml.safe_load(file)
        else:
            said = yaml.safe_load(hyperparams.nested_csv_str_to_json_str(given))
    except (*_WRONG, tf.errors.OpError):
        return ""
    return _first_unknown(params, said) if isinstance(said, dict) else ""


def _wrong_type(before, after, path=""):
    """Returns the first field that was a number and is a text, and its value; None for none."""
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            found = _wrong_type(old, value, "{}{}.".format(path, name))
            if found:
                return found
        elif isinstance(value, str) and isinstance(old, (int, float)):
            return path + str(name), value
    return None


def _first_unknown(params, said, path=""):
    for name, value in said.items():
        if not hasattr(params, str(name)):
            return path + str(name)
        inner = getattr(params, name)
        if isinstance(value, dict) and isinstance(inner, hyperparams.Config):
            unknown = _first_unknown(inner, value, "{}{}.".format(path, name))
            if unknown:
                return unknown
    return ""
