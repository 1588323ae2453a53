"""doctor says what gap an eval set can tell apart, by whatever is known of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import MAP, Made, make_run, scores
from noisy_runs import make_noisy

from watcher.config import Settings, make_settings
from watcher.doctor.finding import Finding
from watcher.doctor.noise import noise


def settings(model_dir: Path, **changed: object) -> Settings:
    given = {"model_dir": str(model_dir), "pipeline_config": "p", **changed}
    return make_settings(given, dict.fromkeys(given, "a test"))


def severities(found: list[Finding]) -> list[str]:
    return [one.severity for one in found]


def test_before_the_first_evaluation_there_is_a_rule_of_thumb_by_the_number_of_images(
    tmp_path: Path,
):
    (found,) = noise(settings(tmp_path), {"images": 400})
    assert found.severity == "note" and found.message.startswith("by a rule of thumb")
    assert "from about 0.0025 of mAP on" in found.message
    assert found.message.endswith("1600 images would halve it")
    (found,) = noise(settings(tmp_path, replicates=0), {"images": 400})
    assert found.message.endswith("it is not measured, as replicates is 0")


@pytest.mark.parametrize("facts", [{}, {"images": 1}, {"images": "64"}], ids=str)
def test_nothing_is_said_of_an_eval_set_that_is_not_known(tmp_path: Path, facts: dict[str, object]):
    assert noise(settings(tmp_path), facts) == []


def test_evaluations_with_replicates_tell_the_gap_itself(tmp_path: Path):
    # A difference has a standard deviation of 0.0057: half of its interval is about 0.011.
    make_noisy(tmp_path, scores(0.3, 0.4, 0.41, 0.45), images=64, apart=0.004)
    (found,) = noise(settings(tmp_path), {"images": 9999})
    assert found.severity == "note" and "256 images would halve it" in found.message
    gap = float(found.message.split("difference of about ")[1].split()[0])
    assert gap == pytest.approx(0.011, rel=0.15)
    assert "(median of 3 pairs, the same 64 images for both)" in found.message


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"patience": 3}, "min_delta is 0, so any gain resets patience"),
        ({"patience": 3, "min_delta": 0.002}, "min_delta (0.002) lies inside the noise"),
        ({"patience_steps": 300, "min_delta": 0.02}, "min_delta (0.02) lies outside the noise"),
        ({"min_delta": 0.002}, None),
    ],
    ids=["zero", "inside", "outside", "no_patience"],
)
def test_what_patience_takes_for_a_gain_is_held_to_the_gap(
    tmp_path: Path, policy: dict[str, object], said: str | None
):
    make_noisy(tmp_path, scores(0.3, 0.4, 0.41), apart=0.004)
    _, *more = noise(settings(tmp_path, **policy), {})
    assert severities(more) == (["note"] if said else [])
    assert all(one.message.startswith(str(said)) for one in more)


def test_categories_with_few_objects_are_a_warning_that_names_them(tmp_path: Path):
    made = [Made(at, {MAP: at / 10}, {(MAP, "cat"): 0.1, (MAP, "dog"): 0.2}) for at in (1, 2)]
    make_noisy(tmp_path, made, objects={"cat": 200, "dog": 19})
    gap, few = noise(settings(tmp_path), {})
    assert [gap.severity, few.severity] == ["note", "warning"]
    assert few.message.startswith("a category has fewer than 20 objects: dog (19)")
    assert few.remedy and "add images of them" in few.remedy


def test_a_run_without_replicates_has_the_rule_of_thumb(tmp_path: Path):
    make_run(tmp_path, scores(0.3, 0.4))
    (found,) = noise(settings(tmp_path), {"images": 64})
    assert "rule of thumb" in found.message and "about 0.006" in found.message
