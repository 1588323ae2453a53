"""What each COCO backend takes for made-up columns of boxes: `coco_arrays.py IMAGES CLASSES`.

Runs in the training interpreter, without TensorFlow. About 7 objects and 100 detections an image,
most of which fit one. The exact backends in turn, several times; pycocotools once. Prints JSON: how
many `detections` and `numbers` of precision and recall there are, and for each backend the
`seconds` of CPU, how many numbers are `differing` from pycocotools', and `wait`: the longest that
another thread waited which wants to run each millisecond. Both of the round with the least, since
other work on the machine adds to them.
"""

import json
import os
import pathlib
import sys
import threading
import time
import types

ANSWER = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # pycocotools prints

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
import numpy as np  # noqa: E402
from evaluators import coco  # noqa: E402

ROUNDS = 5
SIZE = 640


class Ticks:
    """A thread that wants to run each millisecond; `wait` is the longest that it could not."""

    def __enter__(self):
        self.wait, self._ends = 0.0, False
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()
        return self

    def _tick(self):
        before = time.perf_counter()
        while not self._ends:
            time.sleep(0.001)
            now = time.perf_counter()
            self.wait, before = max(self.wait, now - before - 0.001), now

    def __exit__(self, *exc):
        self._ends = True
        self._thread.join()


def made_up(images, classes):
    """Returns ground truth and detections, as `coco.precision_and_recall` takes them."""
    rng = np.random.default_rng(1)
    truth = types.SimpleNamespace(iou_type="bbox", with_masks=False, columns=coco.Columns())
    truth.categories = [{"id": n, "name": str(n)} for n in range(1, classes + 1)]
    truth.images = {int(image): (SIZE, SIZE) for image in rng.permutation(3 * images)[:images]}
    found = coco.Columns()
    for image in truth.images:
        count = int(rng.integers(1, 15))
        corners = rng.random((count, 2)) * SIZE * 0.6
        boxes = np.concatenate([corners, corners + 4 + rng.random((count, 2)) * SIZE * 0.35], 1)
        kinds = rng.integers(1, classes + 1, count)
        truth.columns.add(image, boxes.astype(np.float32), kinds, rng.random(count) < 0.02)
        near = rng.integers(0, count, 100)
        moved = np.sort((boxes[near] + rng.normal(0, 20, (100, 4))).reshape(100, 2, 2), axis=1)
        guessed = np.where(rng.random(100) < 0.3, rng.integers(1, classes + 1, 100), kinds[near])
        scores = np.sort(np.round(rng.random(100), 2).astype(np.float32))[::-1]
        found.add(image, moved.reshape(100, 4).astype(np.float32), guessed, scores)
    return truth, found


def measure(backend, truth, found):
    """Returns (arrays, seconds of CPU, longest wait)."""
    with Ticks() as ticks:
        began = time.process_time()
        arrays = coco.precision_and_recall(backend, truth, found)
        seconds = time.process_time() - began
    return arrays, seconds, ticks.wait


def main(images, classes):
    """Prints the answer."""
    truth, found = made_up(images, classes)
    expected, seconds, wait = measure("pycocotools", truth, found)
    times = {"pycocotools": [(seconds, wait)]}
    differing = {"pycocotools": 0}
    for _ in range(ROUNDS):
        for backend in filter(coco.usable, coco.EXACT_BACKENDS[:-1]):
            arrays, *figures = measure(backend, truth, found)
            times.setdefault(backend, []).append(figures)
            differing[backend] = sum(int(np.sum(a != b)) for a, b in zip(arrays, expected))
    answers = {}
    for backend in times:
        seconds, waits = zip(*times[backend])
        answers[backend] = {"seconds": min(seconds), "wait": min(waits)}
        answers[backend]["differing"] = differing[backend]
    numbers = sum(array.size for array in expected)
    answer = {"detections": len(found.table()), "numbers": numbers}
    json.dump({**answer, "backends": answers}, ANSWER)
    ANSWER.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
