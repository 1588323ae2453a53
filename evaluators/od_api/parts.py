"""Parts of an eval set: several workers run one checkpoint, and one of them takes it all together.

The set is divided into contiguous parts of whole batches, as equal as that goes. Whoever is asked
for a part writes what its passes found, losses and detections a batch, into a file; whoever is
asked for the whole runs the first part, reads the files of the others, and computes the metrics
over the images in their order, as if it had run all of them: the same arrays, so the same bits.
What it does not get, or cannot read, it runs itself.

A file is of NumPy's kind `.npz`: for each name of a loss or a detection one array of all batches
where they have one shape, else an array a batch. Nothing in it is executed when it is read.
"""

import pathlib
import sys

import numpy as np

LOSSES, DETECTIONS = "losses", "detections"
_EACH, _ALL = "each", "all"


def bounds(batches, index, of):
    """Returns (first, end) of the batches of a part, of which there are `of`."""
    return batches * index // of, batches * (index + 1) // of


def write(path, found):
    """Writes what was found in the batches of a part; the file appears whole or not at all.

    Args:
        path: of the file.
        found: [(losses, detections)], a dict of NumPy arrays by name each.
    """
    arrays = {}
    for at, kind in enumerate((LOSSES, DETECTIONS)):
        for name in found[0][at] if found else ():
            values = [one[at][name] for one in found]
            if len({(value.shape, value.dtype) for value in values}) == 1:
                arrays["/".join((kind, _ALL, name))] = np.stack(values)
                continue
            for number, value in enumerate(values):
                arrays["/".join((kind, _EACH, str(number), name))] = value
    new = pathlib.Path(path + ".new")
    with new.open("wb") as file:
        np.savez(file, **arrays)
    new.replace(path)


def read(path, batches):
    """Returns [(losses, detections)] of the batches of a part, None where the file is no good.

    Args:
        path: of the file, None where there is none.
        batches: how many it must have.
    """
    if path is None:
        return None
    found = [({}, {}) for _ in range(batches)]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                kind, how, rest = key.split("/", 2)
                _put(found, (LOSSES, DETECTIONS).index(kind), how, rest, arrays[key])
        if any(one[at].keys() != found[0][at].keys() for one in found for at in (0, 1)):
            raise ValueError("its batches have not the same arrays")
        if not all(losses or detections for losses, detections in found):
            raise ValueError("it has nothing of {} batches".format(batches))
    except Exception as error:  # whatever NumPy raises of what is no such file
        text = "what another worker found is of no use, and is computed here: {}: {}"
        print(text.format(path, error), file=sys.stderr, flush=True)
        return None
    return found


def _put(found, at, how, rest, values):
    if how == _EACH:
        number, name = rest.split("/", 1)
        found[int(number)][at][name] = values
        return
    if how != _ALL or len(values) != len(found):
        raise ValueError("{} has {} batches, not {}".format(rest, len(values), len(found)))
    for one, value in zip(found, values):
        one[at][rest] = value
