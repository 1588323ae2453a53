"""Scores with the OD API and with ours: `compare.py FOLDER FAMILY...`.

Runs in the training interpreter. It draws the families' shapes in FOLDER, and for each it makes a
checkpoint (a few steps of the OD API's own `train_loop`, or the initialised model), scores it with
`eager_eval_loop` and with the package `evaluators`, and prints one line of JSON. Three last lines
have what `batch_proofs`, `restores` and `random_graphs` say.
"""

import json
import os
import pathlib
import sys
import time
import traceback

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

from evaluators_package import VERSIONS  # noqa: E402, I001

import batch_norms  # noqa: E402
import batch_proofs  # noqa: E402
import numpy as np  # noqa: E402
import random_graphs  # noqa: E402
import restores  # noqa: E402
import shapes  # noqa: E402
import tensorflow as tf  # noqa: E402
from evaluators.coco import BACKENDS, usable  # noqa: E402
from evaluators import averages  # noqa: E402
from evaluators.od_api import parts  # noqa: E402
from evaluators.od_api.checkpoints import AVERAGE  # noqa: E402
from evaluators.od_api.detections import truth_arrays  # noqa: E402
from evaluators.od_api.evaluation import Evaluation  # noqa: E402
from evaluators.od_api.fingerprint import text_sha256  # noqa: E402
from evaluators.protocol import Part  # noqa: E402
from evaluators.snapshot import Snapshot  # noqa: E402
from evaluators.variables import VALUE  # noqa: E402
from families import FAMILIES, REQUESTS, SAME_MODEL, SHAPES, TRAINED  # noqa: E402
from object_detection import inputs, model_lib_v2  # noqa: E402
from object_detection.utils import config_util  # noqa: E402
from reference_eval import reference  # noqa: E402

# Whose average the OD API evaluates, too: that takes as long as all the rest.
REFERRED = "ssd_fpn_ema_alone"
# Which samples proposals at random while it trains.
RANDOM = "faster_rcnn"
SEED = int(os.environ.get("COMPARE_SEED", "1"))


def train(pipeline, model_dir):
    """Trains two steps with the OD API's own loop and returns the last checkpoint.

    `ckpt-2` and `ckpt-3` are those of the two steps.
    """
    # One at a time: its compiler takes far longer for a loop of several.
    model_lib_v2.train_loop(
        pipeline, model_dir, checkpoint_every_n=1, num_steps_per_iteration=1, record_summaries=False
    )
    return tf.train.latest_checkpoint(model_dir)


def initialise(pipeline, model_dir):
    """Saves the initialised model as the OD API's trainer would, and returns the checkpoint."""
    configs = config_util.get_configs_from_pipeline_file(pipeline)
    # Some initial weights find nothing at all, and there the OD API's LVIS evaluation raises.
    tf.keras.utils.set_random_seed(SEED)
    model = model_lib_v2.MODEL_BUILD_UTIL_MAP["detection_model_fn_base"](
        model_config=configs["model"], is_training=True
    )
    dataset = inputs.eval_input(
        eval_config=configs["eval_config"],
        eval_input_config=configs["eval_input_configs"][0],
        model_config=configs["model"],
        model=model,
    )
    features, _ = next(iter(dataset))
    # In the inference mode of eager_eval_loop, which also builds the mask head.
    model._is_training = False
    tf.keras.backend.set_learning_phase(False)
    model.predict(features["image"], features["true_image_shape"])
    step = tf.Variable(7, dtype=tf.int64)
    checkpoint = tf.train.Checkpoint(step=step, model=model)
    return checkpoint.write(str(pathlib.Path(model_dir, "ckpt-1")))


def checkpoint_of(family, path):
    """Returns a checkpoint of the family's model, made once."""
    source = SAME_MODEL.get(family, family)
    model_dir = pathlib.Path(source)
    if (model_dir / "ckpt-1.index").exists():
        return tf.train.latest_checkpoint(str(model_dir)) or str(model_dir / "ckpt-1")
    return (train if source in TRAINED else initialise)(str(path), str(model_dir))


def compare(family, eval_index=0):
    """Returns both sides' metrics of one family, and the seconds each part took."""
    marks = [time.perf_counter()]

    def mark():
        marks.append(time.perf_counter())

    path = pathlib.Path(family + ".config")
    path.write_text(FAMILIES[family])
    prefix = checkpoint_of(family, path)
    tf.keras.backend.clear_session()
    mark()
    extra = REQUESTS.get(family, {})
    sample = extra.get("sample_1_of_n")
    # Last of all, for its pictures.
    prefixes = [average_of(prefix), prefix] if family == REFERRED else [prefix]
    expected = reference(str(path), prefixes, eval_index, sample, family)["metrics"]
    tf.keras.backend.clear_session()
    mark()
    request = {"pipeline_config": str(path), "eval_input": eval_index, **extra}
    copies = pathlib.Path(family + "-snapshot").absolute()
    copies.mkdir(exist_ok=True)
    evaluation = Evaluation(request, VERSIONS, Snapshot({"folder": str(copies)}))
    mark()
    results = []
    evaluation._sets.backend = backends()[0]
    # Before the others, which remove the pictures of those before them.
    shared = in_parts(evaluation, prefix)
    for backend in backends():
        evaluation._sets.backend = backend
        results.append(evaluation.evaluate(prefix, lambda done, total: None))
    truths = compare_truths(evaluation)
    average, batch_norm = None, None
    if family in (*TRAINED, REFERRED):
        saved = average_of(prefix)
        average = compare_average(evaluation, saved, expected.get(saved, {}))
    if family in TRAINED:
        batch_norm = batch_norms.odd(evaluation, saved)
    elif family == RANDOM:
        batch_norm = batch_norms.recomputed(evaluation, prefix)
    mark()
    tf.keras.backend.clear_session()
    return {
        "family": family,
        "eval_index": eval_index,
        "reference": expected[prefix],
        "ready": evaluation.describe(),
        "written_model": text_sha256(
            config_util.get_configs_from_pipeline_file(str(path))["model"]
        ),
        "copies": sorted(copy.name for copy in copies.iterdir()),
        "backends": backends(),
        "results": results,
        "shared": shared,
        "truths": truths,
        "average": average,
        "batch_norm": batch_norm,
        "pictures": compare_pictures(family, results[0]["artefacts"]),
        "seconds": [round(b - a, 1) for a, b in zip(marks, marks[1:])],
    }


def in_parts(evaluation, prefix):
    """Returns what an evaluation gives of which others run parts.

    One of them comes, one never does, one is cut off, and one is no good from its second batch on.
    """
    of, paths, parts.TOGETHER = 5, [None], 1

    def ignore(done, total):
        pass

    for index in range(1, of):
        path = str(pathlib.Path("part-{}.npz".format(index)).absolute())
        evaluation.write_part(prefix, Part("", prefix, index, of, path), ignore)
        paths.append(path)
    cut = pathlib.Path(paths[3])
    cut.write_bytes(cut.read_bytes()[:-100])
    with np.load(paths[4]) as arrays:
        fewer = {name: a[:-1] if name.startswith("1/") else a for name, a in arrays.items()}
    np.savez(paths[4], **fewer)
    paths[2] = None
    others = [lambda path=path: path for path in paths[1:]]
    return evaluation.forward(prefix, ignore, others)()()


def parents_of(average):
    """Returns the checkpoints of the two steps of `train`."""
    return [str(pathlib.Path(average).with_name(name)) for name in ("ckpt-2", "ckpt-3")]


def average_of(prefix):
    """Writes the average of the two steps of `train`; returns its prefix."""
    average = prefix + "-average1"
    averages.write(parents_of(average), average)
    return average


def compare_average(evaluation, average, expected):
    """Returns how the evaluation of an average differs from what the OD API and NumPy give.

    `metrics` are those of other values than the OD API's own. What the model then holds is the
    mean of the shadow variables, which are kept for `shadows` of them, and of the others as they
    are: `wrong` are the keys of which that is not so, `moved` those that are not the newest's.
    """
    found = evaluation.evaluate(average, lambda done, total: None)["metrics"]
    readers = [tf.train.load_checkpoint(one) for one in parents_of(average)]
    kept = readers[-1].get_variable_to_shape_map()
    wrong, shadows, moved = [], 0, 0
    for key, variable in evaluation._model._variables.items():
        value, shadow = mean(readers, key), key[: -len(VALUE)] + AVERAGE + VALUE
        evaluated, newest = value, readers[-1].get_tensor(key)
        if shadow in kept:
            shadows += 1
            newest = readers[-1].get_tensor(shadow)
            # As the OD API swaps the two.
            evaluated = (mean(readers, shadow) + value) - value
        moved += not np.array_equal(evaluated, newest)
        if not np.array_equal(evaluated, variable.numpy()):
            wrong.append(key)
    differing = [name for name, value in expected.items() if found.get(name) != value]
    return {"metrics": differing, "wrong": wrong, "shadows": shadows, "moved": moved}


def mean(readers, key):
    """Returns the mean of what the checkpoints have, rounded once."""
    values = [reader.get_tensor(key) for reader in readers]
    return np.mean(values, axis=0, dtype=np.float64).astype(values[0].dtype)


def compare_truths(evaluation):
    """Returns {key: whether ours is, in all images, what the OD API makes of the ground truth}."""
    sets, equal = evaluation._sets, {}
    for features, labels in evaluation._eval_set:
        theirs = sets.eval_dict(sets._no_detections(features), labels, features)
        for key, value in truth_arrays(features, labels, sets.class_agnostic).items():
            same = np.array_equal(theirs[key].numpy().view(np.int32), value.view(np.int32))
            equal[key] = equal.get(key, True) and same
    return equal


def compare_pictures(model_dir, drawn):
    """Returns {tag: whether ours is the OD API's to the last byte, None where one is missing}."""
    theirs = {}
    # By the time in their names: of two evaluations the later one's pictures count.
    for path in sorted(pathlib.Path(model_dir, "eval").rglob("*tfevents*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "images":
                    theirs[value.tag] = value.tensor.string_val[2]
    ours = {one.name: pathlib.Path(one.path).read_bytes() for one in drawn}
    return {
        tag: theirs[tag] == ours[tag] if tag in theirs.keys() & ours.keys() else None
        for tag in sorted(theirs.keys() | ours.keys())
    }


def backends():
    """Returns the COCO backends usable here, the reference first and again at the end."""
    others = [name for name in BACKENDS[:-1] if usable(name)]
    return ["pycocotools", *others, "pycocotools"]


def main():
    """Prints a line a family; `NAME:1` scores the second eval input."""
    os.chdir(sys.argv[1])
    shapes.draw_all(".", SHAPES)
    for argument in sys.argv[2:]:
        name, _, number = argument.partition(":")
        index = int(number or 0)
        try:
            line = compare(name, index)
        except Exception as error:
            line = {"family": name, "eval_index": index, "error": repr(error)}
            line["detail"] = traceback.format_exc()
        print(json.dumps(line, default=vars), file=ANSWER, flush=True)
    print(json.dumps(batch_proofs.proofs()), file=ANSWER, flush=True)
    print(json.dumps(restores.restores()), file=ANSWER, flush=True)
    print(json.dumps(random_graphs.found_random()), file=ANSWER, flush=True)


if __name__ == "__main__":
    main()
