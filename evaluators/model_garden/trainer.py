"""Task, model and trainer of an experiment: built once, restored from one checkpoint after another.

The evaluation is the stock Trainer's own: its loop, its step, its metrics. What is added counts the
images, and takes the count out again before the task sees what a step gives.
"""

import pathlib
import sys

import tensorflow as tf
from official.common import distribute_utils
from official.core import base_trainer, task_factory, train_utils
from official.modeling import optimization, performance
from orbit.utils import loop_fns

from evaluators import misfit
from evaluators.model_garden import suppression
from evaluators.protocol import Failure, Refusal, one_line
from evaluators.variables import READ_ERRORS, SLOT, VALUE, Reader, by_key, is_models, unreadable

# Where an optimizer of moving averages keeps that of a variable.
AVERAGE = SLOT + "optimizer/average" + VALUE
STEP_KEY = "global_step" + VALUE
COUNT_KEY = "checkpoint_watcher/images"
HINT = (
    "give the experiment and the params.yaml that the trainer runs with; a run of another model"
    " needs a MODEL_DIR of its own"
)
# What Model Garden raises for a model or an eval set that it does not take.
BUILD_ERRORS = (ValueError, TypeError, LookupError, RuntimeError, ImportError, tf.errors.OpError)
MESSAGE_LENGTH = 400
# Finite, as the eval set is: TensorFlow would trace the step anew otherwise.
REPEATS = 1 << 20


class CountingTrainer(base_trainer.Trainer):
    """The stock Trainer, which says how many images each step took.

    Attributes:
        on_step: called with the images of each step when it is through.
    """

    def __init__(self, *arguments, dataset, **named):
        self._kept_dataset = dataset
        self.on_step = lambda images: None
        super().__init__(*arguments, **named)
        is_function = self._eval_options.use_tf_function
        self.step = tf.function(self.eval_step) if is_function else self.eval_step

    def distribute_dataset(self, dataset_or_fn, *arguments, **named):
        """Distributes the eval set, which is built already."""
        return self.distributed(self._kept_dataset)

    def distributed(self, dataset):
        """Returns a dataset of one replica as the loop takes it."""
        return self.strategy.distribute_datasets_from_function(lambda context: dataset)

    def create_eval_loop_fn(self, has_state):
        """Returns orbit's own loop, over a step that is kept for measuring."""
        return loop_fns.create_loop_fn(self.step)

    def next_eval_inputs(self, iterator):
        """Adds the number of images to what goes past the model."""
        inputs, logs = super().next_eval_inputs(iterator)
        first = self.strategy.experimental_local_results(tf.nest.flatten(inputs)[0])[0]
        return inputs, {**logs, COUNT_KEY: tf.shape(first)[0]}

    def eval_reduce(self, state=None, step_outputs=None):
        """Takes the number of images out again, and hands it on."""
        outputs = dict(step_outputs)
        images = int(outputs.pop(COUNT_KEY))
        state = super().eval_reduce(state, outputs)
        self.on_step(images)
        return state


class Model:
    """An experiment's model with the trainer that evaluates it.

    Args:
        experiment: the Experiment.
        scratch: a folder for what the task writes.

    Attributes:
        task: Model Garden's.
        trainer: the CountingTrainer; there once `build` was called.
        leaves_empty_tiles_out: whether suppression of boxes does.
        strategy: of the one device.
        global_step: step of the restored checkpoint.
    """

    def __init__(self, experiment, scratch):
        self._experiment = experiment
        params = experiment.params
        if params.runtime.mixed_precision_dtype:
            performance.set_mixed_precision_policy(params.runtime.mixed_precision_dtype)
        self.strategy = distribute_utils.get_distribution_strategy(
            distribution_strategy=params.runtime.distribution_strategy,
            all_reduce_alg=params.runtime.all_reduce_alg,
            num_gpus=params.runtime.num_gpus,
        )
        self._scratch = scratch
        self.leaves_empty_tiles_out = suppression.install()
        with self.strategy.scope():
            self.task = task_factory.get_task(params.task, logging_dir=str(scratch))

    def build(self, dataset):
        """Builds model and trainer for an eval set.

        Raises:
            Refusal: this version of Model Garden cannot build it.
        """
        try:
            with self.strategy.scope():
                self.trainer = train_utils.create_trainer(
                    self._experiment.params,
                    self.task,
                    train=False,
                    evaluate=True,
                    trainer_cls=lambda *given, **named: CountingTrainer(
                        *given, dataset=dataset, **named
                    ),
                )
                self._learn_keys()
        except BUILD_ERRORS as error:
            raise cannot_build(self._experiment, error) from error

    def _learn_keys(self):
        """Learns what a checkpoint must hold: all that the stock Trainer would restore."""
        trainer = self.trainer
        prefix = trainer.checkpoint.write(str(pathlib.Path(self._scratch, "untrained")))
        self._expected = _shapes(tf.train.load_checkpoint(prefix))
        for path in pathlib.Path(self._scratch).glob("untrained.*"):
            path.unlink()
        self._variables = by_key(trainer.checkpoint, trainer.model.variables)
        self._averaged = []
        if isinstance(trainer.optimizer, optimization.ExponentialMovingAverage):
            keys = (key for key in self._variables if _average_of(key) in self._expected)
            self._averaged = list(keys)
            # It is done once when a checkpoint is restored, and what it undoes is not used again.
            trainer.optimizer.swap_weights = lambda: None
        types = {key: v.dtype for key, v in self._variables.items()}
        types.update({_average_of(key): types[key] for key in self._averaged})
        self._reader = Reader({**types, STEP_KEY: tf.int64})

    @property
    def variable_count(self):
        """How many variables of the model a checkpoint must hold."""
        return len(self._variables)

    def restore(self, prefix):
        """Restores one checkpoint, every variable of it that counts.

        Raises:
            Failure: it cannot be read, is of another model, or holds NaN or infinity.
        """
        try:
            self._check(prefix)
            values = self._reader.read(prefix)
        except READ_ERRORS as error:
            raise unreadable(prefix, error) from error
        for key in self._averaged:
            # Model Garden swaps the two in place by sums and differences, so what it evaluates is
            # (average + value) - value, rounded twice.
            values[key] = (values[_average_of(key)] + values[key]) - values[key]
        with self.strategy.scope():
            for key, variable in self._variables.items():
                variable.assign(values[key])
            self.trainer.global_step.assign(values[STEP_KEY])
        self.global_step = int(values[STEP_KEY])

    def require_fit(self, prefix):
        """Raises Refusal when a checkpoint is of another model; one that cannot be read may be."""
        try:
            self._check(prefix)
        except Failure as failure:
            name = pathlib.Path(prefix).name
            message = failure.message.replace("the checkpoint", "checkpoint " + name, 1)
            raise Refusal(failure.code, message, HINT) from failure
        except READ_ERRORS:
            return

    def _check(self, prefix):
        """Compares names, shapes and types of what the evaluation reads, and of the whole model."""
        found = _shapes(tf.train.load_checkpoint(prefix))
        found = {
            key: kind for key, kind in found.items() if is_models(key) or key in self._expected
        }
        config = self._experiment.own_name
        differing = misfit.differences(self._expected, found, config)
        if differing:
            # All of them, for whoever reads worker.log; the message is to be read at a glance.
            print(
                "{}: {}".format(prefix, "; ".join(differing.values())), file=sys.stderr, flush=True
            )
            said = misfit.explain(differing, self._expected, found, config=config)
            raise Failure(misfit.UNMATCHED, "the checkpoint " + said, permanent=True)

    def single_step(self, batches):
        """Returns a function that runs the step of an evaluation, of these batches in turn.

        The metrics then hold what they should not: `forget` them afterwards.

        Args:
            batches: a tf.data.Dataset, like that of the eval set.
        """
        many = self.trainer.distributed(batches.repeat(REPEATS))
        with self.strategy.scope():
            left = [iter(many)]

        def run():
            with self.strategy.scope():
                try:
                    self.trainer.step(left[0])
                except (StopIteration, tf.errors.OutOfRangeError):
                    left[0] = iter(many)
                    self.trainer.step(left[0])
            tf.test.experimental.sync_devices()

        return run

    def forget(self):
        """Empties the metrics that no evaluation empties before it begins."""
        for one in vars(self.task).values():
            if hasattr(one, "reset_state") and hasattr(one, "update_state"):
                one.reset_state()

    def evaluate(self, on_step, steps=None):
        """Runs the eval set through the model as it is; returns what the Trainer gives.

        Args:
            on_step: called with the number of images of each step; what it raises ends all.
            steps: batches, None for as many as the experiment has.
        """
        steps = self._experiment.steps if steps is None else steps
        self.trainer.on_step = on_step
        with self.strategy.scope():
            return self.trainer.evaluate(tf.convert_to_tensor(steps, tf.int32))


def cannot_build(experiment, error):
    """Returns the Refusal of an experiment that Model Garden raised `error` for."""
    return Refusal(
        "bad_params",
        "the model of {} ({}) cannot be built or evaluated with this version of Model Garden:"
        " {}: {}".format(
            experiment.name,
            experiment.own_name,
            type(error).__name__,
            one_line(error)[:MESSAGE_LENGTH],
        ),
        "train with it first, with the same interpreter",
    )


def _shapes(reader):
    """Returns {key: (shape, type)} of the variables of a checkpoint, without its own counter."""
    shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    return {
        key: (list(shapes[key]), types[key].name)
        for key in shapes
        if key.endswith(VALUE) and not key.startswith("save_counter/")
    }


def _average_of(key):
    return key[: -len(VALUE)] + AVERAGE
