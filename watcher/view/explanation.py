"""View: an explanation, drawn with rich or as JSON. No decision is made here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from msgspec.structs import asdict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from watcher.decision.explain import MOST_LEADERS, Certainty, Explanation, Gain
from watcher.decision.stop import Rule, StopDecision
from watcher.types import ScoredCheckpoint
from watcher.view.fitting import Fitting
from watcher.view.machines import Remark
from watcher.view.tables import difference, plain_table

_SHOWN = MOST_LEADERS
_TO_BEST = "to the best, 95 %"
_NO_STOPPING: dict[str, Any] = {
    **dict.fromkeys(("evaluations", "last", "last_improvement", "evaluations_since")),
    **dict.fromkeys(("waits_for", "min_delta", "stop", "stop_awaits", "first_stop")),
    "rules": [],
}
_OF_DECISION = ("reason", "message", "global_step")


def drawn(
    told: Explanation,
    in_model_dir: Collection[int] = (),
    machines: Sequence[Remark] = (),
    stops_by: str | None = None,
) -> RenderableType:
    """Draw how a board was ranked, and how the stop stands.

    Args:
        told: What is to be drawn.
        in_model_dir: Checkpoint ids of those without a pin that the trainer still has.
        machines: What is to be known of scores by the machine that measured them.
        stops_by: The board that stopping goes by, where that is another one.
    """
    parts: list[RenderableType] = [_heading(told), _board(told, in_model_dir)]
    if (more := len(told.ranking.leaders) - _SHOWN) > 0:
        parts.append(Text(f"and {more} more, with --json", style="dim"))
    for row, why in told.ranking.vetoed[:_SHOWN]:
        parts.append(Text(f"vetoed: {_named(row)}: {why}", style="yellow"))
    if (more := len(told.ranking.vetoed) - _SHOWN) > 0:
        parts.append(Text(f"and {more} more vetoed, with --json", style="yellow"))
    if told.unranked:
        names = ", ".join(row.name for row in told.unranked[:_SHOWN])
        others = f" and {len(told.unranked) - _SHOWN} more" if len(told.unranked) > _SHOWN else ""
        parts.append(Text(f"without a score that can rank: {names}{others}", style="dim"))
    parts += [Text(one.sentence, style="yellow") for one in machines]
    if told.board.contradiction:
        parts.append(Text(told.board.contradiction, style="yellow"))
    if stops_by:
        return Group(*parts, Text(), Text(f"Stopping goes by the first board, {stops_by}"))
    return Group(*parts, Text(), *_stop(told))


def as_json(
    told: Explanation,
    in_model_dir: Collection[int] = (),
    machines: Sequence[Remark] = (),
    stops_by: str | None = None,
) -> dict[str, Any]:
    """Return an explanation as plain data, with stable names; arguments as for `drawn`.

    What is of stopping is null or empty for a board that it does not go by.
    """
    board = told.board
    return {
        "board": board.name,
        "metric": board.metric.text,
        "mode": board.policy.mode,
        "leaders": [
            {
                **_row(row),
                "in_model_dir": row.checkpoint_id in in_model_dir,
                **_standing(told.certainty, row),
            }
            for row in told.ranking.leaders
        ],
        "vetoed": [{**_row(row), "reason": why} for row, why in told.ranking.vetoed],
        "unranked": [row.name for row in told.unranked],
        "machines": [asdict(one) for one in machines],
        "generation": told.generation,
        "stops_by": stops_by or board.name,
        **(_NO_STOPPING if stops_by else _stopping(told)),
    }


def _stopping(told: Explanation) -> dict[str, Any]:
    walked = told.walked
    return {
        "evaluations": walked.evaluations,
        "last": walked.last and _row(walked.last),
        "last_improvement": walked.improved and _row(walked.improved),
        "evaluations_since": walked.since,
        "waits_for": told.early,
        "min_delta": _min_delta(told.certainty.gain),
        "rules": [_named_fields(rule, "reason", "fires", "left", "message") for rule in told.rules],
        "stop": told.decision and _named_fields(told.decision, *_OF_DECISION),
        "stop_awaits": told.awaits,
        "first_stop": told.first_stop and _named_fields(told.first_stop, *_OF_DECISION),
    }


def _heading(told: Explanation) -> Text:
    policy = told.board.policy
    places = "all" if policy.top_k < 0 else str(policy.top_k)
    ranked = told.ranked
    return Text.assemble(
        ("Ranking ", "bold"),
        f"{told.board.folder.name}/ by {told.board.metric.text} ({policy.mode}): {ranked} of"
        f" {ranked + len(told.unranked)} evaluations can rank, {places} places",
    )


def _board(told: Explanation, in_model_dir: Collection[int]) -> RenderableType:
    lives = any(row.generation > 1 for row in told.ranking.leaders)
    life = ("generation",) if lives else ()
    known = told.certainty.standings
    sure = (_TO_BEST, "tie") if len(known) > 1 else ()
    names = ("rank", "checkpoint", *life, "step", "score", "behind", *sure, "files")
    table = plain_table(*names, texts=("checkpoint", "files", *sure))
    best = told.ranking.leaders[0].score if told.ranking.leaders else None
    for place, row in enumerate(told.ranking.leaders[:_SHOWN], start=1):
        assert row.score is not None and best is not None
        behind = "" if place == 1 else difference(row.score, best, 6)
        files = Text("kept") if row.pin else Text("gone", style="red")
        if row.checkpoint_id in in_model_dir:
            files = Text("in MODEL_DIR")  # pinned again when the watcher is started
        figures = [str(row.global_step), f"{row.score:.6f}", behind]
        if sure:
            figures += _told_apart(told.certainty, row)
        table.add_row(
            str(place), row.name, *([str(row.generation)] if lives else []), *figures, files
        )
    return Fitting(table, optional=("behind", "rank", *sure[:1], "step", *life))


def _stop(told: Explanation) -> list[RenderableType]:
    walked = told.walked
    if told.decision:
        head = Text.assemble(
            ("Stopping: yes ", "bold magenta"), f"({told.decision.reason}) {told.decision.message}"
        )
    else:
        head = Text.assemble(("Stopping: no", "bold"), _without_rules(told))
    parts: list[RenderableType] = [head]
    if told.awaits:
        parts.append(Text(f"it waits for {told.awaits}, which may be a gain", style="yellow"))
    if told.generation > 1:
        parts.append(
            Text(
                f"the trainer started over: generation {told.generation} alone is looked at,"
                f" {walked.evaluations} of {told.ranked} evaluations"
            )
        )
    if walked.improved and walked.last:
        parts.append(
            Text(
                f"last improvement: {_named(walked.improved)}; since then {walked.since} of"
                f" {walked.evaluations} evaluations, up to {_named(walked.last)}"
            )
        )
    if told.early and any(rule.guarded for rule in told.rules):
        parts.append(Text(f"rules about scores wait: {told.early}"))
    if told.rules:
        parts.append(_rules(told.rules))
    if told.certainty.gain:
        parts.append(Text(told.certainty.gain.message, style="dim"))
    if told.first_stop and told.decision != told.first_stop:
        first = told.first_stop
        said = f"walked from the start, the first stop was at step {first.global_step}"
        parts.append(Text(f"{said} ({first.reason}): {first.message}", style="dim"))
    return parts


def _without_rules(told: Explanation) -> str:
    """Say why there is no table of rules: none is set, or those about scores have none yet."""
    if told.rules:
        return ""
    names = ", ".join(f"{name} {value:g}" for name, value in told.waiting)
    return f", {names} waits for the first score" if names else ", no rule is set"


def _rules(rules: tuple[Rule, ...]) -> Table:
    names = ("rule", "fires", "left", "because")
    table = plain_table(*names, texts=names)
    for rule in rules:
        fires = Text("yes", style="magenta") if rule.fires else Text("no")
        table.add_row(rule.reason, fires, rule.left, rule.message)
    return table


def _told_apart(known: Certainty, row: ScoredCheckpoint) -> tuple[str, str]:
    """Return the interval of what a checkpoint has more than the best, and whether it is tied."""
    id_ = row.evaluation_id
    found, standing = known.differences.get(id_), known.standings.get(id_)
    ends = f"{found.low:+.4f} to {found.high:+.4f}" if found else ""
    return ends, "tie" if standing and standing.tied and standing.rank_high > 1 else ""


def _standing(known: Certainty, row: ScoredCheckpoint) -> dict[str, Any]:
    id_ = row.evaluation_id
    found, standing = known.differences.get(id_), known.standings.get(id_)
    return {
        "tied": standing and standing.tied,
        "difference": found and {"value": found.value, "low": found.low, "high": found.high},
    }


def _min_delta(gain: Gain | None) -> dict[str, Any] | None:
    """Return what is said of `min_delta`, None where nothing is known."""
    if gain is None:
        return None
    return {
        "gain": gain.least,
        "half_width": gain.half,
        "inside_noise": gain.least < gain.half,
        "between": [row.name for row in gain.between],
    }


def _named(row: ScoredCheckpoint) -> str:
    life = f", generation {row.generation}" if row.generation > 1 else ""
    return f"{row.name} (step {row.global_step}{life}, {row.score:.6g})"


def _row(row: ScoredCheckpoint) -> dict[str, Any]:
    return {
        "checkpoint": row.name,
        "global_step": row.global_step,
        "generation": row.generation,
        "score": row.score,
        "files": row.pin is not None,
    }


def _named_fields(one: Rule | StopDecision, *names: str) -> dict[str, Any]:
    return {name: getattr(one, name) for name in names}
