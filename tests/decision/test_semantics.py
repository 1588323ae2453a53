"""Where we stop and what we keep, on the scores by which `other_tools.md` compares other tools."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from decided import rank, should_stop
from ranked import row

from watcher.config import Settings, load
from watcher.config.policies import boards, stop_policy
from watcher.types import ScoredCheckpoint

TABLES = Path(__file__).with_name("other_tools.md").read_text()


@dataclass(frozen=True)
class Case:
    """One row of a table; `begun` evaluations came before the restart or the resume."""

    name: str
    rows: list[ScoredCheckpoint]
    begun: int
    resumed: bool
    settings: Settings
    there: str
    here: str
    why: str


def cases(heading: str) -> Iterator[Case]:
    section = TABLES.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    for line in re.findall(r"(?m)^\| (.*) \|$", section)[1:]:
        case, scores, tool, _, there, here, settings, why = (
            part.strip() for part in line.split("|")
        )
        given = dict(pair.split("=") for pair in settings.strip("`").split())
        words = scores.split(", ")
        begun = next((place for place, word in enumerate(words) if word in AGAIN), 0)
        yield Case(
            f"{tool}: {case}",
            [checkpoint(100 * n, word) for n, word in enumerate(only_scores(words), start=1)],
            begun,
            "resume" in words,
            load(Settings, {**NEEDED, **given}, {}, None).settings,
            *(there, here, why),
        )


AGAIN = ("restart", "resume")
NEEDED = {"model_dir": "model_dir", "pipeline_config": "pipeline.config"}


def only_scores(words: list[str]) -> list[str]:
    return [word for word in words if word not in AGAIN]


def checkpoint(step: int, word: str) -> ScoredCheckpoint:
    """Return the row; what is not finite failed, as it does when weights or losses are not."""
    score = None if word == "failed" else float(word)
    finite = score is None or math.isfinite(score)
    return replace(row(step, score if finite else None), not_finite=not finite)


STOPS, KEEPS = list(cases("When they stop")), list(cases("What they keep"))


def named(case: Case) -> str:
    return case.name


def test_both_tables_are_read():
    assert (len(STOPS), len(KEEPS)) == (43, 26)


@pytest.mark.parametrize("case", STOPS, ids=named)
def test_it_stops_where_the_table_says(case: Case):
    resumed = 100 * case.begun if case.resumed else -1
    policy = stop_policy(case.settings.ranking, case.settings.stopping, resumed)
    seen = range(case.begun + 1, len(case.rows) + 1)
    stops = (100 * count for count in seen if should_stop(case.rows[:count], policy))
    assert str(next(stops, "no")) == case.here


@pytest.mark.parametrize("case", KEEPS, ids=named)
def test_it_keeps_what_the_table_says(case: Case):
    (board,) = boards(case.settings.run, case.settings.ranking)
    kept = ", ".join(str(one.global_step) for one in rank(case.rows, board.policy))
    assert (kept or "none") == case.here


@pytest.mark.parametrize("case", [*STOPS, *KEEPS], ids=named)
def test_a_row_says_why_where_another_tool_differs(case: Case):
    assert case.there == case.here or case.why
