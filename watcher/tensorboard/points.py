"""Points: which evaluations belong on which curve. Reads the database, and only that."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import msgspec

from watcher.decision.metric import Values
from watcher.store import queries
from watcher.store.reading import Reader

# Before workers told which metrics the OD API does not have there was this one.
_OWN_METRICS = ("latency_ms",)
OWN_PREFIX = "checkpoint_watcher/"
EARLIER_PREFIX = "earlier-"
_AP, _NOTHING_MEASURED = "Precision/mAP", -1.0
_APS_OF_MODEL_GARDEN = ("AP", "mask_AP")


class Point(msgspec.Struct, frozen=True):
    """One evaluation that is to be seen.

    Attributes:
        name: The eval input's, by which the OD API names the folder; it may be empty.
        earlier: The folder inside that for points of another evaluation than the present one, or
            of an earlier life of the trainer; empty for the present ones.
        identity: 16 hexadecimal digits, another one for another evaluation.
    """

    name: str
    earlier: str
    step: int
    identity: str
    evaluation_id: int
    wall_time: float


class Content(msgspec.Struct, frozen=True):
    """What one evaluation shows.

    Attributes:
        scalars: By tag; NaN where the OD API says NaN. What it says to be -1, because there was
            nothing to measure, is no point: it would be a flat line, or a fall in a curve.
        pictures: Folder of PNG files named after their tags, None when there are none.
    """

    scalars: dict[str, float]
    pictures: str | None


def points(reader: Reader) -> list[Point]:
    """Return the points of all curves.

    Raises:
        StoreError: the database cannot be read.
    """
    rows = queries.with_steps(reader)
    # A row that was made anew after the database was lost does not tell; its like do.
    names = {row["fingerprint"]: name for row in rows if (name := _name(row)) is not None}
    # Of each eval input the evaluation counts that was made last, or is the run's now.
    current = {names[row["fingerprint"]]: row["fingerprint"] for row in rows if _known(row, names)}
    present = reader.run()["fingerprint"]
    if present in names:
        current[names[present]] = present
    rows = [row for row in rows if _known(row, names)]
    newest: dict[str, int] = {}
    for row in rows:
        newest[row["fingerprint"]] = max(row["generation"], newest.get(row["fingerprint"], 1))
    found = {}
    for row in sorted(rows, key=lambda row: (row["checkpoint_id"], row["evaluated_at"])):
        name, of, life = names[row["fingerprint"]], row["fingerprint"], row["generation"]
        earlier = f"{EARLIER_PREFIX}{of[:8]}"
        if current[name] == of:
            earlier = f"{EARLIER_PREFIX}generation-{life}" if life < newest[of] else ""
        found[name, earlier, row["global_step"]] = _point(name, earlier, row)
    return list(found.values())


def content(reader: Reader, point: Point, *, categories: bool = False) -> Content:
    """Return what a point shows, under the OD API's tags; those it has not are under OWN_PREFIX.

    Args:
        reader: The database.
        point: Which one.
        categories: With each category's AP, too.

    Raises:
        StoreError: the database cannot be read.
    """
    details = reader.details_of(point.evaluation_id)
    own = set(details.get("own_metrics") or _OWN_METRICS)
    values = reader.values_of(point.evaluation_id)
    named = {name: value for (name, of), value in values.items() if not of}
    if categories:
        named |= _by_category(values)
    scalars = dict(_scalars(named.items(), own))
    return Content(scalars, details.get("visualizations"))


def pictures_of(reader: Reader, point: Point) -> str | None:
    """Return the `pictures` of a point's content, without reading its values."""
    pictures: str | None = reader.details_of(point.evaluation_id).get("visualizations")
    return pictures


def _by_category(values: Values) -> dict[str, float | None]:
    """Return each category's AP under the OD API's own name for it."""
    of_od_api = {
        f"{name.removesuffix(_AP)}PerformanceByCategory/mAP/{of}": value
        for (name, of), value in values.items()
        if of and name.endswith(_AP)
    }
    # Model Garden has none of its own.
    return of_od_api | {
        f"{OWN_PREFIX}{name}/{of}": value
        for (name, of), value in values.items()
        if of and name in _APS_OF_MODEL_GARDEN
    }


def _scalars(
    values: Iterable[tuple[str, float | None]], own: set[str]
) -> Iterable[tuple[str, float]]:
    for name, value in values:
        if value == _NOTHING_MEASURED and name not in own and not name.startswith("Loss/"):
            continue
        if name not in own:
            # Recorded is NULL: SQLite has no NaN, which the OD API's loop writes.
            yield name, float("nan") if value is None else value
        elif value is not None:
            yield OWN_PREFIX + name, value


def _name(row: dict[str, Any]) -> str | None:
    """Return the folder's name as the OD API gives it, None where the row does not tell."""
    if row["eval_name"] is not None:
        return str(row["eval_name"])
    if row["eval_input"] is None:
        return None
    # Before workers told the name, one without a name was called by its number.
    return "" if str(row["eval_input"]).isdigit() else str(row["eval_input"])


def _known(row: dict[str, Any], names: dict[str, str]) -> bool:
    """Say whether there is a folder for a row: a name must not lead out of that of all."""
    path = PurePosixPath(name := names.get(row["fingerprint"], ".."))
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _point(name: str, earlier: str, row: dict[str, Any]) -> Point:
    identity = "\n".join((row["sha256"] or "", row["fingerprint"], row["evaluated_at"]))
    return Point(
        name=name,
        earlier=earlier,
        step=row["global_step"],
        identity=hashlib.sha256(identity.encode()).hexdigest()[:16],
        evaluation_id=row["id"],
        wall_time=datetime.fromisoformat(row["evaluated_at"]).timestamp(),
    )
