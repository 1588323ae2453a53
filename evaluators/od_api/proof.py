"""The proof that batches change no bit of this model, on this data and this device.

It is given at the start, with the weights a model begins with and with larger ones, and once more
with those of the first checkpoint, before that has a score: as many images as two batches hold,
each compared bit by bit with what a pass of it alone gives. The larger ones are for what small ones
hide: a difference in a box of 1e-33 is rounded away beside its anchor, and is one in a score once
the model is trained. Convolutions without oneDNN differ so, on maps of one pixel: for one image
they are products with one row. A model that fails it goes on image by image. So does one
that draws some of its outputs at random, as Faster R-CNN draws the anchors of two losses: what is
drawn differs between two passes anyway, and a part that cannot be compared is not proven.
"""

import contextlib
import itertools
import sys
import time

import numpy as np
import tensorflow as tf

from evaluators.od_api import randomness
from evaluators.od_api.batches import TOTAL_LOSS, BatchPass, total_loss

SIZES = (16, 8, 4)
# What the largest operations of all batches at once may hold: inputs and outputs of one each.
LARGEST_BYTES = 256 << 20
# The passes it takes, of one image each.
LONGEST_SECONDS = 4.0
# Of the batches: on a busy machine one alone says little of how long they take.
TRIES = 3
NAMED = 3


class Batching:
    """How many images go through the network at once: one, until more are proven.

    Args:
        model: the Model, traced.
        eval_set: the EvalSet.
        passes: the Passes, which run them.

    Attributes:
        size: images at once, above the pipeline's own batch size only where that is 1.
        why: a sentence about it.
        notes: sentences for the operator.
        least_gain: below that a batch is not worth its memory.
    """

    least_gain = 1.05

    def __init__(self, model, eval_set, passes):
        self._model = model
        self._eval_set = eval_set
        self._passes = passes
        self._pass = None
        self._unconfirmed = ()
        self.size = 1
        self.why = "as eval_batch_size says"
        self.notes = []

    def describe(self):
        """Returns what `ready` tells of it."""
        return {"size": self.size, "why": self.why}

    def groups(self, batches):
        """Yields lists of batches to be run at once; the last images, too few for one, singly."""
        iterator = iter(batches)
        while True:
            group = list(itertools.islice(iterator, self.size))
            if len(group) < self.size:
                yield from ([batch] for batch in group)
                return
            yield group

    def forward(self, group):
        """Returns [(losses, detections)] of the batches of a group."""
        if self._pass and len(group) == self.size:
            try:
                return self._pass.forward(group)
            except tf.errors.ResourceExhaustedError as error:
                self._pass = None
                text = "no memory for a batch: images go through the model one by one from now on"
                print("{}: {}".format(text, error), file=sys.stderr, flush=True)
        return [self._model.forward(*batch) for batch in group]

    def settle(self, pipeline, found, pass_seconds):
        """Chooses a size, proves it, and leaves it at one image where it cannot be proven.

        Args:
            pipeline: the Pipeline.
            found: what `Model.forward` gave of one batch.
            pass_seconds: how long it took.
        """
        if pipeline.fixed_batch_size:
            return
        if pipeline.batch_size != 1:
            self.why = "the pipeline's own: an image's losses depend on the others of its batch"
            return
        size, self.why = self._possible(pass_seconds)
        if size:
            self._try(size, found)
        if self.size == 1:
            self.notes.append("images go through the model one by one: " + self.why)

    def confirm(self):
        """Proves it with the weights that are in the model now, unless that was done before.

        Returns:
            A sentence that says why it is given up, None where it is not.
        """
        sample, self._unconfirmed = self._unconfirmed, ()
        if not sample or not self._pass:
            return None
        differing = self._differing(sample, self._alone(sample)[0], self._pass)[0]
        if not differing:
            return None
        self.size, self._pass = 1, None
        self.why = "in batches this checkpoint gives different " + _few(differing)
        return "this checkpoint and those after it go through the model image by image: " + self.why

    def _possible(self, pass_seconds):
        """Returns (size to try, "") or (None, why not)."""
        drawn = self._model.random_outputs
        if drawn:
            return None, "the model draws {} at random, so that no proof is possible".format(
                _few(drawn)
            )
        if len(self._eval_set.shapes) > 1:
            return None, "they differ in size after the image_resizer"
        sizes = [size for size in SIZES if size < self._eval_set.images]
        if not sizes:
            return None, "there are only {}".format(self._eval_set.images)
        image_bytes = 2 * self._model.largest_tensor_bytes() * self._passes.at_once
        sizes = [size for size in sizes if size * image_bytes <= LARGEST_BYTES]
        if not sizes:
            text = "one operation on {} of them holds more than {} MiB"
            return None, text.format(SIZES[-1], LARGEST_BYTES >> 20)
        sizes = [size for size in sizes if 2 * size * pass_seconds <= LONGEST_SECONDS]
        if not sizes:
            return None, "a pass takes {:.1f} s, which is not for want of a batch".format(
                pass_seconds
            )
        return sizes[0], ""

    def _try(self, size, found):
        sample = list(itertools.islice(iter(self._eval_set), 2 * size))
        alone = self._alone(sample)
        if any(total_loss(one) != one.get(TOTAL_LOSS, total_loss(one)) for one, _ in alone[0]):
            # Told before the tracing of a batch, which takes seconds.
            self.why = "its graph of one image adds up {} in an order of its own".format(TOTAL_LOSS)
            return
        try:
            tried = BatchPass(self._model, size, found)
            tried.forward(sample[:size])  # which traces it
            tries = [self._differing(sample, alone[0], tried) for _ in range(TRIES)]
            differing = set().union(*(names for names, _ in tries))
            differing = differing or self._differing_when_trained(sample[:size], tried)
        except Exception as error:  # whatever the code of an architecture raises in a batch
            self.why = "in a batch the model raises {}: {}".format(
                type(error).__name__, str(error).strip().split("\n")[0][:200]
            )
            return
        together = min(seconds for _, seconds in tries)
        took = "{:.3g} ms an image instead of {:.3g}".format(1000 * together, 1000 * alone[1])
        if differing:
            self.why = "batches of {} would take {}, but give different {}".format(
                size, took, _few(differing)
            )
        elif alone[1] < self.least_gain * together:
            self.why = "batches of {} are not faster, {}".format(size, took)
        else:
            self.size, self._pass, self._unconfirmed = size, tried, sample
            self.why = "{} images have the same bits in batches of {} as one by one, {}".format(
                len(sample), size, took
            )

    def _differing_when_trained(self, sample, tried):
        """Returns names of what differs with weights that keep the size of what goes through."""
        with _enlarged(self._model.network.trainable_variables):
            return self._differing(sample, self._alone(sample)[0], tried)[0]

    def _alone(self, sample):
        """Returns ([(losses, detections)] of passes of one image, seconds an image)."""
        began = time.perf_counter()
        found = self._passes.map(lambda batch: self._model.forward(*batch), sample)
        return found, (time.perf_counter() - began) / len(sample)

    def _differing(self, sample, alone, tried):
        """Returns (names of what differs in batches, seconds an image)."""
        size = tried.size
        began = time.perf_counter()
        first, last = self._passes.map(tried.forward, [sample[:size], sample[-size:]])
        seconds = (time.perf_counter() - began) / (2 * size)
        pairs = zip(alone[:size] + alone[-size:], first + last)
        return set().union(*(randomness.differing(*pair) for pair in pairs)), seconds


@contextlib.contextmanager
def _enlarged(variables):
    """Has kernels be of the size that He et al. start from, meanwhile; those of zeros stay."""
    before = [(variable, variable.numpy()) for variable in variables if variable.shape.rank > 1]
    try:
        for variable, values in before:
            is_depthwise = "depthwise_kernel" in variable.name  # its channels are not added up
            added_up = np.prod(values.shape[: -2 if is_depthwise else -1])
            size = np.sqrt(np.mean(np.square(values.astype(np.float64))))
            if size > 0:
                variable.assign(values * (np.sqrt(2 / added_up) / size).astype(values.dtype))
        yield
    finally:
        for variable, values in before:
            variable.assign(values)


def _few(names):
    shown = sorted(names)[:NAMED]
    return ", ".join(shown) + (", ..." if len(names) > NAMED else "")
