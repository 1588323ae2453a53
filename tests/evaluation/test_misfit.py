"""A pipeline.config of another model: refused in one line, and what failed by it heals."""

from __future__ import annotations

import contextlib
import json
import sqlite3

from fake_trainer import Manager, model_tensors
from watching import Watcher, cli

from evaluators.misfit import classes_of, classes_of_heads, differences, explain

WRONG = {"STUB_MISFIT": "*", "STUB_FINGERPRINT": "b" * 64}
SAID = "has 2 classes, pipeline.config says 5"
SCORES = {"STUB_SCORES": json.dumps({"ckpt-1": 0.1, "ckpt-2": 0.2, "ckpt-3": 0.3})}


def save(watcher: Watcher, count: int) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for step in range(1, count + 1):
        manager.save(100 * step, model_tensors(1000, str(step)))


def history(watcher: Watcher) -> list[tuple[str, float | None, str | None]]:
    rows = watcher.query("SELECT state, score, reason FROM history")
    return [(row["state"], row["score"], row["reason"]) for row in rows]


def test_a_run_in_which_no_checkpoint_fits_ends_with_code_1_and_one_line(watcher: Watcher):
    save(watcher, 3)
    assert watcher.run(**WRONG) == 1
    *_, error, hint = watcher.log.read_text().splitlines()
    assert error.startswith(
        f"error: no checkpoint could be scored: ckpt-3 failed, the checkpoint {SAID}"
    )
    assert hint.startswith("hint: start again with the pipeline.config that the trainer runs with")
    shown = cli("status", watcher.model_dir, COLUMNS="80").stdout
    assert SAID in " ".join(shown.split()) and len(shown.splitlines()) < 40
    assert "ckpt-3, ckpt-2, ckpt-1 failed: unmatched_variables" in shown
    assert "requeue --failed" in shown


def test_what_failed_by_the_wrong_pipeline_config_is_evaluated_with_the_right_one(
    watcher: Watcher,
):
    save(watcher, 3)
    assert watcher.run(**WRONG) == 1
    assert [
        row["pin_path"] is None for row in watcher.query("SELECT pin_path FROM checkpoints")
    ] == [False] * 3
    for file in watcher.model_dir.glob("ckpt-*"):
        file.unlink()
    assert watcher.run(**SCORES) == 0
    assert history(watcher) == [("scored", score, None) for score in (0.1, 0.2, 0.3)]
    assert watcher.leaderboard() == ["ckpt-3", "ckpt-2", "ckpt-1"]


def test_a_start_with_the_wrong_pipeline_config_is_refused_and_changes_nothing(watcher: Watcher):
    save(watcher, 3)
    assert watcher.run(**SCORES) == 0
    before, best = history(watcher), watcher.best_files()
    assert watcher.run(**WRONG) == 1
    *_, error, hint = watcher.log.read_text().splitlines()
    assert (
        error.startswith(f"error: checkpoint ckpt-3 {SAID}") and hint == "hint: give the right one"
    )
    assert history(watcher) == before and watcher.best_files() == best
    assert len(watcher.evaluations()) == 3
    assert watcher.run(**SCORES) == 0
    assert len(watcher.evaluations()) == 3


def test_what_failed_by_another_evaluation_keeps_the_score_of_this_one(watcher: Watcher):
    save(watcher, 3)
    assert watcher.run(**SCORES) == 0
    # STUB_REJECT is not seen by the check at the start, as a fault of single checkpoints is not.
    wrong = {"STUB_REJECT": "*", "STUB_FINGERPRINT": "b" * 64}
    assert watcher.run(**wrong) == 1
    shown = cli("history", watcher.model_dir).stdout
    rows = [line.split() for line in shown.splitlines() if line.startswith("ckpt-")]
    # Neither score nor rank: the note comes next.
    assert [row[2:4] for row in rows] == [["failed", "unmatched_variables:"]] * 3
    status = " ".join(cli("status", watcher.model_dir).stdout.split())
    assert "3 promoted by an earlier evaluation" in status
    assert watcher.run(**SCORES) == 0
    assert history(watcher) == [("scored", score, None) for score in (0.1, 0.2, 0.3)]
    assert len(watcher.evaluations()) == 6


def test_what_failed_and_lost_its_pin_is_pinned_again_when_the_evaluation_changed(
    watcher: Watcher,
):
    save(watcher, 2)
    assert watcher.run(**WRONG) == 1
    with contextlib.closing(sqlite3.connect(watcher.database)) as db, db:  # as of a small budget
        db.execute("UPDATE all_checkpoints SET pin_path = NULL, may_pass = 0")
    assert watcher.run(**SCORES) == 0
    assert [state for state, *_ in history(watcher)] == ["scored", "scored"]


def test_one_checkpoint_of_another_model_fails_alone(watcher: Watcher):
    save(watcher, 3)
    assert watcher.run(STUB_MISFIT="ckpt-1", **SCORES) == 0
    assert [state for state, *_ in history(watcher)] == ["failed", "scored", "scored"]


def test_a_reason_of_many_lines_is_one_line_everywhere(watcher: Watcher):
    save(watcher, 2)
    long = "\n".join(f"model/layer_{number}/kernel is missing" for number in range(200))
    assert watcher.run(STUB_REJECT="ckpt-1", STUB_REASON=long) == 0
    ((_, _, reason), _) = history(watcher)
    assert reason and "\n" not in reason and len(reason) < 450 and reason.endswith(" ...")
    failed = [line for line in watcher.log.read_text().splitlines() if "checkpoint failed" in line]
    assert len(failed) == 1 and "layer_1/" in failed[0]
    assert len(cli("status", watcher.model_dir, COLUMNS="100").stdout.splitlines()) < 50


def shapes(**last: int) -> dict[str, tuple[list[int], str]]:
    return {name: ([1, 8, size], "float32") for name, size in last.items()}


def test_the_number_of_classes_is_told_with_and_without_a_background():
    # 3 boxes a place, 2 classes: with a background 9 channels, without 6; of 5 classes 18 and 15.
    for ours, theirs in ((18, 9), (15, 6)):
        expected, found = shapes(head=ours, body=4), shapes(head=theirs, body=4)
        differing = differences(expected, found)
        said = explain(differing, expected, found, 5)
        assert said == "has 2 classes, pipeline.config says 5"
    assert classes_of([("a", ([10], "float32"), ([4], "float32"))], 5) == 2
    one = shapes(head=9), shapes(head=6)
    assert explain(differences(*one), *one, 2).startswith("has 1 class, pipeline.config says 2")


def heads(where: str, **last: int) -> dict[str, list[int]]:
    """Biases of a box predictor's last layers, with one before them in its class head."""
    layers = {"class": "class_predictor", "box": "box_encoder"}
    names = {"class": "class_predictions_with_background", "box": "box_encodings"}
    end = "bias/.ATTRIBUTES/VARIABLE_VALUE"
    before = f"model/{where}/_prediction_heads"
    found = {
        f"{before}/{names[kind]}/0/_{layers[kind]}_layers/3/{end}": [size]
        for kind, size in last.items()
    }
    return {f"{before}/{names['class']}/0/_class_predictor_layers/0/{end}": [64], **found}


def test_a_checkpoint_s_heads_tell_its_classes_by_themselves():
    ssd = heads("_box_predictor", **{"class": 9, "box": 12})
    assert classes_of_heads(ssd) == 2
    assert classes_of_heads(ssd, 0) == 3
    # A Faster R-CNN's first stage knows an object and the background alone.
    first = heads("_first_stage_box_predictor", **{"class": 24, "box": 48})
    second = heads("_maskrcnn_box_predictor", **{"class": 6, "box": 20})
    assert classes_of_heads({**first, **second}) == 5
    assert classes_of_heads({}) is None
    assert classes_of_heads(heads("_box_predictor", **{"class": 9})) is None
    assert classes_of_heads(heads("_box_predictor", **{"class": 10, "box": 12})) is None
    assert classes_of_heads({**ssd, **heads("_other", **{"class": 12, "box": 12})}) is None


def test_what_no_number_of_classes_explains_names_the_first_variable_and_how_many_more():
    expected, found = shapes(a=18, b=7, c=3), shapes(a=9, b=8, d=3)
    said = explain(differences(expected, found), expected, found, 5)
    assert said == (
        "does not match the model of pipeline.config in 4 variables (a is float32[1, 8, 9] in the"
        " checkpoint and float32[1, 8, 18] by pipeline.config; and 3 more)"
    )
