"""A metric is what a user wrote, computed from what an evaluation recorded."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from watcher.decision.metric import (
    SHORT_NAMES,
    Metric,
    of_category,
    parse_directed,
    unknown_metric,
)
from watcher.errors import ConfigError

MAP, LOSS = "DetectionBoxes_Precision/mAP", "Loss/total_loss"
VALUES = {
    (MAP, ""): 0.4,
    (MAP, "person"): 0.5,
    (MAP, "traffic light"): 0.25,
    (MAP, "shape (id 2)"): 0.625,
    (MAP, "it's"): 0.03125,
    (MAP, "box [large]"): 0.0625,
    (MAP, "a]b"): 0.09375,
    ("DetectionBoxes_Recall/AR@100 (small)", ""): 0.125,
    (LOSS, ""): 2.0,
    ("latency_ms", ""): 10.0,
    ("my_plugin/f1-score", ""): 0.75,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (MAP, 0.4),
        ("mAP", 0.4),
        ("loss", 2.0),
        ("Loss/total_loss", 2.0),
        ("DetectionBoxes_Recall/AR@100 (small)", 0.125),
        ("AR100_small", 0.125),
        ("my_plugin/f1-score", 0.75),
        ("AP[person]", 0.5),
        ("AP[traffic light]", 0.25),
        ("AP[ 'traffic light' ]", 0.25),
        ("AP[shape (id 2)]", 0.625),
        ("AP[it's]", 0.03125),
        ("AP[box [large]]", 0.0625),
        ("AP['a]b']", 0.09375),
        ("max(AP[it's], AP['a]b'], AP[box [large]]) + AP[shape (id 2)]", 0.71875),
        ("mAP - 0.002 * latency_ms", 0.38),
        ("min(AP[person], AP[traffic light])", 0.25),
        ("'Loss/total_loss' / 2", 1.0),
        ('"my_plugin/f1-score" + `latency_ms`', 10.75),
        ("mAP/2", 0.2),
        ("mAP if loss < 3 else 0", 0.4),
        ("-loss", -2.0),
        ("2e-1 * mAP", 0.08),
    ],
)
def test_it_is_computed_as_it_is_written(text, value):
    assert Metric(text).value(VALUES) == pytest.approx(value, abs=1e-12)


def test_the_default_and_every_short_name_are_plain_values_that_are_passed_on_as_they_are():
    for name in (MAP, *SHORT_NAMES):
        metric = Metric(name)
        assert not metric.is_expression
        key = metric.keys[0]
        for value in (0.1, -1.0, None):
            assert metric.value({key: value}) == value


@example("'[']")
@given(st.text("ab '\"`[]()\n", min_size=1, max_size=12))
def test_a_category_of_any_name_is_written_so_that_it_is_found(name):
    assume(name.strip() and not all(quote in name for quote in "'\"`"))
    figure = Metric(of_category("AP", name))
    assert not figure.is_expression
    assert figure.value({(MAP, name): 0.5}) == 0.5
    assert Metric(f"1 - {of_category('AP', name)}").value({(MAP, name): 0.25}) == 0.75


def test_a_short_name_means_masks_where_there_are_no_boxes():
    assert Metric("mAP").value({("DetectionMasks_Precision/mAP", ""): 0.3}) == 0.3


@pytest.mark.parametrize("value", [None, -1.0, math.nan, math.inf])
def test_an_expression_over_what_was_not_measured_is_no_score(value):
    assert Metric("min(AP[person], mAP)").value({(MAP, "person"): value, (MAP, ""): 0.4}) is None
    assert Metric("min(AP[person], mAP)").value({(MAP, ""): 0.4}) is None


@pytest.mark.parametrize(
    "text",
    [
        "mAP / (latency_ms - 10)",
        "log(mAP - 0.4)",
        "10 ** (1000 * mAP)",
        "(mAP - loss) ** 0.5",
        "max((mAP - loss) ** 0.5, mAP)",
        "2 ** (loss ** 90 * 1e9)",
    ],
)
def test_an_expression_that_has_no_finite_value_is_no_score(text):
    assert Metric(text).value(VALUES) is None


@pytest.mark.parametrize("text", ["min(AP[a], AP[b])", "min(AP[b], AP[a])", "max(AP[a], AP[b])"])
def test_a_replicate_has_no_value_where_a_part_has_none_in_whatever_order_they_are_written(text):
    metric = Metric(text)
    drawn = {key: [0.5, math.nan, 0.7] if key[1] == "a" else [0.6, 0.5, 0.6] for key in metric.keys}
    first, second, third = metric.replicates(drawn)
    assert math.isnan(second) and {first, third} <= {0.5, 0.6, 0.7}


def test_an_expression_that_gives_minus_one_is_a_score_all_the_same():
    value = Metric("1 - loss").value(VALUES)
    assert value != -1.0 and value == pytest.approx(-1.0, abs=1e-15)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        ("mAP -", "invalid syntax"),
        ("foo.bar", "foo.bar"),
        ("open('x')", "open"),
        ("__import__('os')", "__import__"),
        ("mAP.__class__", "__class__"),
        ("[mAP] * 3", "List"),
        ("9 ** 9 ** 9", "9 **"),
        ("mAP > 1", "not a number"),
        ("XX[person]", "AP, AP50"),
        ("mAP, loss", "Tuple"),
    ],
)
def test_what_is_no_expression_is_refused_at_once_in_the_users_own_words(text, word):
    with pytest.raises(ConfigError) as caught:
        Metric(text)
    assert word in f"{caught.value.message} {caught.value.hint}"
    assert "m0_" not in caught.value.message


def test_the_part_that_an_evaluation_does_not_report_is_named():
    names = {MAP, LOSS, "latency_ms"}
    assert Metric("mAP - loss").missing(names, None) is None
    assert Metric("mAP - 2 * mAPP").missing(names, None) == "mAPP"
    assert Metric("AP[person]").missing(names, {"car"}) == "category person"
    assert Metric("AP[person]").missing(names, None) is None
    assert Metric("mAP75").missing(names, None) == "mAP75"
    error = unknown_metric("metric", "mAP - mAPP", "mAPP", names, None)
    for slip, meant in {"mAP5O": "mAP50", "AR1OO": "AR100", "1oss": "loss"}.items():
        reported = {*names, *SHORT_NAMES["mAP50"], *SHORT_NAMES["mAP75"], *SHORT_NAMES["AR100"]}
        hint = unknown_metric("metric", slip, slip, reported, None).hint
        assert hint.startswith(f"did you mean {meant}?")
    # What is not reported either would be refused in turn.
    hint = unknown_metric("metric", "mAP50", "mAP50", names, None).hint
    assert hint.startswith(("there are: ", "did you mean mAP?"))
    assert "mAPP" in error.message and error.hint.startswith("did you mean mAP?")


def test_a_name_with_a_slash_that_stands_without_quotes_is_told_to_go_in_quotes():
    error = unknown_metric("metric", f"mAP + {LOSS}", "Loss", [MAP, LOSS], None)
    assert str(error.hint).startswith(
        f"a name that holds more than letters goes in quotes, '{LOSS}'"
    )


@pytest.mark.parametrize(
    ("text", "mode"),
    [("mAP", "max"), ("loss", "min"), ("latency_ms", "min"), ("mAP:min", "min"), ("-loss", "max")],
)
def test_a_direction_is_given_or_the_metrics_nature(text, mode):
    assert parse_directed(text)[1] == mode


@pytest.mark.slow
@given(st.text(max_size=30))
def test_no_text_does_anything_but_name_a_metric_or_be_refused(text):
    try:
        metric = Metric(text)
    except ConfigError:
        return
    value = metric.value(VALUES)
    assert value is None or isinstance(value, float)
