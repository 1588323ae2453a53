"""Computes the statistics of batch normalisation anew, from training images.

The mean of several checkpoints' moving means and variances is not what their averaged weights give.
So training images go through the averaged model as the trainer sends them, in training mode and in
batches of the trainer's size, and the statistics become the mean of what the batches have: each
counts alike, where training forgets the first by `momentum`. Nothing depends on the statistics of
before, nor is anything else of the model changed. PyTorch's `swa_utils.update_bn` does the same.
"""

import contextlib

import numpy as np
import tensorflow as tf
from object_detection import inputs, model_lib, model_lib_v2

from evaluators.clock import throttled
from evaluators.od_api import compat
from evaluators.od_api.model import inputs_of_the_model
from evaluators.pace import PACE
from evaluators.protocol import BatchNorm, Failure, one_line
from evaluators.reading import UNREADABLE

# The steps of augmentation that draw nothing at random: the others are left out.
UNVARYING = {
    *("normalize_image", "scale_boxes_to_pixel_coordinates", "resize_image"),
    *("subtract_channel_mean", "rgb_to_gray", "convert_class_logits_to_softmax"),
    *("remap_labels", "adjust_gamma"),
}
# Models that sample proposals or drop units draw the same at each time.
SEED = 1
# A batch of one image says little of a variance.
SMALLEST = 2


def recompute(model, configs, images, on_progress):
    """Computes them from the first training images, in the order of their records.

    Args:
        model: the Model, with the weights that count. It must be restored before it is used again.
        configs: the OD API's configuration objects by name.
        images: from how many; of the last batch what is too few for it is left out.
        on_progress: called with (images done, images in all), at most twice a second.

    Returns:
        ({key of the checkpoint: value}, what it was computed of as a BatchNorm).

    Raises:
        Failure: the model has nothing to compute, or there are not so many images.
    """
    layers = _layers(model)
    if not layers:
        raise _refusal("no_batch_norm", "the model has no batch normalisation")
    batch_size = configs["train_config"].batch_size
    if images < batch_size:
        text = "recompute_batch_norm ({}) is less than one batch of training, which has {} images"
        raise _refusal("too_few_images", text.format(images, batch_size))
    report = throttled(on_progress, images)
    report(0)
    while True:
        try:
            with _as_in_training(model.network, layers):
                return _recomputed(model, configs, layers, images, batch_size, report)
        except tf.errors.ResourceExhaustedError as error:
            if batch_size // 2 < SMALLEST:
                text = "not even {} training images fit into the memory of the device"
                raise _refusal("out_of_memory", text.format(batch_size)) from error
            batch_size //= 2


def _recomputed(model, configs, layers, images, batch_size, report):
    forward = _pass(model, configs)
    live, sums, done, seen = [], [], 0, 0
    try:
        dataset = _training_set(configs, model.network, batch_size)
        for features, labels in dataset.take(-(-images // batch_size)):
            found = len(features[inputs.HASH_KEY])
            seen += found
            if done + batch_size > images or found < batch_size:
                break
            batch = inputs_of_the_model(features), labels
            if not live:
                live = _trained_ones(layers, forward, batch)
                sums = [np.zeros(v.shape, np.float64) for v in _statistics(live)]
            for variable in _statistics(live):
                variable.assign(tf.zeros_like(variable))
            forward(*batch)
            sums = [total + v.numpy() for total, v in zip(sums, _statistics(live))]
            done += batch_size
            report(done)
    except UNREADABLE as error:
        text = "the training records of pipeline.config ({}) cannot be read: {}"
        raise _refusal("bad_records", text.format(_paths(configs), one_line(error))) from error
    if seen < images:
        text = "the training records ({}) hold {} images, recompute_batch_norm asks for {}"
        raise _refusal("too_few_images", text.format(_paths(configs), seen, images))
    keys = {variable.ref(): key for key, variable in model.variables.items()}
    batches = done // batch_size
    values = {keys[v.ref()]: total / batches for v, total in zip(_statistics(live), sums)}
    return values, BatchNorm(done, batch_size, len(live), len(layers) - len(live))


def _layers(model):
    """Returns the layers of batch normalisation, of whichever class, each once."""
    known = {variable.ref() for variable in model.variables.values()}
    layers = {id(one): one for one in model.network.submodules if hasattr(one, "momentum")}
    variances = [(one, getattr(one, "moving_variance", None)) for one in layers.values()]
    return [one for one, found in variances if found is not None and found.ref() in known]


def _statistics(layers):
    return [v for layer in layers for v in (layer.moving_mean, layer.moving_variance)]


def _trained_ones(layers, forward, batch):
    """Returns the layers whose statistics a pass changes: the others are frozen.

    Raises:
        Failure: all are.
    """
    before = [v.numpy() for v in _statistics(layers)]
    forward(*batch)
    after = [v.numpy() for v in _statistics(layers)]
    moved = [not np.array_equal(a, b) for a, b in zip(before, after)]
    live = [layer for at, layer in enumerate(layers) if any(moved[2 * at : 2 * at + 2])]
    if not live:
        text = "the batch normalisation of the model is frozen ({} layers; freeze_batchnorm, or"
        text += " batch_norm with train: false): training does not change its statistics"
        raise _refusal("frozen_batch_norm", text.format(len(layers)))
    return live


@contextlib.contextmanager
def _as_in_training(network, layers):
    """Has the model behave as in a step of training, and keep of its statistics the last batch's.

    With a momentum of 0 and statistics that are 0 before a pass they are that batch's after it,
    to the last bit.
    """
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    tf.random.set_seed(SEED)
    _be_in_training(network, True)
    try:
        yield
    finally:
        _be_in_training(network, False)
        tf.random.set_seed(None)
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum


def _be_in_training(network, training):
    network._is_training = training
    tf.keras.backend.set_learning_phase(training)


def _pass(model, configs):
    """Returns a function of a batch that does a step of training, but for the learning."""
    train_config = configs["train_config"]

    def forward(features, labels):
        # As eager_train_step has it; in the graph that is traced, too.
        _be_in_training(model.network, True)
        labels = model_lib.unstack_batch(
            labels, unpad_groundtruth_tensors=train_config.unpad_groundtruth_tensors
        )
        model_lib_v2._compute_losses_and_predictions_dicts(
            model.network, features, labels, training_step=0, add_regularization_loss=False
        )

    return PACE.paced(tf.function(forward, autograph=model.autograph))


def _training_set(configs, network, batch_size):
    """Returns the training set of pipeline.config once, in order and without chance."""
    reader, train_config = (
        type(one).FromString(one.SerializeToString())
        for one in (configs["train_input_config"], configs["train_config"])
    )
    if reader.WhichOneof("input_reader") != "tf_record_input_reader":
        raise _refusal(
            "no_training_records", "the train_input_reader has no tf_record_input_reader"
        )
    paths = reader.tf_record_input_reader.input_path
    missing = [path for path in paths if not tf.io.gfile.glob(path)]
    if missing or not paths:
        text = "training records ({}) not found: the watcher must be able to read what trains"
        raise _refusal("no_training_records", text.format(", ".join(missing) or "none named"))
    reader.shuffle, reader.num_epochs, reader.drop_remainder = False, 1, False
    del reader.sample_from_datasets_weights[:]
    steps = train_config.data_augmentation_options
    kept = [step for step in steps if step.WhichOneof("preprocessing_step") in UNVARYING]
    del steps[:]
    steps.extend(kept)
    given = {
        "train_config": train_config,
        "train_input_config": reader,
        "model_config": configs["model"],
        "model": network,
        "params": {"batch_size": batch_size},
    }
    with compat.empty_source_ids():
        try:  # without AutoGraph where that does, as for the eval set
            return tf.autograph.experimental.do_not_convert(inputs.train_input)(**given)
        except Exception:
            return inputs.train_input(**given)


def _paths(configs):
    return ", ".join(configs["train_input_config"].tf_record_input_reader.input_path)


def _refusal(code, text):
    """Returns the Failure of what another attempt would not mend."""
    return Failure(code, text, permanent=True)
