"""Changes: what one evaluation measured, and how another differs from it. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from watcher.decision.metric import CATEGORY_NAMES, LATENCY, SHORT_NAMES, lower_is_better
from watcher.decision.ties import Difference, Draws, difference

# So little is the rounding of a sum in another order, and no change.
_ROUNDING = 1e-12


class Measured(msgspec.Struct, frozen=True):
    """One evaluation and all it recorded.

    Attributes:
        row: `run, checkpoint, global_step, sha256, score, evaluated_at, generation`.
        overall: Metric to value; None where it was not finite.
        categories: Metric to category to value.
        random_metrics: Those of the metrics that are drawn at random in part.
        deterministic: False when the device gave two results for one batch; None when unknown.
        cost: What a pass takes, `latency_ms` with its spread and whether the device was shared.
    """

    row: Mapping[str, Any]
    overall: dict[str, float | None]
    categories: dict[str, dict[str, float | None]]
    random_metrics: tuple[str, ...] = ()
    deterministic: bool | None = None
    cost: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @property
    def title(self) -> str:
        """The checkpoint and its step, and of which generation it is if that is not the first."""
        life = self.row.get("generation", 1)
        said = f", generation {life}" if life > 1 else ""
        return f"{self.row['checkpoint']} (step {self.row['global_step']}{said})"

    @property
    def names(self) -> list[str]:
        """The metrics that there are of categories."""
        return list(self.categories)

    @property
    def category_names(self) -> list[str]:
        """The categories, by name."""
        return sorted({category for values in self.categories.values() for category in values})

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data with stable names."""
        row = {name: value for name, value in self.row.items() if not name.endswith("_id")}
        return {
            **row,
            "metrics": self.overall,
            "categories": self.categories,
            "reproducible": {
                name: False if name in self.random_metrics else self.deterministic
                for name in self.overall
                if name != LATENCY
            },
            "cost": self.cost,
        }

    def remark(self, name: str) -> str:
        """Say how far a metric can be relied on, empty where it is the same each time."""
        if name in self.random_metrics:
            return "drawn at random in part"
        spread = self.cost.get("latency_ms_spread")
        if name != LATENCY or spread is None:
            return ""
        return f"spread {spread:.2g}" + ", device shared" * bool(self.cost.get("latency_shared"))


class Change(msgspec.Struct, frozen=True):
    """One metric of two evaluations.

    Attributes:
        metric: As it was recorded.
        category: The category, None for an overall metric.
        old: Its value before; None when there is none.
        new: Its value after.
        paired: How sure the change is, None where that is not known.
    """

    metric: str
    category: str | None
    old: float | None
    new: float | None
    paired: Difference | None = None

    @property
    def label(self) -> str:
        """How people name it."""
        return f"{short_name(self.metric)}[{self.category}]" if self.category else self.metric

    @property
    def change(self) -> float | None:
        """New minus old; None where one of them measured nothing, which COCO writes as -1."""
        if self.old is None or self.new is None or -1 in (self.old, self.new):
            return None
        return self.new - self.old

    @property
    def gain(self) -> float:
        """How much better it is now: the change, turned round where less is better."""
        change = self.change or 0.0
        return -change if lower_is_better(self.metric) else change

    @property
    def is_same(self) -> bool:
        """True for a difference that is the rounding of the figures alone."""
        return abs(self.gain) <= _ROUNDING * max(1.0, abs(self.old or 0.0), abs(self.new or 0.0))

    @property
    def is_told(self) -> bool | None:
        """Whether the eval set tells the two apart, None where that is not known."""
        return self.paired.is_told if self.paired else None

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data with stable names.

        `better` is None where nothing changed; `low` and `high` are the ends of the change's
        interval, `told` is whether it leaves 0 out, each None where that is not known.
        """
        return {
            "metric": self.metric,
            "category": self.category,
            "from": self.old,
            "to": self.new,
            "change": self.change,
            "better": None if self.is_same else self.gain > 0,
            "low": self.paired.low if self.paired else None,
            "high": self.paired.high if self.paired else None,
            "told": self.is_told,
        }


def measured(
    row: Mapping[str, Any],
    values: Mapping[tuple[str, str], float | None],
    details: Mapping[str, Any] | None = None,
) -> Measured:
    """Return an evaluation in the form that is shown; `details` is what the worker told besides."""
    categories: dict[str, dict[str, float | None]] = {}
    for (name, category), value in values.items():
        if category:
            categories.setdefault(name, {})[category] = value
    overall = {name: value for (name, category), value in values.items() if not category}
    details = details or {}
    return Measured(
        row,
        overall,
        categories,
        tuple(details.get("random_metrics") or ()),
        details.get("deterministic"),
        details.get("cost") or {},
    )


def changes(
    old: Measured, new: Measured, draws: tuple[Draws, Draws] | None = None
) -> tuple[list[Change], list[Change]]:
    """Return the overall changes and those of categories, largest gains and losses first.

    Precision and recall come before losses and costs, whose figures are of another size.

    Args:
        old: The evaluation that is compared with.
        new: That which is compared.
        draws: Their replicates, where both have some.
    """
    overall = [
        Change(name, None, old.overall.get(name), new.overall.get(name))
        for name in {**old.overall, **new.overall}
    ]
    categories = [
        Change(name, category, *_of_category((old, new), name, category))
        for name in {**old.categories, **new.categories}
        for category in {**old.categories.get(name, {}), **new.categories.get(name, {})}
    ]
    paired = [[_pair(one, draws) for one in some] for some in (overall, categories)]
    overall, categories = (sorted(some, key=_order) for some in paired)
    return overall, categories


def _of_category(
    both: tuple[Measured, Measured], name: str, category: str
) -> tuple[float | None, float | None]:
    old, new = (one.categories.get(name, {}).get(category) for one in both)
    return old, new


def _pair(change: Change, draws: tuple[Draws, Draws] | None) -> Change:
    """Return a change with its interval, where both evaluations have replicates on equal draws."""
    if draws is None or change.change is None or draws[0].identity != draws[1].identity:
        return change
    key = (change.metric, change.category or "")
    old, new = (one.values.get(key) for one in draws)
    if old is None or new is None:
        return change
    return replace(change, paired=difference(new, old, change.change))


def short_name(metric: str) -> str:
    """Return `AP50` and the like for what a category's metric is recorded as, else its name."""
    return next((short for short, names in CATEGORY_NAMES.items() if metric in names), metric)


def short_names(metrics: Collection[str]) -> dict[str, str]:
    """Return for what was recorded the short names that `--metric` takes, where there are any."""
    found: dict[str, str] = {}
    for short, names in SHORT_NAMES.items():
        meant = next((name for name in names if name in metrics), None)
        if meant:
            found.setdefault(meant, short)
    return found


def _order(change: Change) -> tuple[bool, bool, float, str, str]:
    unlike = lower_is_better(change.metric)
    size = abs(change.change) if change.change is not None else 0.0
    if unlike and size:
        assert change.old is not None and change.new is not None
        size /= max(abs(change.old), abs(change.new))
    known = change.change is not None and math.isfinite(size)
    return (not known, unlike, -size, change.metric, change.category or "")
