"""Show evaluations to the stoppers and keepers that a training environment has, the real ones.

    real_tools.py REQUESTS FOLDER

REQUESTS is a JSON list of {tool, settings, evaluations: [[step, score], ...], restart}. `tool` is a
class of this file. After `restart` evaluations (0: never) the tool's process is taken to have ended
and begun again: a new object over the same folder. Prints JSON, one list for each request: from a
stopper, whether it wanted to stop after each evaluation; from a keeper, the steps it holds at the
end, best first. FOLDER takes what the tools write.
"""

import json
import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import orbit
import tensorflow as tf
from official.core.train_utils import BestCheckpointExporter

tf.compat.v1.logging.set_verbosity(tf.compat.v1.logging.ERROR)


class Tool:
    """One tool in one folder; `begin` is run at the start and at a restart."""

    def __init__(self, folder, settings):
        self.folder, self.settings, self.epoch = folder, settings, 0
        self.begin()


class KerasEarlyStopping(Tool):
    """`on_epoch_end` as `fit` calls it."""

    def begin(self):
        self.model = tf.keras.Sequential()
        self.callback = tf.keras.callbacks.EarlyStopping(monitor="score", **self.settings)
        self.callback.set_model(self.model)
        self.callback.on_train_begin()

    def see(self, step, score):
        self.model.stop_training = False
        self.callback.on_epoch_end(self.epoch, {"score": score})
        self.epoch += 1
        return self.model.stop_training


class KerasModelCheckpoint(Tool):
    """The model's only weight is the step, so the file says which one it is of."""

    def begin(self):
        monitor = self.settings.get("monitor", "score")
        self.model = tf.keras.Sequential([tf.keras.layers.Dense(1, use_bias=False)])
        self.model.build((None, 1))
        self.path = str(self.folder / "best.h5")
        self.callback = tf.keras.callbacks.ModelCheckpoint(
            self.path,
            monitor=monitor,
            mode=self.settings["mode"],
            save_best_only=True,
            save_weights_only=True,
        )
        self.monitor = monitor
        self.callback.set_model(self.model)

    def see(self, step, score):
        self.model.set_weights([np.full((1, 1), step)])
        self.callback.on_epoch_begin(self.epoch)
        self.callback.on_epoch_end(self.epoch, {self.monitor: score})
        self.epoch += 1

    def holds(self):
        if not Path(self.path).exists():
            return []
        self.model.load_weights(self.path)
        return [int(self.model.get_weights()[0][0, 0])]


def write_event(folder, number, step, score):
    """Write one evaluation to an event file of its own, as tf.summary would."""
    folder.mkdir(exist_ok=True)
    value = tf.compat.v1.Summary.Value(tag="score", simple_value=score)
    event = tf.compat.v1.Event(step=step, summary=tf.compat.v1.Summary(value=[value]))
    with tf.io.TFRecordWriter(str(folder / f"events.out.tfevents.{number:04}")) as writer:
        writer.write(event.SerializeToString())


class _EstimatorHook(Tool):
    def begin(self):
        model_dir = str(self.folder)
        self.estimator = tf.estimator.Estimator(
            lambda features: None, config=tf.estimator.RunConfig(model_dir=model_dir)
        )
        self.hook = self.make_hook()

    def see(self, step, score):
        write_event(Path(self.estimator.eval_dir()), self.epoch, step, score)
        self.epoch += 1
        return bool(self.hook._should_stop_fn())


class EstimatorNoImprovement(_EstimatorHook):
    def make_hook(self):
        of = tf.estimator.experimental
        wanted, steps = self.settings["mode"], self.settings["max_steps"]
        least = self.settings.get("min_steps", 0)
        if wanted == "max":
            return of.stop_if_no_increase_hook(self.estimator, "score", steps, min_steps=least)
        return of.stop_if_no_decrease_hook(self.estimator, "score", steps, min_steps=least)


class EstimatorThreshold(_EstimatorHook):
    def make_hook(self):
        of = tf.estimator.experimental
        make = {"max": of.stop_if_higher_hook, "min": of.stop_if_lower_hook}[self.settings["mode"]]
        return make(self.estimator, "score", self.settings["threshold"])


class ExportingEstimator:
    """As much of an estimator as an exporter asks for: exports hold the step and nothing else."""

    def __init__(self, folder):
        self.model_dir = str(folder)

    def export_saved_model(self, base, receiver_fn, checkpoint_path=None, **_):
        exported = Path(base) / f"{int(checkpoint_path):010}"
        exported.mkdir(parents=True)
        return str(exported)


class EstimatorBestExporter(Tool):
    """An evaluation is in the event files before its export, as in `train_and_evaluate`."""

    def begin(self):
        better = {
            "max": lambda best_eval_result, current_eval_result: (
                current_eval_result["score"] > best_eval_result["score"]
            ),
            "min": lambda best_eval_result, current_eval_result: (
                current_eval_result["score"] < best_eval_result["score"]
            ),
        }
        self.exporter = tf.estimator.BestExporter(
            serving_input_receiver_fn=lambda: None,
            compare_fn=better[self.settings["mode"]],
            exports_to_keep=self.settings["exports_to_keep"],
        )

    def see(self, step, score):
        write_event(self.folder / "eval", self.epoch, step, score)
        self.epoch += 1
        estimator = ExportingEstimator(self.folder)
        self.exporter.export(
            estimator, str(self.folder / "export"), str(step), {"score": score}, False
        )

    def holds(self):
        return sorted((int(path.name) for path in (self.folder / "export").iterdir()), reverse=True)


class OrbitNewBestMetric(Tool):
    held = ()

    def begin(self):
        filename = str(self.folder / "best") if self.settings["persistent"] else None
        self.best = orbit.actions.NewBestMetric(
            "score", higher_is_better=self.settings["mode"] == "max", filename=filename
        )

    def see(self, step, score):
        if self.best({"score": score}):
            self.held = (step,)

    def holds(self):
        return self.held


class ModelGardenBestCheckpoint(Tool):
    def begin(self):
        compare = {"max": "higher", "min": "lower"}[self.settings["mode"]]
        self.step = tf.Variable(0, dtype=tf.int64)
        self.checkpoint = tf.train.Checkpoint(step=self.step)
        self.exporter = BestCheckpointExporter(str(self.folder / "best"), "score", compare)

    def see(self, step, score):
        self.step.assign(step)
        self.exporter.maybe_export_checkpoint(self.checkpoint, {"score": score}, step)

    def holds(self):
        reader = tf.train.load_checkpoint(self.exporter.best_ckpt_path)
        return [int(reader.get_tensor("step/.ATTRIBUTES/VARIABLE_VALUE"))]


def answer(request, folder):
    tool = globals()[request["tool"]](folder, request["settings"])
    said = []
    for number, (step, score) in enumerate(request["evaluations"]):
        if number and number == request["restart"]:
            tool.begin()
        said.append(tool.see(step, score))
    return list(tool.holds()) if hasattr(tool, "holds") else said


def main():
    requests, base = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    answers = []
    for number, request in enumerate(requests):
        folder = base / str(number)
        folder.mkdir()
        answers.append(answer(request, folder))
    print("ANSWER " + json.dumps(answers))


if __name__ == "__main__":
    main()
