"""The OD API's own evaluation loop, fed with checkpoints: `od_loop.py PIPELINE FOLDER`.

Runs in the training interpreter. `eval_continuously` runs as it is; only its polling for the
latest checkpoint is replaced by reading prefixes from stdin, one a line. After each it prints one
line of JSON: the metrics. Its summaries go into FOLDER.
"""

import json
import os
import sys

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

    def remembering(*args, **options):
        found = original(*args, **options)
        metrics.update({name: float(value) for name, value in found.items()})
        return found

    def told(*args, **options):
        answer("ready")
        for line in sys.stdin:
            yield line.strip()
            answer(metrics)

    model_lib_v2.eager_eval_loop = remembering
    model_lib_v2.tf.train.checkpoints_iterator = told
    model_lib_v2.eval_continuously(
        pipeline_config_path=pipeline,
        model_dir=folder,
        checkpoint_dir=folder,
        train_steps=MANY_STEPS,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
