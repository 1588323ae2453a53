"""The worker's numbers are the OD API's own, on checkpoints of the unmodified trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import PROGRAMS, Client, run_program
from pages import page
from schema_judge import complaints
from trained import SHAPES, Trained

from watcher.decision.metric import SHORT_NAMES, parse_metric

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(1200)]


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training run and what both sides say about its checkpoints."""

    folder: Path
    ready: dict[str, Any]
    reference: dict[str, Any]
    client: Client
    started: list[dict[str, Any]]

    @property
    def metrics(self) -> list[str]:
        return [metric["name"] for metric in self.ready["metrics"]]


@pytest.fixture(scope="module")
def run(
    od_python: str, trained: Trained, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("run")
    for name in (*SHAPES, "label_map"):
        for path in trained.folder.glob(f"{name}.*"):
            shutil.copy(path, folder)
    model_dir = folder / "model_dir"
    model_dir.mkdir()
    for path in trained.first.iterdir():
        shutil.copy(path, model_dir)
    pipeline = folder / "pipeline.config"
    config = (PROGRAMS / "ssd_fixed.config").read_text()
    pipeline.write_text(config)
    anonymous = config.replace('"val.tfrecord"', '"anonymous.tfrecord"')
    pipeline.with_name("anonymous.config").write_text(anonymous)
    reference = {f"model_dir/{name}": found for name, found in trained.reference.items()}
    with Client(od_python, folder) as client:
        fits = str(folder / "model_dir" / "ckpt-3")
        ready = client.start("pipeline.config", check=fits, replicates=20)
        assert ready["type"] == "ready", ready
        yield Run(folder, ready, reference, client, list(client.replies))


def test_the_start_says_its_phases_and_what_there_is_to_find(run: Run) -> None:
    said = [reply["name"] for reply in run.started if reply["type"] == "phase"]
    assert said == [
        *("importing TensorFlow", "checking the eval records", "building the model"),
        *("reading the images of 24 eval records", "tracing the model"),
        "trying the model on a batch",
    ]
    truth = run.ready["details"]["ground_truth"]
    assert truth["without"] == [] and truth["boxes"] > 24
    assert truth["small"] + truth["medium"] + truth["large"] >= truth["boxes"]


@pytest.mark.parametrize("name", ["ckpt-2", "ckpt-3", "ckpt-2"])
def test_every_metric_equals_the_od_api_to_the_last_bit(run: Run, name: str) -> None:
    prefix = f"model_dir/{name}"
    result = run.client.evaluate(prefix)
    assert result["type"] == "result", result
    expected = run.reference[prefix]
    assert {name: result["metrics"][name] for name in expected} == expected
    assert set(result["metrics"]) - set(expected) == {"latency_ms"}
    assert result["global_step"] == {"ckpt-2": 100, "ckpt-3": 200}[name]
    assert result["images"] == 24


def test_replicates_follow_each_result_and_are_the_same_each_time(run: Run) -> None:
    """Of boxes, overall and of each category; the images are named once."""
    given = []
    for _ in range(2):
        result = run.client.evaluate("model_dir/ckpt-3")
        assert result["replicates_follow"]
        given.append(run.client.receive("replicates"))
    assert given[0]["metrics"] == given[1]["metrics"]
    assert given[0]["influences"] == given[1]["influences"]
    overall = {row["name"]: row for row in given[0]["metrics"] if row["category"] is None}
    assert list(overall) == [
        f"DetectionBoxes_Precision/{name}" for name in ("mAP", "mAP@.50IOU", "mAP@.75IOU")
    ]
    for name, row in overall.items():
        assert row["low"] <= row["high"]
        assert row["low"] <= result["metrics"][name] <= row["high"], name
    assert {row["category"] for row in given[0]["metrics"]} == {None, 1, 2}
    every = [reply for reply in run.client.replies if reply["type"] == "replicates"]
    named = [reply["image_names"] for reply in every if reply["image_names"]]
    assert named[0] == every[0]["image_names"] and len(named) == 1
    assert len(set(named[0])) == 24


@pytest.fixture(scope="module")
def averaged(od_python: str, run: Run) -> dict[str, Any]:
    """What the worker and the OD API say of an average of two checkpoints."""
    (run.folder / "averages").mkdir()
    prefix, parents = "averages/ckpt-3-average1", ["model_dir/ckpt-2", "model_dir/ckpt-3"]
    run.client.send(type="average", id="a", prefixes=parents, prefix=prefix)
    said = run.client.receive("averaged", "failed")
    result = run.client.evaluate(prefix)
    program = PROGRAMS / "averaged.py"
    out = run_program(
        od_python, program, "pipeline.config", prefix, "exported", *parents, cwd=run.folder
    )
    return {**json.loads(out), "said": said, "result": result}


def test_an_average_has_the_mean_of_every_float_of_the_model_and_else_what_the_newest_has(
    averaged: dict[str, Any],
) -> None:
    assert averaged["said"]["type"] == "averaged", averaged["said"]
    assert averaged["wrong"] == []
    assert averaged["graph"]
    assert averaged["means"] == averaged["said"]["variables"] > 100
    assert averaged["moved"] > averaged["means"] / 2


def test_an_average_keeps_numbers_that_are_too_small_to_be_normal_ones(
    od_python: str, tmp_path: Path
) -> None:
    """As the momentum of a unit becomes that has no gradient any more."""
    said = json.loads(run_program(od_python, PROGRAMS / "tiny_average.py", tmp_path, cwd=tmp_path))
    assert said == {"float16": 5, "bfloat16": 5, "float32": 5, "float64": 5}


def test_the_od_api_evaluates_an_average_to_the_number_that_the_worker_gives(
    averaged: dict[str, Any],
) -> None:
    assert averaged["result"]["type"] == "result", averaged["result"]
    metrics = averaged["result"]["metrics"]
    assert {name: metrics[name] for name in averaged["metrics"]} == averaged["metrics"]
    assert averaged["result"]["global_step"] == 200


def test_the_od_api_exports_an_average(averaged: dict[str, Any], run: Run) -> None:
    assert (run.folder / "exported" / "saved_model" / "saved_model.pb").is_file()
    assert averaged["result"]["model_variables"] > 100


@pytest.fixture(scope="module")
def recomputed(od_python: str, run: Run, averaged: dict[str, Any]) -> dict[str, Any]:
    """What became of batch norm that was computed anew from 16 and from 30 images."""
    plain, parents = "averages/ckpt-3-average1", ["model_dir/ckpt-2", "model_dir/ckpt-3"]

    def average(name: str, images: int, prefixes: list[str]) -> dict[str, Any]:
        request = {"type": "average", "id": name, "prefixes": prefixes}
        prefix = f"averages/{name}"
        run.client.send(**request, prefix=prefix, recompute_batch_norm=images)
        return run.client.receive("averaged", "failed")

    said = {
        "sixteen": average("sixteen", 16, parents),
        "rest": average("rest", 30, parents),
        "few": average("few", 7, parents),
        "many": average("many", 65, parents),
        # The same weights, with statistics of both kinds before.
        "again": average("again", 16, [plain, "averages/sixteen"]),
    }
    program = PROGRAMS / "first_statistics.py"
    words = ["train.tfrecord", 16, 8, plain, "averages/sixteen"]
    told = json.loads(run_program(od_python, program, *words, cwd=run.folder))
    return {**told, "said": said, "result": run.client.evaluate("averages/sixteen")}


def test_batch_norm_computed_anew_is_the_mean_of_the_batches_and_all_else_is_the_average(
    recomputed: dict[str, Any], run: Run
) -> None:
    """As NumPy computes it for the first layer; TensorFlow adds up 32,768 numbers in float32."""
    assert recomputed["changed"] == recomputed["statistics"]
    assert len(recomputed["changed"]) == 128
    assert recomputed["mean_off"] < 1e-4 and recomputed["variance_off"] < 1e-4
    said = recomputed["said"]["sixteen"]
    assert said["batch_norm"] == {"images": 16, "batch_size": 8, "layers": 64, "frozen": 0}
    assert said["variables"] > 100
    told = [one for one in run.client.replies if one["type"] == "progress"]
    done = [(one["done"], one["total"]) for one in told if one["id"] == "sixteen"]
    assert done[0] == (0, 16) and done[-1] == (16, 16)


def test_batch_norm_computed_anew_is_the_same_again_whatever_was_there_before(
    recomputed: dict[str, Any], run: Run
) -> None:
    assert recomputed["said"]["again"]["type"] == "averaged"
    again, first = (
        (run.folder / "averages" / f"{name}.data-00000-of-00001").read_bytes()
        for name in ("again", "sixteen")
    )
    assert again == first


def test_an_average_with_batch_norm_computed_anew_is_evaluated(
    recomputed: dict[str, Any], averaged: dict[str, Any]
) -> None:
    result = recomputed["result"]
    assert result["type"] == "result", result
    loss = "Loss/total_loss"
    assert result["metrics"][loss] != averaged["result"]["metrics"][loss]


def test_images_that_fill_no_batch_are_left_out_and_too_few_are_refused(
    recomputed: dict[str, Any],
) -> None:
    said = recomputed["said"]
    assert said["rest"]["batch_norm"]["images"] == 24
    for name, message in [
        ("few", "recompute_batch_norm (7) is less than one batch of training, which has 8 images"),
        ("many", "training records (train.tfrecord) hold 64 images, recompute_batch_norm asks for"),
    ]:
        assert (said[name]["code"], said[name]["permanent"]) == ("too_few_images", True)
        assert message in said[name]["message"]


def test_what_is_not_of_one_model_is_not_averaged_and_the_worker_lives_on(run: Run) -> None:
    parents = ["model_dir/ckpt-1", "model_dir/ckpt-3"]
    run.client.send(type="average", id="b", prefixes=parents, prefix="averages/none")
    said = run.client.receive("averaged", "failed")
    assert (said["type"], said["code"], said["permanent"]) == ("failed", "not_one_model", True)
    assert "ckpt-3 and ckpt-1 are not of one model" in said["message"]
    run.client.send(type="average", id="c", prefixes=["gone", parents[1]], prefix="averages/none")
    said = run.client.receive("averaged", "failed")
    assert (said["code"], said["permanent"]) == ("unreadable_checkpoint", False)
    assert run.client.evaluate("model_dir/ckpt-3")["type"] == "result"


def test_several_images_go_through_the_network_at_once_under_the_fingerprint_of_one(
    run: Run,
) -> None:
    """The metrics above are of them; but for those of a TensorFlow that has oneDNN off."""
    batches, parts = run.ready["details"]["batches"], run.ready["fingerprint_parts"]
    if [int(part) for part in parts["versions"]["tensorflow"].split(".")[:2]] < [2, 9]:
        assert batches["size"] == 1 and "but give different" in batches["why"], batches
        assert run.ready["notes"] == ["images go through the model one by one: " + batches["why"]]
    else:
        assert batches["size"] > 1, batches
        assert f"have the same bits in batches of {batches['size']} as one by one" in batches["why"]
    assert parts["batch_size"] == 1


@pytest.fixture(scope="module")
def niced(od_python: str, run: Run) -> Iterator[tuple[Client, dict[str, Any]]]:
    """A niced worker on copies, ready: one pass at a time, nothing kept of a set without ids."""
    # As after the user deleted the files that the run began with.
    copies = run.folder / "snapshot"
    copies.mkdir()
    text = (run.folder / "anonymous.config").read_text()
    (copies / "pipeline.config").write_text(text.replace("label_map.pbtxt", "gone.pbtxt"))
    shutil.copy(run.folder / "label_map.pbtxt", copies)
    with Client(od_python, run.folder) as client:
        options = {"threads": 1, "nice": 2, "heartbeat_seconds": 1}
        options |= {"cache_bytes": 1, "cache_on_disk": False}
        snapshot = {"folder": str(copies)}
        ready = client.start(copies / "pipeline.config", snapshot=snapshot, **options)
        assert ready["type"] == "ready", ready
        yield client, ready


def test_one_niced_thread_that_reads_records_without_ids_anew_gives_the_same_numbers(
    niced: tuple[Client, dict[str, Any]], run: Run
) -> None:
    client, ready = niced
    result = client.evaluate("model_dir/ckpt-3")
    expected = run.reference["model_dir/ckpt-3"]
    assert {name: result["metrics"][name] for name in expected} == expected
    assert ready["details"]["eval_set_kept"] == "nowhere"
    parts = ready["fingerprint_parts"]
    assert "device" not in parts  # as before GPUs were told apart
    assert parts["numbered_images"] == 24


def test_the_evaluation_on_copies_is_the_same_one_whatever_became_of_the_users_files(
    niced: tuple[Client, dict[str, Any]], run: Run
) -> None:
    assert niced[1]["taken"] == {"gone.pbtxt": str(run.folder / "snapshot" / "label_map.pbtxt")}
    expected = run.ready["fingerprint_parts"]
    parts = {**niced[1]["fingerprint_parts"], "records": expected["records"]}
    del parts["numbered_images"]  # these records alone have no ids
    assert parts == expected


def test_a_niced_worker_gives_way_by_process_and_by_session(
    niced: tuple[Client, dict[str, Any]],
) -> None:
    assert {"type": "heartbeat"} in niced[0].replies  # as it was asked to beat
    pid = niced[0].process.pid
    niceness = os.getpriority(os.PRIO_PROCESS, pid)
    assert niceness >= 2
    group = Path(f"/proc/{pid}/autogroup")
    with contextlib.suppress(OSError):  # a kernel without autogroups, or one that names none
        assert not (text := group.read_text()) or text.split()[-1] == str(niceness)


def test_records_that_break_half_way_give_no_score_and_the_worker_lives_on(
    niced: tuple[Client, dict[str, Any]], run: Run
) -> None:
    client, _ = niced
    records = run.folder / "anonymous.tfrecord"
    whole, stat = records.read_bytes(), records.stat()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 255
    try:
        records.write_bytes(broken)
        # As a disk that goes bad would do it: neither length nor time of the file changes.
        os.utime(records, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        failed = client.evaluate("model_dir/ckpt-2")
    finally:
        records.write_bytes(whole)
        os.utime(records, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (failed["type"], failed["permanent"]) == ("failed", False)
    result = client.evaluate("model_dir/ckpt-2")
    expected = run.reference["model_dir/ckpt-2"]
    assert {name: result["metrics"][name] for name in expected} == expected


@pytest.fixture(scope="module")
def told(run: Run) -> list[dict[str, Any]]:
    """All that is said of one evaluation, the result last."""
    run.client.replies.clear()
    run.client.evaluate("model_dir/ckpt-3")
    return list(run.client.replies)


def test_ready_names_the_metrics_a_result_will_have(run: Run, told: list[dict[str, Any]]) -> None:
    assert run.metrics == sorted(told[-1]["metrics"])
    assert run.ready["categories"] == [{"id": 1, "name": "rect"}, {"id": 2, "name": "ellipse"}]
    assert run.ready["images"] == 24


def test_each_category_has_its_precision_and_recall(told: list[dict[str, Any]]) -> None:
    result = told[-1]
    name = "DetectionBoxes_Precision/mAP"
    rows = {(m["name"], m["category"]): m["value"] for m in result["category_metrics"]}
    mean = (rows[name, 1] + rows[name, 2]) / 2
    assert mean == pytest.approx(result["metrics"][name], abs=1e-12)
    assert ("DetectionBoxes_Recall/AR@100", 1) in rows


def test_cost_figures_add_up(told: list[dict[str, Any]]) -> None:
    result = told[-1]
    cost, timings = result["cost"], result["timings"]
    assert 0 < cost["latency_ms"] <= cost["latency_ms_p90"]
    assert cost["images_per_second"] == pytest.approx(24 / timings["forward_seconds"])
    assert result["metrics"]["latency_ms"] == cost["latency_ms"]
    assert result["peak_memory_bytes"] > 100 << 20


def test_requests_sent_ahead_are_answered_in_order(run: Run) -> None:
    names = ["ckpt-2", "ckpt-1", "ckpt-3"]
    for name in names:
        run.client.send(type="evaluate", id=name, prefix=f"model_dir/{name}")
    answers = [run.client.receive("result", "failed") for _ in names]
    assert [a["id"] for a in answers] == names
    assert [a["type"] for a in answers] == ["result", "failed", "result"]
    for answer in (answers[0], answers[2]):
        expected = run.reference[f"model_dir/{answer['id']}"]
        assert {name: answer["metrics"][name] for name in expected} == expected


def test_a_cancelled_checkpoint_is_answered_and_the_one_before_it_is_scored(run: Run) -> None:
    for name in ("ckpt-2", "ckpt-3"):
        run.client.send(type="evaluate", id=name, prefix=f"model_dir/{name}")
    run.client.send(type="cancel", id="ckpt-3")
    first, second = (run.client.receive("result", "failed") for _ in range(2))
    assert (first["type"], first["id"]) == ("result", "ckpt-2")
    assert (second["code"], second["id"], second["permanent"]) == ("cancelled", "ckpt-3", False)


def test_progress_starts_at_zero_and_never_passes_the_total(told: list[dict[str, Any]]) -> None:
    progress = [r for r in told if r["type"] == "progress"]
    assert progress[0]["done"] == 0
    assert all(r["total"] == 24 and r["done"] <= 24 for r in progress)


def test_the_model_is_free_once_all_images_are_done(told: list[dict[str, Any]]) -> None:
    beside = ("progress", "replicates")  # the latter of the evaluation before
    said = [reply["type"] for reply in told if reply["type"] not in beside]
    assert said == ["free", "result"]
    assert told[-3]["done"] == 24


def test_what_the_worker_declares_is_what_the_watcher_takes_its_names_for(run: Run) -> None:
    """Its own table is read before there is a worker, so the two have to say the same."""
    for metric in run.ready["metrics"]:
        assert metric["direction"] == parse_metric(f"'{metric['name']}'").natural_mode
        for short in metric["short"]:
            names = [name for name, _ in parse_metric(short).keys]
            assert metric["name"] == next(name for name in names if name in run.metrics)
    declared = {short for metric in run.ready["metrics"] for short in metric["short"]}
    assert declared == set(SHORT_NAMES) - {"mask_mAP", "latency_ms"}


def test_every_message_is_one_of_the_schema(run: Run, told: list[dict[str, Any]]) -> None:
    kinds = ("phase", "hello", "ready")
    assert {reply["type"] for reply in run.started} == set(kinds)
    failed = run.client.evaluate("model_dir/ckpt-99")
    assert complaints([*run.started, *told, failed]) == []


def test_a_checkpoint_without_the_model_is_no_score(run: Run) -> None:
    failed = run.client.evaluate("model_dir/ckpt-1")
    assert (failed["type"], failed["code"]) == ("failed", "unmatched_variables")
    assert failed["permanent"]
    assert failed["message"].startswith("the checkpoint does not match the model of pipeline.conf")
    assert "_box_predictor" in failed["message"] and "; and " in failed["message"]


@pytest.fixture(scope="module")
def spoiled(od_python: str, run: Run) -> Path:
    """A folder with checkpoints that have something wrong in them."""
    folder = run.folder / "spoiled"
    folder.mkdir()
    program = PROGRAMS / "spoiled.py"
    run_program(od_python, program, run.folder / "model_dir" / "ckpt-3", folder, cwd=run.folder)
    return folder


def test_a_checkpoint_of_more_classes_is_refused_with_both_numbers_of_classes(
    run: Run, spoiled: Path
) -> None:
    failed = run.client.evaluate(spoiled / "classes")
    assert (failed["type"], failed["code"]) == ("failed", "unmatched_variables")
    assert failed["permanent"]
    assert failed["message"] == "the checkpoint has 3 classes, pipeline.config says 2"
    log = (run.folder / "worker.log").read_text()
    assert "_class_predictor_layers/0/bias is float32[12] in the checkpoint and float32[9]" in log


def test_a_checkpoint_with_a_number_that_is_none_is_no_score(run: Run, spoiled: Path) -> None:
    failed = run.client.evaluate(spoiled / "nan")
    assert (failed["type"], failed["code"]) == ("failed", "not_finite")
    assert failed["permanent"]
    assert failed["message"].startswith("1 variables hold NaN or infinity: model/")
    assert "_class_predictor_layers/0/kernel" in failed["message"]


def test_a_missing_checkpoint_is_unreadable_and_the_worker_lives_on(run: Run) -> None:
    failed = run.client.evaluate("model_dir/ckpt-99")
    assert (failed["type"], failed["code"]) == ("failed", "unreadable_checkpoint")
    assert run.client.evaluate("model_dir/ckpt-2")["type"] == "result"


def test_a_truncated_checkpoint_is_unreadable(run: Run) -> None:
    source = run.folder / "model_dir" / "ckpt-3"
    data = source.with_name("ckpt-3.data-00000-of-00001").read_bytes()
    (run.folder / "cut.index").write_bytes(source.with_name("ckpt-3.index").read_bytes())
    (run.folder / "cut.data-00000-of-00001").write_bytes(data[: len(data) // 4])
    failed = run.client.evaluate("cut")
    assert (failed["type"], failed["code"]) == ("failed", "unreadable_checkpoint")


def test_changed_records_are_noticed_before_the_next_score(run: Run) -> None:
    records = run.folder / "val.tfrecord"
    whole = records.read_bytes()
    records.write_bytes(whole[:-1])
    try:
        failed = run.client.evaluate("model_dir/ckpt-2")
    finally:
        records.write_bytes(whole)
    assert (failed["type"], failed["code"]) == ("failed", "dataset_changed")
    assert "val.tfrecord" in failed["message"]


# Metric plugins, all in one worker.

PLUGINS = PROGRAMS / "metric_plugins.py"
MAP50 = "DetectionBoxes_Precision/mAP@.50IOU"
NAMES = (
    *("ap50", "vandal", "counts", "records", "chatterbox", "ponders"),
    *("raises", "bad_text", "leaves", "nothing", "words", "changes_its_mind"),
)


def shown_plugin() -> str:
    """The file that the page about metrics of one's own shows."""
    found = re.search(r"```python\n(# deployed\.py.*?)```", page("how-to/own-metric"), re.S)
    assert found
    return found[1]


def install_distribution(folder: Path) -> None:
    """Builds a distribution with an entry point, and installs it into the folder `site`."""
    source = folder / "source"
    source.mkdir()
    (source / "house_metrics.py").write_text("def score(images, categories): return len(images)\n")
    (source / "pyproject.toml").write_text(
        textwrap.dedent("""
            [build-system]
            requires = ["hatchling"]
            build-backend = "hatchling.build"
            [project]
            name = "house-metrics"
            version = "1.2.3"
            [project.entry-points."checkpoint_watcher.metrics"]
            house = "house_metrics:score"
            broken = "house_metrics:gone"
        """)
    )
    pip = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps"]
    pip += ["--no-build-isolation", "--python", sys.executable, "--target", str(folder / "site")]
    subprocess.run([*pip, str(source)], check=True)


@dataclasses.dataclass(frozen=True)
class Plugged:
    """What a worker with all the plugins said, of one checkpoint twice and then four in a row."""

    ready: dict[str, Any]
    result: dict[str, Any]
    again: dict[str, Any]
    row: list[dict[str, Any]]
    said: list[tuple[str, Any]]
    log: str

    @property
    def metrics(self) -> dict[str, Any]:
        metrics: dict[str, Any] = self.result["metrics"]
        return metrics


@pytest.fixture(scope="module")
def plugged(od_python: str, run: Run) -> Plugged:
    folder = run.folder
    (folder / "deployed.py").write_text(shown_plugin())
    install_distribution(folder)
    plugins = [*(f"{PLUGINS}:{name}" for name in NAMES), "house", "deployed.py:deployed"]
    log = folder / "plugged.log"
    with Client(od_python, folder, log, PYTHONPATH=str(folder / "site")) as client:
        ready = client.start("pipeline.config", metric_plugins=plugins)
        assert ready["type"] == "ready", ready
        result, again = [client.evaluate("model_dir/ckpt-3") for _ in range(2)]
        assert result["type"] == again["type"] == "result", result
        client.replies.clear()
        for number in range(4):
            client.send(type="evaluate", id=str(number), prefix="model_dir/ckpt-3")
        row = [client.receive("result") for _ in range(4)]
        said = [(reply["type"], reply["id"]) for reply in client.replies]
    return Plugged(ready, result, again, row, said, log.read_text())


def test_latencies_of_one_checkpoint_are_alike_while_slow_metrics_run_beside_the_passes(
    plugged: Plugged,
) -> None:
    for number in range(3):
        began, ended = ("progress", str(number + 1)), ("result", str(number))
        assert plugged.said.index(began) < plugged.said.index(ended), "nothing ran beside"
    costs = [result["cost"] for result in plugged.row]
    latencies = [cost["latency_ms"] for cost in costs]
    # What else runs on the machine comes and goes between the four, and doubles one or the other; a
    # pass beside a metric that holds Python's lock takes many times as long.
    assert sorted(latencies)[2] <= 4 * min(latencies), costs
    for cost in costs:
        assert cost["latency_ms_spread"] > 0
        assert cost["latency_passes"] >= 3
        if sys.platform.startswith("linux"):
            assert cost["latency_others_cores"] >= 0
            assert isinstance(cost["latency_shared"], bool)


def test_a_plugin_gets_what_coco_is_computed_from(plugged: Plugged) -> None:
    """Brute force in a plugin gives COCO's average precision, crowds and empty images included."""
    assert plugged.metrics[MAP50] > 0
    assert plugged.metrics["ap50"] == pytest.approx(plugged.metrics[MAP50], rel=1e-9)


def test_a_plugin_gets_what_the_records_hold(plugged: Plugged) -> None:
    """One plugin counts what it gets, the other what it reads from the records itself."""
    names = ["images", "pixels", "is_crowd", "difficult", "group_of", "rect", "ellipse"]
    for name in names:
        assert plugged.metrics[f"counts/{name}"] == plugged.metrics[f"records/{name}"] > 0, name
    assert plugged.metrics["counts/detections"] > 0
    assert plugged.metrics["counts/masks"] == 0


def test_ready_names_every_metric_of_plugins_and_the_fingerprint_holds_their_code(
    plugged: Plugged,
) -> None:
    assert [metric["name"] for metric in plugged.ready["metrics"]] == sorted(plugged.metrics)
    parts = plugged.ready["fingerprint_parts"]["metric_plugins"]
    assert parts["house"] == "house-metrics 1.2.3 house_metrics:score"
    assert parts["ap50"] == parts["vandal"] != parts["deployed"]


def test_an_entry_point_of_an_installed_distribution_is_a_metric(plugged: Plugged) -> None:
    assert plugged.metrics["house"] == 24


def test_a_plugin_that_changes_what_it_gets_changes_nothing_for_others(plugged: Plugged) -> None:
    """The vandal runs between the brute force and the counts, and before the second evaluation."""
    assert plugged.metrics["vandal"] == 1

    def told(result: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in result["metrics"].items() if "latency" not in name}

    assert told(plugged.again) == told(plugged.result)


def test_a_plugin_that_prints_and_starts_programs_breaks_no_pipe(plugged: Plugged) -> None:
    assert plugged.metrics["chatterbox"] == 0
    for line in ('{"type": "result"}', "not JSON", "a plugin was here"):
        assert line in plugged.log


def test_a_metric_without_a_value_is_null_with_its_reason_and_the_others_stand(
    plugged: Plugged,
) -> None:
    missing = {name for name, value in plugged.metrics.items() if value is None}
    mind = "changes_its_mind"
    assert missing == {"raises", "bad_text", "leaves", "nothing", "words", f"{mind}/first"}
    assert plugged.metrics[f"{mind}/kept"] == 2
    warnings = plugged.result["warnings"]
    expected = [
        r"metric raises has no value: IndexError: list .* \(metric_plugins.py, line \d+\)",
        r"metric bad_text has no value: RuntimeError: \? \? .*\.\.\. \(metric_plugins.py, .*",
        r"metric leaves has no value: SystemExit: 7 \(metric_plugins.py, line \d+\)",
        r"metric nothing has no value: is nan",
        r"metric words has no value: is a str, not a number",
        r"metric changes_its_mind/first has no value: was not returned",
        r"metric changes_its_mind/later: not returned for the first image, so left out",
    ]
    assert len(warnings) == len(expected), warnings
    for warning, pattern in zip(warnings, expected, strict=True):
        assert re.fullmatch(pattern, warning), warning
    assert "Traceback" in plugged.log
    assert f"running the metric plugin {PLUGINS}:leaves" in plugged.log


def test_the_plugin_that_is_shown_runs(plugged: Plugged) -> None:
    assert {name for name in plugged.metrics if name.startswith("deployed")} == {
        "deployed/precision",
        "deployed/recall",
        "deployed/f1",
    }
