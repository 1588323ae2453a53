"""Scores checkpoints with the OD API's own loop: `reference_eval.py PIPELINE PREFIX...`.

Runs in the training interpreter. It follows `model_lib_v2.eval_continuously` step by step, with
the waiting left out, and prints one JSON object: `{prefix: {metric: value}}`, floats in full
precision (Python's repr round-trips). `use_moving_averages` runs under `OneDeviceStrategy`,
without which the OD API crashes. With `--model-dir` it also writes the event files.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import time

import numpy as np
import tensorflow as tf
from PIL import ImageFont

# The OD API's pascal VOC code needs aliases NumPy dropped in 1.24; without them its loop crashes.
for alias, builtin in (("float", float), ("bool", bool), ("int", int), ("object", object)):
    if alias not in vars(np):
        setattr(np, alias, builtin)

# And its drawing a method that Pillow dropped in version 10.
if not hasattr(ImageFont.FreeTypeFont, "getsize"):
    for font in (ImageFont.FreeTypeFont, ImageFont.ImageFont):
        font.getsize = lambda self, text: (
            self.getbbox(text)[2] - self.getbbox(text)[0],
            self.getbbox(text)[3],
        )

from object_detection import inputs, model_lib_v2  # noqa: E402
from object_detection.builders import optimizer_builder  # noqa: E402
from object_detection.utils import config_util  # noqa: E402


def parse():
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline")
    parser.add_argument("prefixes", nargs="+")
    parser.add_argument("--eval-index", type=int, default=0)
    parser.add_argument("--sample", type=int, default=None)
    parser.add_argument("--model-dir", default=None)
    return parser.parse_args()


def restored(prefix, configs, model, dataset, global_step):
    """Restores one checkpoint as `eval_continuously` does, moving averages included."""
    optimizer, _ = optimizer_builder.build(
        configs["train_config"].optimizer, global_step=global_step
    )
    checkpoint = tf.train.Checkpoint(step=global_step, model=model, optimizer=optimizer)
    averages = configs["eval_config"].use_moving_averages
    if averages:
        unpad = configs["eval_config"].batch_size == 1
        model_lib_v2._ensure_model_is_built(model, dataset, unpad)
        optimizer.shadow_copy(model)
    checkpoint.restore(prefix).expect_partial()
    if averages:
        optimizer.swap_weights()


def reference(pipeline, prefixes, eval_index=0, sample=None, model_dir=None):
    """Returns `{prefix: {metric: value}}` and the seconds each took."""
    scope = contextlib.nullcontext()
    if "use_moving_averages: true" in pathlib.Path(pipeline).read_text():
        scope = tf.distribute.OneDeviceStrategy("/cpu:0").scope()
    with scope:
        return evaluate(pipeline, prefixes, eval_index, sample, model_dir)


def summaries(model_dir, eval_input):
    """Returns the context in which `eval_continuously` runs its loop."""
    if model_dir is None:
        return contextlib.nullcontext()
    folder = os.path.join(model_dir, "eval", eval_input.name)  # noqa: PTH118, as it does
    return tf.summary.create_file_writer(folder).as_default()


def evaluate(pipeline, prefixes, eval_index, sample, model_dir):
    """Does what `reference` returns, under the strategy in scope."""
    configs = config_util.get_configs_from_pipeline_file(pipeline)
    overrides = {"eval_num_epochs": 1, "sample_1_of_n_eval_examples": sample}
    configs = config_util.merge_external_params_with_configs(configs, kwargs_dict=overrides)
    results, seconds = {}, {}
    for prefix in prefixes:
        model = model_lib_v2.MODEL_BUILD_UTIL_MAP["detection_model_fn_base"](
            model_config=configs["model"], is_training=True
        )
        dataset = tf.distribute.get_strategy().experimental_distribute_dataset(
            inputs.eval_input(
                eval_config=configs["eval_config"],
                eval_input_config=configs["eval_input_configs"][eval_index],
                model_config=configs["model"],
                model=model,
            )
        )
        global_step = tf.Variable(0, trainable=False, dtype=tf.int64)
        restored(prefix, configs, model, dataset, global_step)
        began = time.perf_counter()
        with summaries(model_dir, configs["eval_input_configs"][eval_index]):
            metrics = model_lib_v2.eager_eval_loop(model, configs, dataset, global_step=global_step)
        seconds[prefix] = time.perf_counter() - began
        results[prefix] = {name: float(value) for name, value in metrics.items()}
    return {"metrics": results, "seconds": seconds}


def main():
    """Keeps stdout for the answer, since pycocotools prints there."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options = parse()
    json.dump(reference(**vars(options)), answer)
    answer.close()


if __name__ == "__main__":
    sys.exit(main())
