"""The worker's numbers are the OD API's own, on checkpoints of the unmodified trainer."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import PROGRAMS, Client, draw_shapes, reference_metrics, run_program

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(600)]


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished training run and what both sides say about its checkpoints."""

    folder: Path
    ready: dict[str, Any]
    reference: dict[str, Any]
    client: Client


@pytest.fixture(scope="module")
def run(od_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("run")
    draw_shapes(od_python, folder, "train", 64, "--empty-every", 0, "--flags", 0)
    draw_shapes(od_python, folder, "val", 24, "--seed", 2)
    pipeline = folder / "pipeline.config"
    pipeline.write_text((PROGRAMS / "ssd_fixed.config").read_text())
    trainer = ["-m", "object_detection.model_main_tf2", "--pipeline_config_path", pipeline]
    options = ["--model_dir", "model_dir", "--checkpoint_every_n", 100]
    run_program(od_python, *trainer, *options, cwd=folder)
    reference = reference_metrics(od_python, pipeline, "model_dir/ckpt-2", "model_dir/ckpt-3")
    with Client(od_python, folder) as client:
        ready = client.start("pipeline.config")
        assert ready["type"] == "ready", ready
        yield Run(folder, ready, reference, client)


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


def test_one_niced_thread_gives_the_same_numbers(od_python: str, run: Run) -> None:
    with Client(od_python, run.folder) as client:
        ready = client.start("pipeline.config", threads=1, nice=5)
        assert ready["type"] == "ready", ready
        assert os.getpriority(os.PRIO_PROCESS, client.process.pid) >= 5
        result = client.evaluate("model_dir/ckpt-3")
    expected = run.reference["model_dir/ckpt-3"]
    assert {name: result["metrics"][name] for name in expected} == expected
    assert ready["fingerprint"] == run.ready["fingerprint"]


def test_ready_names_the_metrics_a_result_will_have(run: Run) -> None:
    result = run.client.evaluate("model_dir/ckpt-2")
    assert run.ready["metric_names"] == sorted(result["metrics"])
    assert run.ready["categories"] == [{"id": 1, "name": "rect"}, {"id": 2, "name": "ellipse"}]
    assert run.ready["images"] == 24


def test_each_category_has_its_precision_and_recall(run: Run) -> None:
    result = run.client.evaluate("model_dir/ckpt-3")
    name = "DetectionBoxes_Precision/mAP"
    rows = {(m["name"], m["category"]): m["value"] for m in result["category_metrics"]}
    mean = (rows[name, "rect"] + rows[name, "ellipse"]) / 2
    assert mean == pytest.approx(result["metrics"][name], abs=1e-12)
    assert ("DetectionBoxes_Recall/AR@100", "rect") in rows


def test_cost_figures_add_up(run: Run) -> None:
    result = run.client.evaluate("model_dir/ckpt-3")
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


def test_progress_starts_at_zero_and_never_passes_the_total(run: Run) -> None:
    run.client.replies.clear()
    run.client.evaluate("model_dir/ckpt-3")
    progress = [r for r in run.client.replies if r["type"] == "progress"]
    assert progress[0]["done"] == 0
    assert all(r["total"] == 24 and r["done"] <= 24 for r in progress)


def test_a_checkpoint_without_the_model_is_no_score(run: Run) -> None:
    failed = run.client.evaluate("model_dir/ckpt-1")
    assert (failed["type"], failed["code"]) == ("failed", "unmatched_variables")
    assert failed["permanent"]
    assert "_box_predictor" in failed["message"]


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
