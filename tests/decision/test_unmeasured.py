"""A metric with nothing to measure: every look says so, with the reason."""

from __future__ import annotations

import json

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, cli

from watcher.decision.metric import parse_metric
from watcher.decision.unmeasured import why_unranked

MAP = "DetectionBoxes_Precision/mAP"
NOTHING = {"boxes": 0, "small": 0, "medium": 0, "large": 0, "without": ["rectangle"]}
SOME = {"boxes": 9, "small": 0, "medium": 5, "large": 4, "without": ["ellipse"]}
WHY = "mAP has nothing to measure (-1), since no ground truth box of the eval set is of a class"


def save(watcher: Watcher, count: int) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for step in range(1, count + 1):
        manager.save(100 * step, model_tensors(1000, str(step)))


def said_by(*arguments: object) -> str:
    return " ".join(cli(*arguments, COLUMNS="200").stdout.split())


def test_every_look_says_that_nothing_was_measured_and_why(watcher: Watcher):
    save(watcher, 2)
    scores = json.dumps({"ckpt-1": -1.0, "ckpt-2": -1.0})
    details = json.dumps({"ground_truth": NOTHING})
    assert watcher.run(STUB_SCORES=scores, STUB_DETAILS=details) == 0
    log = watcher.log.read_text()
    assert log.count("scored, but the score cannot rank") == 2 and WHY in log
    for command in ("status", "leaderboard"):
        shown = said_by(command, watcher.model_dir)
        assert f"! ckpt-2: its score cannot rank: {WHY}" in shown
        assert "so it is with 1 more" in shown
    shown = said_by("history", watcher.model_dir)
    assert shown.count(f"its score cannot rank: {WHY}") == 2 and shown.count("! -1.0000") == 2
    (warning,) = json.loads(cli("status", watcher.model_dir, "--json").stdout)["warnings"]
    assert WHY in warning
    assert watcher.query("SELECT reason FROM history")[0]["reason"].startswith("its score cannot")


def test_classes_that_are_never_detected_are_told_wherever_the_best_is(watcher: Watcher):
    save(watcher, 1)
    said = (
        "label map (m) has id 3, and the model's num_classes is 2: it never detects what is above"
    )
    assert watcher.run(STUB_DETAILS=json.dumps({"unmeasured": said})) == 0
    for command in ("status", "best", "leaderboard"):
        assert f"! {said}" in said_by(command, watcher.model_dir)
    assert watcher.run(STUB_FINGERPRINT="e" * 64) == 0
    assert said not in said_by("leaderboard", watcher.model_dir)


def test_another_metric_takes_the_reason_back_or_gives_its_own(watcher: Watcher):
    save(watcher, 1)
    assert watcher.run(STUB_SCORES='{"ckpt-1": -1.0}') == 0
    assert watcher.run("--metric", "loss", "--mode", "min") == 0
    assert watcher.query("SELECT reason FROM history") == [{"reason": None}]
    assert "cannot rank" not in said_by("status", watcher.model_dir)
    assert watcher.run("--metric", "2 * mAP") == 0
    (row,) = watcher.query("SELECT reason FROM history")
    assert "cannot rank" in row["reason"]


@pytest.mark.parametrize(
    ("text", "key", "why"),
    [
        ("mAP", (MAP, ""), "mAP has nothing to measure (-1)"),
        (
            "AP[ellipse]",
            (MAP, "ellipse"),
            "AP[ellipse] has nothing to measure (-1), since the eval set has no ground truth box"
            " of ellipse",
        ),
        (
            "mAP_small - 0.1",
            (MAP + " (small)", ""),
            "mAP_small has nothing to measure (-1), since the eval set has no small ground truth"
            " box, below 32 x 32 pixels",
        ),
    ],
)
def test_the_part_that_was_not_measured_is_named(text: str, key: tuple[str, str], why: str):
    details = {"ground_truth": SOME}
    assert why_unranked(parse_metric(text), {key: -1.0}, details) == f"its score cannot rank: {why}"
    assert why_unranked(parse_metric(text), {key: 0.5}, details) is None


def test_what_is_not_finite_is_told_from_what_was_not_measured():
    said = why_unranked(parse_metric("loss"), {("Loss/total_loss", ""): None}, {})
    assert said == "its score cannot rank: loss has no finite value"
    assert why_unranked(parse_metric("1 / mAP"), {(MAP, ""): 0.0}, {}) == (
        "its score cannot rank: 1 / mAP has no finite value"
    )
