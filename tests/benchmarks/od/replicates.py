"""What replicates of made-up detections cost: `replicates.py IMAGES CLASSES REPLICATES`.

Runs in the training interpreter, without TensorFlow, on the columns of `coco_arrays.py`. Prints
JSON: how many `detections`, the `seconds` of CPU and of the `wall`, of `matching` too, and by how
many bytes the process `grew` at most above what it had before.
"""

import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from evaluators import coco
from evaluators.coco import vectorised

import coco_arrays

NAMES = ["mAP", "mAP50", "mAP75"]


def peak():
    """Returns the most bytes that were resident since `forget`."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget():
    """Lets the peak begin anew, and returns what is resident now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak()


def timed(compute):
    """Returns the result, and the seconds of CPU and of the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = compute()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def main(images, classes, count):
    """Prints the answer."""
    truth, found = coco_arrays.made_up(images, classes)
    answer = {"detections": len(found.table())}
    matched, answer["matching"], _ = timed(lambda: vectorised.match(truth, found))
    before = forget()
    resampler = coco.resampler(count, [(NAMES, lambda: matched)])
    _, answer["seconds"], answer["wall"] = timed(resampler.compute)
    answer["grew"] = peak() - before
    json.dump(answer, coco_arrays.ANSWER)
    coco_arrays.ANSWER.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
