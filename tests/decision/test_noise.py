"""What two evaluations of one checkpoint do not agree on is said, where it decides something."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, cli, wait_until

from watcher.config import make_settings
from watcher.config.policies import boards
from watcher.decision.board import Board
from watcher.decision.noise import latency_doubt, random_doubts
from watcher.types import ScoredCheckpoint

MAP, LOSS, LATENCY = "DetectionBoxes_Precision/mAP", "Loss/total_loss", "latency_ms"
DRAWN = ["Loss/RPNLoss/localization_loss", "Loss/RPNLoss/objectness_loss", LOSS]


def board(**settings: Any) -> Board:
    given = make_settings({"model_dir": "/m", "pipeline_config": "p", **settings}, {})
    (made,) = boards(given.run, given.ranking)
    return made


def row(number: int, score: float, latency: float | None) -> ScoredCheckpoint:
    values = {(MAP, ""): score, (LATENCY, ""): latency}
    name = f"ckpt-{number}"
    return ScoredCheckpoint(number, number, name, 100 * number, name, score, "", values=values)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, []),
        ({"metric": "loss"}, [LOSS, "best/ is ranked and an early stop decided by loss"]),
        ({"metric": "mAP - 'Loss/RPNLoss/objectness_loss'"}, [DRAWN[1], "best/ is ranked and"]),
        ({"tie_break": ["loss"]}, [LOSS, "decided beside its metric by loss"]),
        ({"veto": ["loss:0.1"]}, [LOSS, "decided beside its metric by loss"]),
        ({"metric": "'Loss/classification_loss'"}, []),
    ],
)
def test_what_ranks_or_decides_by_a_metric_drawn_at_random_is_told(
    settings: dict[str, Any], told: list[str]
) -> None:
    doubts = random_doubts([board(**settings)], DRAWN)
    assert len(doubts) == bool(told)
    for part in told:
        assert part in doubts[0]


SPREADS = {1: 0.5, 2: 0.5, 3: 0.5}


@pytest.mark.parametrize(
    ("settings", "rows", "decides"),
    [
        # 0.02 of mAP is more than 0.3 ms: whoever is faster.
        ({"metric": "mAP - 0.002 * latency_ms"}, [(0.52, 10.0), (0.50, 9.7)], False),
        ({"metric": "mAP - 0.1 * latency_ms"}, [(0.52, 10.0), (0.50, 9.7)], True),
        # A difference beyond the spread is one.
        ({"metric": "mAP - 0.1 * latency_ms"}, [(0.52, 10.0), (0.50, 9.0)], False),
        ({"metric": "latency_ms", "mode": "min"}, [(0.5, 10.0), (0.5, 10.1)], True),
        ({"metric": "latency_ms", "mode": "min"}, [(0.5, 10.0), (0.5, 11.0)], False),
        ({"tie_break": ["latency_ms"]}, [(0.5, 10.0), (0.5, 10.1)], True),
        ({"tie_break": ["latency_ms"]}, [(0.5, 10.0), (0.4, 10.1)], False),
        ({"veto": ["latency_ms:0.2"]}, [(0.5, 10.0), (0.6, 10.3)], True),
        ({"veto": ["latency_ms:0.2"]}, [(0.5, 10.0), (0.6, 11.0)], False),
        ({"metric": "mAP"}, [(0.5, 10.0), (0.5, 10.1)], False),
        # Neighbours among the places and the first without one, no others.
        (
            {"metric": "latency_ms", "mode": "min", "top_k": 1},
            [(0, 9.0), (0, 10.0), (0, 10.1)],
            False,
        ),
        (
            {"metric": "latency_ms", "mode": "min", "top_k": 2},
            [(0, 9.0), (0, 10.0), (0, 10.1)],
            True,
        ),
    ],
)
def test_a_latency_that_decides_by_less_than_its_spread_is_told(
    settings: dict[str, Any], rows: list[tuple[float, float]], decides: bool
) -> None:
    seen = [row(number, *values) for number, values in enumerate(rows, start=1)]
    for order in (seen, seen[::-1]):
        doubt = latency_doubt(board(**settings), order, SPREADS)
        assert (doubt is not None) == decides, doubt


def test_a_latency_without_a_spread_and_one_that_was_not_measured_decide_nothing() -> None:
    fastest = board(metric="latency_ms")
    rows = [row(1, 0.5, 10.0), row(2, 0.5, 10.1)]
    assert latency_doubt(fastest, rows, {}) is None
    gone = replace(rows[1], values={(MAP, ""): 0.5})
    assert latency_doubt(fastest, [rows[0], gone], SPREADS) is None


def save(watcher: Watcher, count: int) -> None:
    manager = Manager(watcher.model_dir)
    for number in range(1, count + 1):
        manager.save(100 * number, model_tensors(1000, str(number)))


def test_a_run_ranked_by_a_random_metric_says_so_at_its_start_and_wherever_it_is_shown(
    watcher: Watcher, tmp_path: Path
) -> None:
    save(watcher, 1)
    told = "Loss/total_loss is drawn at random in part"
    said = {"STUB_RANDOM": json.dumps([LOSS]), "STUB_DETAILS": '{"deterministic": true}'}
    watcher.start("--metric", "loss", "--mode", "min", **said)
    wait_until(lambda: watcher.states() == {"ckpt-1": "scored"}, "scored")
    assert watcher.log.read_text().count(told) == 1
    assert told in cli("status", watcher.model_dir).stdout.replace("\n", " ")
    shown = cli("metrics", watcher.model_dir).stdout
    (line,) = [line for line in shown.splitlines() if line.startswith(LOSS)]
    assert line.endswith("drawn at random in part")
    data = json.loads(cli("metrics", watcher.model_dir, "--json").stdout)
    assert data["reproducible"] == {MAP: True, LOSS: False}
    assert watcher.stop() == 0
    details = json.loads(watcher.query("SELECT details FROM evaluations")[0]["details"])
    assert details["random_metrics"] == [LOSS]
    assert details["deterministic"] is True
    found = json.loads(cli("doctor", watcher.model_dir, "--json").stdout)["findings"]
    assert [told in one["message"] for one in found if one["check"] == "metric"] == [True]


def test_a_run_ranked_by_latency_says_when_its_places_lie_within_the_spread(
    watcher: Watcher,
) -> None:
    save(watcher, 3)
    latencies = {"ckpt-1": [10.0, 0.3], "ckpt-2": [12.0, 0.3], "ckpt-3": [12.2, 0.3]}
    metrics = json.dumps([MAP, LOSS, LATENCY])
    steer = {"STUB_METRICS": metrics, "STUB_LATENCIES": json.dumps(latencies)}
    watcher.start("--metric", LATENCY, "--mode", "min", **steer)
    wait_until(lambda: list(watcher.states().values()) == ["scored"] * 3, "scored")
    told = "latency_ms decides places in best/ within its spread: ckpt-2 (12 ms) and ckpt-3"
    wait_until(lambda: told in "".join(watcher.status().get("doubts", ())), "told in status")
    assert watcher.log.read_text().count("within its spread") == 1
    (line,) = [
        line
        for line in cli("metrics", watcher.model_dir, "ckpt-2").stdout.splitlines()
        if line.startswith(LATENCY)
    ]
    assert line.endswith("spread 0.3, device shared")
