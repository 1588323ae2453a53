"""The averages of a run, each beside the best checkpoint that the trainer saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from watcher.decision.averages import by_score
from watcher.decision.metric import Mode, parse_metric
from watcher.store.reading import Reader
from watcher.store.replicates import paired
from watcher.view.fitting import Fitting
from watcher.view.tables import figure, plain_table


def with_gains(reader: Reader) -> list[dict[str, Any]]:
    """Return the view `averages`, each row with what it gains over the best of the trainer's.

    `best` is that one's name; `gain` is positive where the average is better, whichever score is,
    with `gain_low` and `gain_high`, the ends of its paired 95 % interval; null where not known.
    """
    run, rows = reader.run(), reader.averages()
    mode: Mode = "min" if run["mode"] == "min" else "max"
    best = next(iter(by_score(reader.scored(), mode)), None)
    scored = {row.sha256: row for row in reader.scored_averages()}
    told = []
    for row in rows:
        one = scored.get(row["sha256"])
        gains: dict[str, Any] = dict.fromkeys(("best", "gain", "gain_low", "gain_high"))
        if one and best and one.score is not None and best.score is not None:
            sign = 1 if mode == "max" else -1
            gains |= {"best": best.name, "gain": sign * (one.score - best.score)}
            if found := paired(reader, parse_metric(run["metric"]), one, best):
                ends = sorted((sign * found.low, sign * found.high))
                gains |= {"gain_low": ends[0], "gain_high": ends[1]}
        told.append({**row, **gains})
    return told


def averages_table(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Draw the rows of `with_gains`."""
    texts = ("average", "of", "state", "gain", "in")
    table = plain_table("average", "of", "state", "score", "gain", "in", texts=texts)
    for row in rows:
        table.add_row(
            row["checkpoint"],
            _of(row),
            row["state"] if row["state"] == "scored" or not row["reason"] else row["reason"],
            figure(row["score"], ".6f"),
            _gain(row),
            Path(row["path"]).parent.name if row["path"] else "",
        )
    return Fitting(table, optional=("in",))


def _of(row: dict[str, Any]) -> str:
    parents = str(row["parents"]).replace(",", " ")
    images = row["batch_norm_images"] or row["recompute_batch_norm"]
    return f"{parents}, batch norm of {images} images" if images else parents


def _gain(row: dict[str, Any]) -> str:
    if row["gain"] is None:
        return ""
    if row["gain_low"] is None:
        return f"{row['gain']:+.4f} on {row['best']}"
    ends = f"[{row['gain_low']:+.4f}, {row['gain_high']:+.4f}]"
    return f"{row['gain']:+.4f} {ends} on {row['best']}"
