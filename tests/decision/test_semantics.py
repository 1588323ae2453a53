"""Where other tools stop and what they keep, evaluation by evaluation, beside where we do."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import other_keepers
import other_stoppers
import pytest
from ranked import row
from semantics import INF, NAN, SAME, Keeps, Scores, Stops
from semantics_keeping import KEEPS
from semantics_stopping import STOPS

from watcher.decision.rank import rank
from watcher.decision.stop import should_stop
from watcher.types import ScoredCheckpoint


def evaluations(scores: Scores) -> list[tuple[int, float | None]]:
    return [(100 * number, score) for number, score in enumerate(scores, start=1)]


def ledger(scores: Scores) -> list[ScoredCheckpoint]:
    """Return the rows; what is not finite failed, as it does when weights or losses are not."""
    rows = []
    for step, score in evaluations(scores):
        finite = score is None or math.isfinite(score)
        rows.append(replace(row(step, score if finite else None), not_finite=not finite))
    return rows


def show(tool: Any, scores: Scores, restart: int) -> list[Any]:
    """Show all evaluations to a tool; returns what it said after each."""
    said = []
    for number, (step, score) in enumerate(evaluations(scores)):
        if number and number == restart:
            tool.restart()
        said.append(tool.see(step, score))
    return said


def first_stop(verdicts: Sequence[bool], restart: int) -> int | None:
    counted = enumerate(verdicts, start=1)
    return next((100 * number for number, stop in counted if stop and number > restart), None)


def our_stop(one: Stops) -> int | None:
    rows = ledger(one.scores)
    decided = [should_stop(rows[:n], one.policy) for n in range(1, len(rows) + 1)]
    return first_stop([decision is not None for decision in decided], one.restart)


def name(one: Stops | Keeps) -> str:
    return f"{one.tool.__name__}: {one.case}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("one", STOPS, ids=name)
def test_each_stops_where_the_table_says(one: Stops) -> None:
    said = show(one.tool(**one.settings), one.scores, one.restart)
    assert first_stop(said, one.restart) == one.theirs
    assert our_stop(one) == one.ours


@pytest.mark.parametrize("one", KEEPS, ids=name)
def test_each_keeps_what_the_table_says(one: Keeps) -> None:
    tool = one.tool(**one.settings)
    show(tool, one.scores, one.restart)
    assert tool.holds() == one.theirs
    assert [kept.global_step for kept in rank(ledger(one.scores), one.policy)] == one.ours


@pytest.mark.parametrize("one", [*STOPS, *KEEPS], ids=name)
def test_a_row_says_why_where_the_rules_differ(one: Stops | Keeps) -> None:
    assert one.theirs == one.ours or one.why != SAME


REAL = (
    other_stoppers.KerasEarlyStopping,
    other_keepers.KerasModelCheckpoint,
    other_stoppers.EstimatorNoImprovement,
    other_stoppers.EstimatorThreshold,
    other_keepers.EstimatorBestExporter,
    other_keepers.OrbitNewBestMetric,
    other_keepers.ModelGardenBestCheckpoint,
)


def request(tool: Any, settings: dict[str, Any], scores: Scores, restart: int) -> dict[str, Any]:
    shown = {"evaluations": evaluations(scores), "restart": restart}
    return {"tool": tool.__name__, "settings": settings, **shown}


def random_request(dice: random.Random, tool: Any) -> dict[str, Any]:
    """Settings and scores among which ties, exact gains and odd values are frequent."""
    options: dict[str, dict[str, list[Any]]] = {
        "KerasEarlyStopping": {
            "patience": [0, 1, 2],
            "min_delta": [0, 0.25, -0.25],
            "start_from_epoch": [0, 0, 2],
        },
        "EstimatorNoImprovement": {"max_steps": [100, 200], "min_steps": [0, 300]},
        "EstimatorThreshold": {"threshold": [0.5]},
        "EstimatorBestExporter": {"exports_to_keep": [1, 2]},
        "OrbitNewBestMetric": {"persistent": [True, False]},
    }
    settings = {key: dice.choice(of) for key, of in options.get(tool.__name__, {}).items()}
    settings["mode"] = dice.choice(["max", "min"])
    usual, odd = [0.0, 0.25, 0.5, 0.5, 0.625, 0.75], [-1.0, NAN, INF, -INF]
    scores = [dice.choice(usual + odd) for _ in range(6)]
    return request(tool, settings, scores, dice.choice([0, 3]))


@pytest.mark.tensorflow
def test_the_models_do_what_the_tools_themselves_do(od_python: str, tmp_path: Path) -> None:
    dice = random.Random(20240229)
    by_name = {tool.__name__: tool for tool in REAL}
    rows = [one for one in (*STOPS, *KEEPS) if one.tool in REAL]
    requests = [request(one.tool, one.settings, one.scores, one.restart) for one in rows]
    requests += [random_request(dice, tool) for tool in REAL for _ in range(8)]
    (tmp_path / "requests").write_text(json.dumps(requests))
    (tmp_path / "folder").mkdir()
    program = Path(__file__).parents[1] / "od" / "real_tools.py"
    command = [od_python, str(program), str(tmp_path / "requests"), str(tmp_path / "folder")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (answer,) = re.findall(r"^ANSWER (.*)$", done.stdout, re.MULTILINE)
    for asked, real in zip(requests, json.loads(answer), strict=True):
        model = by_name[asked["tool"]](**asked["settings"])
        said = show(model, [score for _, score in asked["evaluations"]], asked["restart"])
        assert (model.holds() if hasattr(model, "holds") else said) == real, asked
