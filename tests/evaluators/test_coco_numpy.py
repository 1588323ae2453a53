"""The COCO backend of our own equals pycocotools to the last bit, whatever it is given.

hypothesis makes up cases here; a program in the training environment, which alone has pycocotools,
answers to each.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from evaluator_client import PROGRAMS, environment, run_program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Row = list[float]
Ask = Callable[..., dict[str, Any]]

IMAGES = [7, 3, 1 << 31, 0]
CATEGORIES = [90, 1, 5]
# Edges at which areas are exactly COCO's, boxes are empty, and IoUs are exactly thresholds.
EDGES = st.sampled_from([0, 1, 4, 7.25, 10, 16, 20, 32, 40, 64, 96])
LENGTHS = EDGES | st.floats(0, 130, width=32)
SCORES = st.sampled_from([0, 0.25, 0.5, 0.75, 1, math.nan]) | st.floats(0, 1, width=32)
# None of them has to have boxes; 99 is no image and no category that is evaluated.
PLACES = st.tuples(st.sampled_from([*IMAGES, 99]), st.sampled_from([*CATEGORIES, 99]))
FEW = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def ask(od_python: str) -> Iterator[Ask]:
    """Answers to one case: see `od/coco_equal.py`."""
    with subprocess.Popen(
        [od_python, PROGRAMS / "coco_equal.py"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what pycocotools prints
        text=True,
    ) as process:
        assert process.stdin and process.stdout

        def answer(**case: Any) -> dict[str, Any]:
            assert process.stdin and process.stdout
            evaluated = {"images": IMAGES, "categories": CATEGORIES, "iou_type": "bbox"}
            process.stdin.write(json.dumps({**evaluated, **case}) + "\n")
            process.stdin.flush()
            said: dict[str, Any] = json.loads(process.stdout.readline())
            return said

        yield answer
        process.stdin.close()


@st.composite
def objects(draw: st.DrawFn) -> list[Row]:
    """Objects of some images and categories, a quarter of them crowds."""
    boxes = st.tuples(EDGES, EDGES, LENGTHS, LENGTHS)
    one = st.tuples(PLACES, boxes, st.sampled_from([0, 0, 0, 1]))
    drawn = draw(st.lists(one, max_size=12))
    return [[place[0], *box, crowd, place[1]] for place, box, crowd in drawn]


@st.composite
def detections(draw: st.DrawFn, truth: list[Row]) -> list[Row]:
    """Detections of whatever there is not, and of objects, some of them moved or halved."""
    found = [
        [place[0], *box, score, place[1]]
        for place, box, score in draw(
            st.lists(
                st.tuples(PLACES, st.tuples(EDGES, EDGES, LENGTHS, LENGTHS), SCORES), max_size=6
            )
        )
    ]
    changes = st.tuples(
        st.sampled_from(truth or [[]]),
        st.integers(1, 4),
        st.sampled_from([0, 0, 0, -1, 0.5, 3]),
        st.sampled_from([1, 1, 0.5, 0.75, 0.95]),
        SCORES,
    )
    for row, edge, moved, part, score in draw(st.lists(changes, max_size=30 if truth else 0)):
        image, x, y, width, height, _, category = row
        box = [x, y, width * part, height]
        box[edge - 1] += moved
        found.append([image, *box, score, category])
    return found


@FEW
@given(st.data())
def test_precision_and_recall_of_boxes_equal_pycocotools(ask: Ask, data: st.DataObject) -> None:
    truth = data.draw(objects())
    found = data.draw(detections(truth))
    times = data.draw(st.sampled_from([1, 1, 2, 50]))  # with 50 there are more than 100 of a pair
    areas_count = data.draw(st.booleans())
    said = ask(truth=truth, found=found, times=times, areas_count=areas_count)
    assert "differing" not in said
    assert said["error"] is None or said["error"] < 1e-12


@FEW
@given(st.data())
def test_a_replicate_is_what_pycocotools_gives_on_copies_of_the_images_drawn(
    ask: Ask, data: st.DataObject
) -> None:
    """Where no two scores are equal: COCOeval ranks copies of equal ones in another order."""
    truth = data.draw(objects())
    found = data.draw(detections(truth))
    order = data.draw(st.permutations(range(len(found))))
    for row, place in zip(found, order, strict=True):
        row[5] = (place + 1) / (len(found) + 1)
    drawn = data.draw(st.lists(st.integers(0, 4), min_size=len(IMAGES), max_size=len(IMAGES)))
    iou_type = data.draw(st.sampled_from(["bbox", "segm"]))
    said = ask(truth=truth, found=found, drawn=drawn, iou_type=iou_type)
    assert said["error"] < 1e-12


@FEW
@given(st.data())
def test_precision_and_recall_of_masks_equal_pycocotools(ask: Ask, data: st.DataObject) -> None:
    truth = data.draw(objects())
    found = data.draw(detections(truth))
    times = data.draw(st.sampled_from([1, 1, 3]))
    areas_count = data.draw(st.booleans())
    said = ask(truth=truth, found=found, times=times, areas_count=areas_count, iou_type="segm")
    assert "differing" not in said
    assert said["error"] < 1e-12


BOX = [10, 10, 40, 40]
CASES: dict[str, dict[str, Any]] = {
    "no images": {"images": [], "truth": [[7, *BOX, 0, 1]], "found": [[7, *BOX, 1, 1]]},
    "no categories": {"categories": [], "truth": [[7, *BOX, 0, 1]], "found": [[7, *BOX, 1, 1]]},
    "nothing at all": {"truth": [], "found": []},
    "nothing found": {"truth": [[7, *BOX, 0, 1]], "found": []},
    "no objects": {"truth": [], "found": [[7, *BOX, 1, 1]]},
    "only a crowd": {"truth": [[7, *BOX, 1, 1]], "found": [[7, *BOX, 1, 1]], "times": 3},
    "a crowd found again and again": {
        "truth": [[7, *BOX, 1, 1], [7, 100, 100, 9, 9, 0, 1]],
        "found": [[7, *BOX, 0.9, 1]] * 3 + [[7, 100, 100, 9, 9, 0.5, 1]],
    },
    "the hundredth and the one after it": {
        "truth": [[7, *BOX, 0, 1], [3, *BOX, 0, 1], [0, *BOX, 0, 5]],
        "found": [
            *[[7, 100, 100, 9, 9, 0.5, 1]] * 99 + [[7, *BOX, 0.5, 1]],
            *[[3, 100, 100, 9, 9, 0.5, 1]] * 100 + [[3, *BOX, 0.5, 1]],
            *[[0, 100, 100, 9, 9, 0.5, 5]] * 100 + [[0, *BOX, 0.5, 5]],
        ],
    },
    "hundreds of objects in one image": {
        "truth": [[7, 4 * n % 100, 4 * n // 100 * 9, 9, 9, n % 9 == 0, 1] for n in range(300)],
        "found": [[7, 4 * n % 100, 4 * n // 100 * 9, 9, 8, n / 300, 1] for n in range(300)],
    },
    "areas on the borders of COCO's ranges": {
        "truth": [[7, 0, 0, edge, edge, 0, 1] for edge in (10, 32, 40, 96, 99)],
        "found": [
            *([7, 0, 0, edge, edge, 0.1, 1] for edge in (10, 32, 40, 96, 99)),
            *([3, 0, 0, edge, edge, 0.9, 1] for edge in (32, 96)),
        ],
    },
    "as much of two objects, one of them free for the next": {
        "truth": [[7, 0, 0, 20, 40, 0, 1], [7, 8, 0, 20, 40, 0, 1]],
        "found": [[7, 4, 0, 20, 40, 0.9, 1], [7, 0, 0, 20, 40, 0.8, 1]],
    },
    "boxes that are not finite": {
        "truth": [[7, *BOX, 0, 1], [3, *BOX, 1, 1], [0, 0, 0, 9, 9, 0, 1]],
        "found": [
            [7, math.nan, 10, 40, 40, 0.9, 1],
            [7, *BOX, 0.8, 1],
            [3, 10, math.inf, 40, 40, 0.7, 1],
            [0, 0, 0, math.nan, math.nan, 0.6, 1],
        ],
    },
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_rare_equals_pycocotools_too(ask: Ask, case: str) -> None:
    for iou_type in (
        ["bbox"] if case in ("no images", "boxes that are not finite") else ["bbox", "segm"]
    ):
        said = ask(**CASES[case], iou_type=iou_type)
        assert "differing" not in said, iou_type
        assert (said["numbers"] > 0) == (case != "no categories")
        nothing = case in ("no categories", "boxes that are not finite")
        assert said["error"] is None if nothing else said["error"] < 1e-12


def test_a_difference_would_be_seen(ask: Ask) -> None:
    """Of the program that compares: a backend that computes nothing differs."""
    truth, found = [[7, *BOX, 0, 1]], [[7, *BOX, 1, 1]]
    assert ask(truth=truth, found=found, backends=["nothing"]) == {"differing": "nothing"}


def test_an_unprepared_environment_computes_in_numpy(od_python: str, tmp_path: Any) -> None:
    """And no other thread waits for Python's lock while it does."""
    said = json.loads(run_program(od_python, PROGRAMS / "coco_unprepared.py", cwd=tmp_path))
    assert said == {"hotcoco": False, "chosen": "numpy", "exact": True, "fused": "pycocotools"}
