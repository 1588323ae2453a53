"""Parts of an eval set: several workers run one checkpoint, and one of them takes it all together.

The set is divided into contiguous parts of whole batches, as equal as that goes. Whoever is asked
for a part writes what its passes found, losses and detections a batch, into a file; whoever is
asked for the whole runs the first part, reads the files of the others, and computes the metrics
over the images in their order, as if it had run all of them: the same arrays, so the same bits.
What it does not get, or cannot read, it runs itself.

A file is of NumPy's kind `.npz`, with an array for each name of a loss or a detection and each few
batches: so neither side holds more than those in memory. Nothing in it is executed when it is read.
"""

import pathlib
import sys
import zipfile

import numpy as np

from evaluators import disk
from evaluators.protocol import Failure

LOSSES, DETECTIONS = "losses", "detections"
# What is kept together, in batches.
TOGETHER = 32
# So much of a disk is left to others; the trainer saves to it, maybe.
LEFT_BYTES = 2 << 30
# What a model finds and no metric looks at: of every anchor, many MB an image.
_UNUSED = ("raw_detection_", "detection_multiclass_scores", "detection_features")
_EACH, _ALL = "each", "all"


def bounds(batches, index, of):
    """Returns (first, end) of the batches of a part, of which there are `of`."""
    return batches * index // of, batches * (index + 1) // of


class Writer:
    """Writes what was found in the batches of a part; the file appears whole or not at all.

    A context manager: what it does not get to its end leaves no file.

    Args:
        path: of the file.
    """

    def __init__(self, path):
        self._path = pathlib.Path(path)
        self._new = pathlib.Path(path + ".new")
        self._found = []
        self._group = 0

    def __enter__(self):
        self._archive = zipfile.ZipFile(str(self._new), "w")
        return self

    def add(self, losses, detections):
        """Takes what was found in one batch, arrays by name."""
        kept = {n: v for n, v in detections.items() if not n.startswith(_UNUSED)}
        self._found.append(
            [{name: np.asarray(v) for name, v in arrays.items()} for arrays in (losses, kept)]
        )
        if len(self._found) == TOGETHER:
            self._flush()

    def _flush(self):
        found, self._found = self._found, []
        for at, kind in enumerate((LOSSES, DETECTIONS)):
            for name in found[0][at] if found else ():
                values = [one[at][name] for one in found]
                key = "{}/{}".format(self._group, kind)
                if len({(value.shape, value.dtype) for value in values}) == 1:
                    self._put("/".join((key, _ALL, name)), np.stack(values))
                    continue
                for number, value in enumerate(values):
                    self._put("/".join((key, _EACH, str(number), name)), value)
        self._group += 1
        if disk.free_bytes(str(self._path.parent)) < LEFT_BYTES:
            text = "{} has no room for a part of the detections".format(self._path.parent)
            raise Failure("no_space", text, permanent=False)

    def _put(self, key, values):
        with self._archive.open(key + ".npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, values, allow_pickle=False)

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self._flush()
            self._archive.close()
            if kind is None:
                self._new.replace(self._path)
        finally:
            if self._new.exists():
                self._new.unlink()


def read(path, batches):
    """Yields (losses, detections) of the batches of a part, until the file is no good any more.

    Args:
        path: of the file, None where there is none.
        batches: how many it must have; never more come.
    """
    if path is None:
        return
    try:
        with pathlib.Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            keys = {}
            for key in arrays.files:
                group, kind, how, rest = key.split("/", 3)
                keys.setdefault(int(group), []).append((kind, how, rest, key))
            for group in range(-(-batches // TOGETHER)):
                size = min(TOGETHER, batches - group * TOGETHER)
                found = [({}, {}) for _ in range(size)]
                for kind, how, rest, key in keys[group]:
                    _put(found, (LOSSES, DETECTIONS).index(kind), how, rest, arrays[key])
                _require_alike(found)
                yield from found
    except Exception as error:  # whatever NumPy raises of what is no such file
        text = "what another worker found is of no use from here on, and is computed: {}: {!r}"
        print(text.format(path, error), file=sys.stderr, flush=True)


def _put(found, at, how, rest, values):
    if how == _EACH:
        number, name = rest.split("/", 1)
        found[int(number)][at][name] = values
        return
    if how != _ALL or len(values) != len(found):
        raise ValueError("{} has {} batches, not {}".format(rest, len(values), len(found)))
    for one, value in zip(found, values):
        one[at][rest] = value


def _require_alike(found):
    for one in found:
        if not one[1] or any(one[at].keys() != found[0][at].keys() for at in (0, 1)):
            raise ValueError("its batches have not the same arrays")
