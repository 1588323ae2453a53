"""Suppresses drawn boxes by Model Garden's function and by ours, and prints where they differ."""

import itertools
import json
import pathlib
import sys

import numpy as np
import tensorflow as tf
from official.vision.ops import nms

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from evaluators.model_garden import suppression

DRAWS = 2
CHAINS = 40
COUNTS = (1, 2, 7, 40, 200, 511, 512, 513, 900)
THRESHOLDS = (0.3, 0.45, 0.5, 0.6, 0.7)
SPREADS = (0.3, 2, 10)
SIGNATURE = [
    tf.TensorSpec([None, None]),
    tf.TensorSpec([None, None, 4]),
    tf.TensorSpec([]),
]


def draw(state, count, spread):
    """Returns (scores, boxes) of three images: many overlap, many are alike, many are none."""
    corners = state.rand(3, count, 2) * spread
    boxes = np.concatenate([corners, corners + state.rand(3, count, 2) + 0.05], axis=2)
    if state.rand() < 0.4:
        boxes = np.round(boxes * 4) / 4
    scores = -np.sort(-np.round(state.rand(3, count), state.choice([1, 6])), axis=1)
    for image, there in enumerate(state.randint(0, count + 1, 3)):
        boxes[image, there:], scores[image, there:] = 0, -1
    if state.rand() < 0.3:
        boxes[:, state.randint(count)] = 0
    return scores.astype(np.float32), boxes.astype(np.float32)


def draw_chain(state):
    """Returns (scores, boxes) of one image where rounding decides when Model Garden ends.

    Each of five boxes overlaps the next: by 0.6, a last bit more than 0.5, 0.6 and 0.6. Of the
    other pairs none suppresses another; they make the sum so large that this bit is lost.
    """
    shifts = np.cumsum([0, 0.25, 1 / 3 - state.randint(1, 9) * 3e-8, 0.25, 0.25])
    others = 10 + 4 * np.arange(state.randint(20, 200))
    left = np.concatenate([shifts, others, others + 0.35 + 0.01 * state.rand()])
    low, high = np.zeros_like(left), np.ones_like(left)
    boxes = np.stack([low, left, high, left + 1], axis=1)[np.newaxis]
    scores = np.linspace(1, 0.1, len(left))[np.newaxis]
    return scores.astype(np.float32), boxes.astype(np.float32)


def main():
    """Prints JSON: whether ours was installed, how many cases there were, and what differed."""
    theirs = nms.sorted_non_max_suppression_padded
    installed = suppression.install()
    ours = nms.sorted_non_max_suppression_padded
    state = np.random.RandomState(7)
    differing, kept, fifth_kept = [], 0, 0
    for most in (10, 500):
        both = [
            tf.function(lambda s, b, t, f=f, k=most: f(s, b, k, t), input_signature=SIGNATURE)
            for f in (theirs, ours)
        ]
        for case in itertools.product(COUNTS, THRESHOLDS, SPREADS, range(DRAWS)):
            scores, boxes = draw(state, case[0], case[2])
            found, expected = (run(scores, boxes, case[1]) for run in both)
            kept += int(np.count_nonzero(expected[0] > 0))
            if not all(map(np.array_equal, found, expected)):
                differing.append([most, *case])
        for number in range(CHAINS):
            scores, boxes = draw_chain(state)
            found, expected = (run(scores, boxes, 0.45) for run in both)
            fifth_kept += int(np.any(np.all(expected[1][0] == boxes[0, 4], axis=1)))
            if not all(map(np.array_equal, found, expected)):
                differing.append([most, "chain", number])
    print(
        json.dumps(
            {"installed": installed, "differing": differing, "kept": kept, "fifth_kept": fifth_kept}
        )
    )


if __name__ == "__main__":
    main()
