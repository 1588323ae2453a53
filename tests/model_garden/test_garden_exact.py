"""Model Garden's checkpoints have the numbers of Model Garden's own evaluation, to the last bit."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import PROGRAMS, Client, run_program
from fake_bundle import SUFFIX, Entry, Tensor, build_index, encode_tensor, floats
from garden_runs import IMAGES, GardenRun, garden_run

from watcher.checkpoints.bundle import read_index
from watcher.checkpoints.bundle_index import parse_index

pytestmark = [pytest.mark.tensorflow, pytest.mark.equality, pytest.mark.timeout(1200)]

BATCHED = IMAGES - IMAGES % 8
# The classifier's bias: a number for each of three classes.
SPOILED = {
    "nan": (floats([0, math.nan, 0]), "not_finite"),
    "wider": (floats([0, 0, 0, 0]), "unmatched_variables"),
}
# A detector's scores are as its training went, which is not the same on each machine: the first of
# these that changes a metric leaves something out. The last leaves out everything.
THRESHOLDS = (0.1, 0.5, 0.9, 1.1)
DEFAULT = (
    "retinanet",
    pytest.param("retinanet_ema", marks=pytest.mark.families),
    "classification",
)


@dataclass(frozen=True)
class Evaluated:
    """What one worker said of a job: at its start, of each checkpoint, and again of the first."""

    run: GardenRun
    ready: dict[str, Any]
    results: list[dict[str, Any]]
    replies: list[dict[str, Any]]
    average: Path
    averaged: list[dict[str, Any]]


def evaluate(run: GardenRun, folder: Path, **options: Any) -> Evaluated:
    """Has a worker evaluate all checkpoints of a job, and the first once more."""
    with Client(run.python, folder) as client:
        ready = run.start(client, **options)
        assert ready["type"] == "ready", ready
        results = [client.evaluate(prefix) for prefix in [*run.prefixes, run.prefixes[0]]]
        replies = list(client.replies)
        average = folder / f"{run.prefixes[-1].name}-average1"
        said = [ask_average(client, run, average), ask_average(client, run, average, anew=8)]
        said.append(client.evaluate(average))
        return Evaluated(run, ready, results, replies, average, said)


def ask_average(
    client: Client, run: GardenRun, prefix: Path, anew: int | None = None
) -> dict[str, Any]:
    """Asks for the average of a job's last two checkpoints; returns `averaged` or `failed`."""
    paths = [str(one) for one in run.prefixes[-2:]]
    asked = {"prefixes": paths, "prefix": str(prefix), "recompute_batch_norm": anew}
    client.send(type="average", id="average", **asked)
    return client.receive("averaged", "failed")


@pytest.fixture(scope="module")
def evaluated_once(
    od_python: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Evaluated]:
    """Gives a job of the default set, evaluated by one worker for all tests."""

    @functools.cache
    def found(name: str) -> Evaluated:
        run = garden_run(name, od_python, tmp_path_factory)
        return evaluate(run, tmp_path_factory.mktemp(name))

    return found


@pytest.fixture(scope="module", params=DEFAULT)
def evaluated(
    request: pytest.FixtureRequest, evaluated_once: Callable[[str], Evaluated]
) -> Evaluated:
    """Each job of the default set, evaluated."""
    return evaluated_once(request.param)


def differing(result: dict[str, Any], reference: dict[str, float]) -> dict[str, Any]:
    """What is not equal to Model Garden's, by metric.

    `steps_per_second` is none, and `best_AP` is that of the best checkpoint so far.
    """
    metrics = result["metrics"]
    theirs = {name: value for name, value in reference.items() if not name.startswith("best_")}
    theirs.pop("steps_per_second", None)
    assert metrics.keys() - theirs.keys() == {"latency_ms"}
    return {
        name: (value, metrics.get(name))
        for name, value in theirs.items()
        if metrics.get(name) != value
    }


def test_every_metric_equals_model_gardens_own_to_the_last_bit(evaluated: Evaluated):
    reference = evaluated.run.reference
    assert len(reference) == len(evaluated.run.prefixes) >= 2
    for prefix, result in zip(evaluated.run.prefixes, evaluated.results, strict=False):
        assert differing(result, reference[prefix.name]) == {}
        assert result["global_step"] == int(prefix.name.removeprefix("ckpt-"))
    # Or equality would say little.
    assert len({values["validation_loss"] for values in reference.values()}) == len(reference)
    primary = evaluated.ready["details"]["primary_metric"]
    assert max(values[primary] for values in reference.values()) > 0


def test_a_checkpoint_evaluated_again_after_others_has_the_same_numbers(evaluated: Evaluated):
    first, *_, last = ({**one["metrics"], "latency_ms": 0} for one in evaluated.results)
    assert first == last
    categories = [one["category_metrics"] for one in evaluated.results]
    assert categories[0] == categories[-1]


def test_images_are_counted_and_those_left_out_are_told(evaluated: Evaluated):
    ready = evaluated.ready
    assert ready["images"] == BATCHED and ready["details"]["records"] == IMAGES
    assert {one["images"] for one in evaluated.results} == {BATCHED}
    said, *others = ready["warnings"]
    assert said.startswith(f"{IMAGES - BATCHED} of {IMAGES} images are left out") and (
        "drop_remainder" in said
    )
    if evaluated.run.job.annotated:
        assert f"has {IMAGES - BATCHED} images that no evaluation sees" in others.pop()
    assert others == []
    progress = [one for one in evaluated.replies if one["type"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == BATCHED


def test_every_result_has_the_metrics_that_were_declared(evaluated: Evaluated):
    declared = {one["name"]: one for one in evaluated.ready["metrics"]}
    for result in evaluated.results:
        assert result["metrics"].keys() == declared.keys()
        assert result["metrics"]["latency_ms"] > 0 and result["cost"]["latency_passes"] > 0
    assert all(one["direction"] in ("max", "min") for one in declared.values())
    assert not declared["latency_ms"]["reproducible"]
    short = {name: one["name"] for one in declared.values() for name in one["short"]}
    if "AP" in declared:
        assert (short["mAP"], short["AR100"], short["loss"]) == ("AP", "ARmax100", "total_loss")
        details = evaluated.ready["details"]
        assert (details["primary_metric"], details["primary_mode"]) == ("AP", "max")
    else:
        assert short["loss"] == "validation_loss"


def test_categories_have_the_means_that_their_overall_metric_is_made_of(evaluated: Evaluated):
    known = {one["id"] for one in evaluated.ready["categories"] or ()}
    for result in evaluated.results:
        found = result["category_metrics"]
        assert {one["category"] for one in found} == known
        values = [one["value"] for one in found if one["name"] == "AP"]
        if values:
            assert sum(values) / len(values) == pytest.approx(result["metrics"]["AP"], rel=1e-6)


def test_an_average_is_evaluated_at_its_newest_parents_step_and_has_no_batch_norm_of_its_own(
    evaluated: Evaluated,
):
    written, refused, result = evaluated.averaged
    assert written["type"] == "averaged" and written["variables"] > 100
    assert (refused["type"], refused["code"], refused["permanent"]) == (
        *("failed", "unsupported", True),
    )
    assert result["type"] == "result", result
    assert result["global_step"] == int(evaluated.run.prefixes[-1].name.removeprefix("ckpt-"))
    losses = [one["metrics"]["validation_loss"] for one in (result, *evaluated.results)]
    assert losses[0] not in losses[1:]


@pytest.mark.families
@pytest.mark.parametrize("name", ["retinanet_ema", "classification"])
def test_model_garden_gives_an_average_the_numbers_of_the_worker(
    evaluated_once: Callable[[str], Evaluated], name: str
):
    """Of moving averages too, which are what it evaluates where it keeps them."""
    evaluated = evaluated_once(name)
    (reference,) = evaluated.run.evaluate(prefixes=[evaluated.average]).values()
    assert differing(evaluated.averaged[-1], reference) == {}


def test_nothing_is_written_into_model_dir(evaluated: Evaluated):
    there = {path.name for path in evaluated.run.model_dir.iterdir()}
    names = {f"{prefix.name}.index" for prefix in evaluated.run.prefixes}
    names |= {f"{prefix.name}.data-00000-of-00001" for prefix in evaluated.run.prefixes}
    names |= {"checkpoint", "params.yaml", "operative_config.train.gin", "train"}
    assert there == names


def test_suppression_without_empty_tiles_keeps_the_boxes_that_model_garden_keeps(
    evaluated_once: Callable[[str], Evaluated], od_python: str, tmp_path: Path
):
    """Also of ties, of thresholds below 0.5, and where a rounded sum decides when it ends."""
    program = PROGRAMS / "suppressed.py"
    found = json.loads(run_program(od_python, program, cwd=tmp_path))
    assert found["installed"] and found["differing"] == []
    assert found["kept"] > 10_000 and found["fifth_kept"] < 40
    assert evaluated_once("retinanet").ready["details"]["leaves_empty_tiles_out"]


@pytest.mark.families
def test_the_metrics_are_model_gardens_where_few_boxes_are_above_the_threshold(
    evaluated_once: Callable[[str], Evaluated], tmp_path: Path
):
    run = evaluated_once("retinanet").run
    task, reference = next(
        (task, values)
        for task in map(_above, THRESHOLDS)
        if (values := run.evaluate(task=task)) != run.reference
    )
    found = evaluate(run, tmp_path, params_overrides=[json.dumps({"task": task})])
    for prefix, result in zip(run.prefixes, found.results, strict=False):
        assert differing(result, reference[prefix.name]) == {}


def _above(threshold: float) -> dict[str, Any]:
    """A task whose detector drops boxes with less than this before it suppresses any."""
    return {"model": {"detection_generator": {"pre_nms_score_threshold": threshold}}}


@pytest.mark.families
def test_the_whole_eval_set_is_measured_where_that_is_asked_for_under_another_fingerprint(
    evaluated_once: Callable[[str], Evaluated], tmp_path: Path
):
    """And without memory for the eval set, which changes no number."""
    plain = evaluated_once("classification")
    run = plain.run
    whole = evaluate(run, tmp_path, whole_eval_set=True, cache_bytes=0)
    assert whole.ready["images"] == IMAGES
    assert "decoded anew" in whole.ready["warnings"][0] and len(whole.ready["warnings"]) == 1
    override = {"task": {"validation_data": {"drop_remainder": False}}}
    reference = run.evaluate(**override)
    for prefix, result in zip(run.prefixes, whole.results, strict=False):
        assert differing(result, reference[prefix.name]) == {}
    assert whole.ready["fingerprint"] != plain.ready["fingerprint"]


def spoil(prefix: Path, to: Path, tensor: Tensor) -> str:
    """Copies a checkpoint with something else as the classifier's bias, whose key it returns."""
    (data,) = prefix.parent.glob(f"{prefix.name}.data-*")
    saved = parse_index(read_index(prefix)).entries.values()
    (key,) = (e.key for e in saved if e.shape == (3,) and ".OPTIMIZER_SLOT" not in e.key)
    entries = {e.key: Entry(e.dtype, e.shape, 0, e.offset, e.size, e.crc32c) for e in saved}
    piece, crc = encode_tensor(tensor)
    entries[key] = Entry(tensor.dtype, tensor.shape, 0, data.stat().st_size, len(piece), crc)
    to.with_name(f"{to.name}.data-00000-of-00001").write_bytes(data.read_bytes() + piece)
    to.with_name(f"{to.name}.index").write_bytes(build_index(1, entries))
    return key.removesuffix(SUFFIX)


def test_a_checkpoint_that_has_no_true_score_is_refused_in_one_line(
    evaluated_once: Callable[[str], Evaluated],
    od_python: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
):
    """One of another experiment: at the start where `check` names it. And else that one alone.

    The same worker tells that the trainer's gin file, which it writes late, changes no fingerprint.
    """
    plain = evaluated_once("classification")
    run = plain.run
    without_gin = tmp_path / "params.yaml"
    without_gin.write_bytes(run.config_file.read_bytes())
    other = garden_run("retinanet", od_python, tmp_path_factory).prefixes[0]
    with Client(od_python, tmp_path) as client:
        said = run.start(client, check=other)
        assert (said["type"], said["code"]) == ("error", "unmatched_variables")
        assert f"checkpoint {other.name} does not match" in said["message"]
        assert str(run.config_file) in said["message"] and len(said["message"]) < 400
    with Client(od_python, tmp_path) as client:
        ready = run.start(client, config_file=str(without_gin))
        assert ready["fingerprint"] == plain.ready["fingerprint"]
        said = client.evaluate(other)
        assert (said["code"], said["permanent"]) == ("unmatched_variables", True)
        for name, (tensor, code) in SPOILED.items():
            key = spoil(run.prefixes[0], tmp_path / name, tensor)
            said = client.evaluate(tmp_path / name)
            assert (said["code"], said["permanent"]) == (code, True), said
            assert key in said["message"] and len(said["message"]) < 400
        assert client.evaluate(run.prefixes[0])["type"] == "result"
        client.send(type="cancel", id="given up")
        client.send(type="evaluate", id="given up", prefix=str(run.prefixes[0]))
        assert client.receive("result", "failed")["code"] == "cancelled"
        assert client.evaluate(run.prefixes[0])["type"] == "result"
