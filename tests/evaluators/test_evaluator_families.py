"""Model families, metric sets and odd data: every number is the OD API's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import PROGRAMS, run_program

pytestmark = [pytest.mark.tensorflow, pytest.mark.equality, pytest.mark.timeout(1800)]

FILE = Path(__file__)
COMMON = ("ssd_fpn_ema", "faster_rcnn", "center_net")
# Asked for by `make test-families` alone, for their time.
RARE = (
    *("ssd_fpn_ema_alone", "ssd_fpn_nothing_found"),
    *("class_agnostic", "mask_rcnn", "efficientdet:1"),
)

# What the metrics of the pascal VOC and open images instance sets start with.
INSTANCES = ("PascalMasks_", "WeightedPascalMasks_", "OpenImagesInstanceSegmentationChallenge_")


ONE_NAME = """
item { id: 1 name: "rect" display_name: "shape" }
item { id: 2 name: "ellipse" display_name: "shape" }
"""
ONE_NAME_FAMILY = "efficientdet:1"
VOC_CATEGORY = "PascalBoxes_PerformanceByCategory/AP@0.5IOU/"


def each_of(*families: str) -> pytest.MarkDecorator:
    """A test for each of them; one of a rare family has the mark that leaves it out."""
    mark = pytest.mark.families
    return pytest.mark.parametrize(
        "family", [pytest.param(one, marks=[mark(one)] if one in RARE else []) for one in families]
    )


def names_of(ready: dict[str, Any]) -> list[str]:
    """The metrics that were declared."""
    return [metric["name"] for metric in ready["metrics"]]


def asked_for(items: list[pytest.Item]) -> list[str]:
    """The families that the chosen tests look at: the common ones, unless each has its own."""
    chosen: set[str] = set()
    for item in items:
        if isinstance(item, pytest.Function) and item.path == FILE:
            marked = item.get_closest_marker("families")
            of = getattr(item, "callspec", None)
            named = of.params.get("family") if of else None
            chosen |= {named} if named else set(marked.args if marked else COMMON)
    return [family for family in (*COMMON, *RARE) if family in chosen]


@pytest.fixture(scope="module")
def answers(
    od_python: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """A line for each family, then proofs, restores and random graphs, all from one process."""
    folder = tmp_path_factory.mktemp("families")
    (folder / "one_name.pbtxt").write_text(ONE_NAME)
    families = asked_for(request.session.items)
    out = run_program(od_python, PROGRAMS / "compare.py", folder, *families, cwd=folder)
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def compared(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Both sides' numbers by family."""
    found = {f"{line['family']}:{line.get('eval_index', 0)}": line for line in answers[:-3]}
    # The OD API has one figure for both of its categories: a test of its own looks at that.
    if "reference" in (line := found.get(ONE_NAME_FAMILY, {})):
        line["shape"] = line["reference"].pop(VOC_CATEGORY + "shape")
        line["apart"] = [
            {
                number: result["metrics"].pop(f"{VOC_CATEGORY}shape (id {number})")
                for number in (1, 2)
            }
            for result in line["results"]
        ]
        for number in (1, 2):
            line["shared"]["metrics"].pop(f"{VOC_CATEGORY}shape (id {number})")
    return found


def same(expected: float, found: float | None) -> bool:
    """Equal to the last bit; the OD API's NaN travels as null."""
    return found is None if math.isnan(expected) else found == expected


@each_of(*COMMON, *RARE)
def test_every_metric_equals_the_od_api(compared: dict[str, Any], family: str) -> None:
    line = compared[family if ":" in family else f"{family}:0"]
    assert "error" not in line, line["detail"]
    for backend, result in zip(line["backends"], line["results"], strict=True):
        wrong = {
            name: (value, result["metrics"].get(name))
            for name, value in line["reference"].items()
            if not same(value, result["metrics"].get(name))
        }
        assert not wrong, backend
        assert {m for m in result["metrics"] if "mask_places" not in m} == {
            *line["reference"],
            "latency_ms",
        }
        apart = {f"{VOC_CATEGORY}shape (id {number})" for number in (1, 2) if "apart" in line}
        assert sorted({*result["metrics"], *apart}) == names_of(line["ready"])


@each_of(*COMMON, *RARE)
def test_parts_that_others_ran_change_no_bit_nor_does_one_that_never_comes_or_is_no_good(
    compared: dict[str, Any], family: str
) -> None:
    line = compared[family if ":" in family else f"{family}:0"]
    whole, shared = line["results"][0], line["shared"]
    drawn = {one["name"] for one in line["ready"]["metrics"] if not one["reproducible"]}
    assert shared["images"] == whole["images"] == line["ready"]["images"]
    assert shared["metrics"].keys() == whole["metrics"].keys()
    assert {n: v for n, v in shared["metrics"].items() if n not in drawn} == {
        n: v for n, v in whole["metrics"].items() if n not in drawn
    }
    assert shared["category_metrics"] == whole["category_metrics"]


@each_of(*COMMON, *RARE)
def test_ground_truth_has_the_bits_of_the_od_apis_own(
    compared: dict[str, Any], family: str
) -> None:
    """Images of several sizes in a batch, padded ones, and a model without classes among them."""
    truths = compared[family if ":" in family else f"{family}:0"]["truths"]
    assert {"groundtruth_boxes", "groundtruth_classes", "groundtruth_is_crowd"} <= truths.keys()
    assert set(truths.values()) == {True}, truths


@pytest.mark.families(ONE_NAME_FAMILY)
def test_categories_of_one_name_and_a_set_listed_twice_have_one_figure_each(
    compared: dict[str, Any],
) -> None:
    """Where the OD API overwrites the first category's with the last one's."""
    line = compared[ONE_NAME_FAMILY]
    names = ["shape (id 1)", "shape (id 2)"]
    assert [category["name"] for category in line["ready"]["categories"]] == names
    assert line["ready"]["details"]["metrics_sets"] == [
        "coco_detection_metrics",
        "pascal_voc_detection_metrics",
    ]
    for result, apart in zip(line["results"], line["apart"], strict=True):
        keys = [(metric["name"], metric["category"]) for metric in result["category_metrics"]]
        assert len(keys) == len(set(keys)) == 8
        assert {category for _, category in keys} == {1, 2}
        assert same(line["shape"], apart[2])


def test_an_average_is_the_mean_of_the_moving_averages_where_those_are_evaluated(
    compared: dict[str, Any],
) -> None:
    average = compared["ssd_fpn_ema:0"]["average"]
    assert average["wrong"] == []
    assert average["shadows"] > 100 and average["moved"] > average["shadows"]


@pytest.mark.families("ssd_fpn_ema_alone")
def test_the_od_api_gives_an_average_of_moving_averages_the_numbers_of_the_worker(
    compared: dict[str, Any],
) -> None:
    line = compared["ssd_fpn_ema_alone:0"]
    assert line["average"]["wrong"] == []
    # Where the OD API has NaN the worker has none.
    nan = {name for name, value in line["reference"].items() if math.isnan(value)}
    assert set(line["average"]["metrics"]) <= nan


def test_batch_norm_that_is_frozen_or_not_there_is_not_computed_anew(
    compared: dict[str, Any],
) -> None:
    """What is frozen beside others stays as it is, and others are computed."""
    said = compared["ssd_fpn_ema:0"]["batch_norm"]
    assert said["none"] == ["no_batch_norm", "the model has no batch normalisation"]
    code, message = said["all"]
    assert code == "frozen_batch_norm" and "is frozen (60 layers; freeze_batchnorm, or" in message
    assert said["part"] == {"images": 4, "batch_size": 2, "layers": 55, "frozen": 5}


def test_batch_norm_is_computed_anew_in_smaller_batches_where_those_of_training_do_not_fit(
    compared: dict[str, Any],
) -> None:
    said = compared["ssd_fpn_ema:0"]["batch_norm"]
    assert said["room for 3"] == {"images": 8, "batch_size": 2, "layers": 60, "frozen": 0}
    assert said["room for 1"][0] == "out_of_memory"


def test_batch_norm_of_a_model_that_draws_at_random_is_computed_the_same_again(
    compared: dict[str, Any],
) -> None:
    said = compared["faster_rcnn:0"]["batch_norm"]
    assert said["equal"] and said["moved"] == len(said["keys"]) == 106
    assert said["told"] == {"images": 4, "batch_size": 2, "layers": 53, "frozen": 0}


# With masks and without, and the RPN alone: its anchors are sampled.
SAMPLING = ("faster_rcnn", "mask_rcnn", "class_agnostic")
SAMPLED = ["Loss/RPNLoss/localization_loss", "Loss/RPNLoss/objectness_loss", "Loss/total_loss"]


@each_of(*COMMON, *RARE)
def test_what_a_model_draws_at_random_is_told_by_its_graph(
    compared: dict[str, Any], family: str
) -> None:
    ready = compared[family if ":" in family else f"{family}:0"]["ready"]
    drawn = [metric["name"] for metric in ready["metrics"] if not metric["reproducible"]]
    assert drawn == [*(SAMPLED if family in SAMPLING else []), "latency_ms"]
    assert ready["details"]["deterministic"] is True
    assert not any("not deterministic" in warning for warning in ready["warnings"])


@each_of("ssd_fpn_ema_alone", "ssd_fpn_nothing_found")
def test_images_go_through_in_batches_where_that_is_proven(
    compared: dict[str, Any], family: str
) -> None:
    """`test_every_metric_equals_the_od_api` holds what they give to the last bit."""
    ready = compared[f"{family}:0"]["ready"]
    assert ready["fingerprint_parts"]["batch_size"] == 1
    batches = ready["details"]["batches"]
    # On maps as small as these a box may differ by its last bit, with the weights of some starts.
    refused = [note for note in ready["notes"] if "one by one" in note]
    if batches["size"] == 1:
        assert "but give different" in batches["why"] and batches["why"] in refused[0], batches
    else:
        assert batches["size"] == 4 and "have the same bits" in batches["why"], batches
        assert not refused


@each_of("faster_rcnn", "mask_rcnn")
def test_a_model_that_draws_at_random_goes_through_image_by_image_and_says_so(
    compared: dict[str, Any], family: str
) -> None:
    ready = compared[f"{family}:0"]["ready"]
    assert ready["details"]["batches"]["size"] == 1
    assert [note for note in ready["notes"] if "draws Loss/RPNLoss" in note]


@each_of("ssd_fpn_ema", "class_agnostic")
def test_a_batch_size_of_the_pipelines_own_stays(compared: dict[str, Any], family: str) -> None:
    assert "pipeline's own" in compared[f"{family}:0"]["ready"]["details"]["batches"]["why"]


def test_a_batch_in_which_a_bit_differs_is_given_up(answers: list[dict[str, Any]]) -> None:
    proofs = answers[-3]
    assert proofs["convolution"]["size"] == 16 and not proofs["convolution"]["notes"]
    product = proofs["product"]
    assert product["size"] == 1
    assert "give different Loss/scores, detection_scores" in product["why"]
    assert product["notes"] == ["images go through the model one by one: " + product["why"]]


def test_a_difference_that_the_untrained_weights_hide_is_seen_at_the_start_by_larger_ones(
    answers: list[dict[str, Any]],
) -> None:
    hidden = answers[-3]["small product"]
    assert hidden["size"] == 1 and hidden["put back"]
    assert "give different Loss/scores, detection_scores" in hidden["why"]


def test_a_proof_that_fails_with_the_first_checkpoint_ends_the_batches_with_a_warning(
    answers: list[dict[str, Any]],
) -> None:
    proofs = answers[-3]
    assert proofs["before the checkpoint"]["size"] == 16
    assert proofs["at the checkpoint"]["size"] == 1
    assert "this checkpoint and those after it go through the model" in proofs["warning"]
    assert proofs["again"] is None
    assert proofs["kept"] == [None, 16, [16, 16, *8 * [1]]]


def test_what_cannot_be_proven_or_needs_no_batch_stays_as_it_is(
    answers: list[dict[str, Any]],
) -> None:
    proofs = answers[-3]
    reasons = {
        "random": "draws Loss/scores at random",
        "few": "there are only 4",
        "slow": "a pass takes 2.0 s",
        "pipeline": "the pipeline's own",
        "fixed": "as eval_batch_size says",
    }
    for case, reason in reasons.items():
        assert proofs[case]["size"] == 1 and reason in proofs[case]["why"]
        assert bool(proofs[case]["notes"]) == (case in ("random", "few", "slow"))


def test_a_checkpoint_reaches_the_model_whole_or_not_at_all(answers: list[dict[str, Any]]) -> None:
    message = "2 variables hold NaN or infinity: model/a{0}; model/c{0}"
    assert answers[-2] == {
        "step": 7,
        "equal": True,
        "failure": ["not_finite", message.format("/.ATTRIBUTES/VARIABLE_VALUE")],
        "kept": True,
        "averages": [True, True, True],
    }


def test_random_operations_are_found_in_calls_loops_and_branches(
    answers: list[dict[str, Any]],
) -> None:
    found = answers[-1]
    assert found == {name: name.startswith("random_") for name in found}
    assert len(found) == 17


@each_of(*(family for family in (*COMMON, *RARE) if family != ONE_NAME_FAMILY))
def test_every_picture_is_the_od_apis_own(compared: dict[str, Any], family: str) -> None:
    line = compared[family if ":" in family else f"{family}:0"]
    assert len(line["pictures"]) >= 2
    assert set(line["pictures"].values()) == {True}, line["results"][0]["warnings"]


@pytest.mark.families("ssd_fpn_ema", "efficientdet:1")
def test_the_second_eval_input_and_every_second_image_of_it(compared: dict[str, Any]) -> None:
    first, second = compared["ssd_fpn_ema:0"]["ready"], compared["efficientdet:1"]["ready"]
    assert (first["details"]["eval_input"], first["images"]) == ("val", 6)
    assert (second["details"]["eval_input"], second["images"]) == ("other", 5)


@pytest.mark.families("ssd_fpn_nothing_found")
def test_a_checkpoint_that_finds_nothing_scores_zero(compared: dict[str, Any]) -> None:
    metrics = compared["ssd_fpn_nothing_found:0"]["results"][0]["metrics"]
    assert metrics["DetectionBoxes_Precision/mAP"] == 0.0


@pytest.mark.families("mask_rcnn")
def test_masks_have_metrics_of_their_own(compared: dict[str, Any]) -> None:
    masks = names_of(compared["mask_rcnn:0"]["ready"])
    assert {"DetectionMasks_Precision/mAP", "DetectionMasks_APr"} <= set(masks)
    assert {f"{kind}PerformanceByCategory/AP@0.5IOU/rect" for kind in INSTANCES} <= set(masks)


def test_keypoints_have_metrics_of_their_own(compared: dict[str, Any]) -> None:
    points = names_of(compared["center_net:0"]["ready"])
    assert "Keypoints_Precision/mAP ByCategory/rect" in points


def test_label_maps_are_read_from_their_copies_which_the_fingerprint_does_not_know(
    compared: dict[str, Any],
) -> None:
    for name, line in compared.items():
        points = ["keypoint_label_map.pbtxt"] if name == "center_net:0" else []
        assert line["copies"] == [*points, "label_map.pbtxt"]
        assert line["ready"]["fingerprint_parts"]["model"] == line["written_model"]


def test_an_eval_set_too_large_for_memory_is_kept_on_disk_or_read_each_time(
    compared: dict[str, Any],
) -> None:
    kept = {name: line["ready"]["details"]["eval_set_kept"] for name, line in compared.items()}
    assert kept.pop("ssd_fpn_ema:0") == "disk"
    assert kept.pop("faster_rcnn:0") == "nowhere"
    assert set(kept.values()) == {"memory"}


@pytest.mark.families("class_agnostic")
def test_a_model_without_classes_has_one_category(compared: dict[str, Any]) -> None:
    line = compared["class_agnostic:0"]
    assert line["ready"]["categories"] == [{"id": 1, "name": "object"}]
    assert {m["category"] for m in line["results"][0]["category_metrics"]} == {1}


@pytest.mark.families("mask_rcnn")
def test_a_metric_plugin_gets_each_mask_with_its_box(compared: dict[str, Any]) -> None:
    for result in compared["mask_rcnn:0"]["results"]:
        assert result["metrics"]["mask_places/groundtruth"] > 0
        for side in ("groundtruth", "detection"):
            assert result["metrics"][f"mask_places/{side}_inside"] == 1
