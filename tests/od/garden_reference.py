"""Model Garden's own numbers: `garden_reference.py EXPERIMENT CONFIG_FILE PREFIX...`.

What `official.vision.train --mode=continuous_eval` does with a checkpoint, for one after the other:
the same runner and its controller, which restores and evaluates. Prints JSON, from a checkpoint's
name to its metrics. Without a prefix it reads one after another from its standard input, and prints
the metrics of each in a line.

Further settings of the experiment are JSON in the variable PARAMS_OVERRIDE, and what registers it
is a module named by GARDEN_IMPORT.
"""

import importlib
import json
import os
import pathlib
import sys
import tempfile

REPLIES = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # pycocotools prints

import numpy as np  # noqa: E402
from official.common import distribute_utils  # noqa: E402
from official.core import task_factory, train_lib, train_utils  # noqa: E402
from official.modeling import performance  # noqa: E402
from official.vision import registry_imports  # noqa: E402, F401
from official.vision.evaluation import coco_utils  # noqa: E402
from official.vision.utils import summary_manager  # noqa: E402


def build(experiment, config_file, model_dir):
    """Returns the parameters and the runner of the evaluation, as `official.vision.train` does."""
    options = train_utils.ParseConfigOptions(
        experiment, [config_file], params_override=os.environ.get("PARAMS_OVERRIDE", "")
    )
    params = train_utils.parse_configuration(options, print_return=False)
    if params.runtime.mixed_precision_dtype:
        performance.set_mixed_precision_policy(params.runtime.mixed_precision_dtype)
    strategy = distribute_utils.get_distribution_strategy(
        distribution_strategy=params.runtime.distribution_strategy,
        num_gpus=params.runtime.num_gpus,
    )
    with strategy.scope():
        task = task_factory.get_task(params.task, logging_dir=model_dir)
    return params, train_lib.OrbitExperimentRunner(
        distribution_strategy=strategy,
        task=task,
        mode="continuous_eval",
        params=params,
        model_dir=model_dir,
        eval_summary_manager=summary_manager.maybe_build_eval_summary_manager(
            params=params, model_dir=model_dir
        ),
    )


def let_numpy_count():
    """Lets Model Garden count the boxes of an image where NumPy is 2.4 or newer.

    It asks for an array of one number to be a number, which NumPy refuses since then.
    """
    convert = coco_utils.convert_groundtruths_to_coco_dataset

    def converted(groundtruths, *arguments):
        counts = [np.reshape(count, [-1]) for count in groundtruths["num_detections"]]
        return convert(dict(groundtruths, num_detections=counts), *arguments)

    coco_utils.convert_groundtruths_to_coco_dataset = converted


def evaluate(params, runner, prefix):
    """Returns the metrics of one checkpoint, as continuous evaluation makes them."""
    with runner.strategy.scope():
        runner.controller.restore_checkpoint(prefix)
        metrics = runner.controller.evaluate(steps=params.trainer.validation_steps)
    return flat(metrics)


def flat(metrics, before=""):
    """Returns all numbers, those inside of a metric by both names."""
    found = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            found.update(flat(value, "{}{}/".format(before, name)))
        elif np.ndim(value) == 0:
            found[before + name] = float(value)
    return found


def main(experiment, config_file, *prefixes):
    """Evaluates the checkpoints and prints their metrics."""
    if os.environ.get("GARDEN_IMPORT"):
        sys.path.append(str(pathlib.Path(__file__).parent))
        importlib.import_module(os.environ["GARDEN_IMPORT"])
    if tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        let_numpy_count()
    params, runner = build(experiment, config_file, tempfile.mkdtemp())
    if prefixes:
        found = {pathlib.Path(one).name: evaluate(params, runner, one) for one in prefixes}
        json.dump(found, REPLIES)
    else:
        for line in sys.stdin:
            print(json.dumps(evaluate(params, runner, line.strip())), file=REPLIES, flush=True)
    REPLIES.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
