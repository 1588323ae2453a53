"""The OD API's own evaluation loop, fed with checkpoints: `od_loop.py PIPELINE FOLDER`.

Runs in the training interpreter. `eval_continuously` runs as it is; only its polling for the
latest checkpoint is replaced by reading prefixes from stdin, one a line. After each it prints one
line of JSON: the metrics, and `until_first_image`, the seconds until the first image was through,
most of them tracing. Its summaries go into FOLDER.
"""

import contextlib
import json
import os
import pathlib
import sys
import time

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from object_detection import model_lib_v2  # noqa: E402

MANY_STEPS = 1 << 30  # at train_steps the loop would end


def main(pipeline, folder):
    """Evaluates until stdin ends."""
    original = model_lib_v2.eager_eval_loop
    metrics = {}

    def answer(value):
        ANSWER.write(json.dumps(value) + "\n")
        ANSWER.flush()

    def remembering(model, configs, dataset, **options):
        began = time.perf_counter()

        def timed():
            for number, batch in enumerate(dataset):
                if number == 1:
                    metrics["until_first_image"] = time.perf_counter() - began
                yield batch

        found = original(model, configs, timed(), **options)
        metrics.update({name: float(value) for name, value in found.items()})
        return found

    def told(*args, **options):
        answer("ready")
        for line in sys.stdin:
            yield line.strip()
            answer(metrics)

    model_lib_v2.eager_eval_loop = remembering
    model_lib_v2.tf.train.checkpoints_iterator = told
    with strategy(pipeline):
        model_lib_v2.eval_continuously(
            pipeline_config_path=pipeline,
            model_dir=folder,
            checkpoint_dir=folder,
            train_steps=MANY_STEPS,
        )


def strategy(pipeline):
    """Returns the scope to evaluate in: with moving averages the OD API crashes outside of one."""
    if "use_moving_averages: true" in pathlib.Path(pipeline).read_text():
        return model_lib_v2.tf.compat.v2.distribute.OneDeviceStrategy("/cpu:0").scope()
    return contextlib.nullcontext()


if __name__ == "__main__":
    main(*sys.argv[1:])
