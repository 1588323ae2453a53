"""Images: which of the eval set make up most of the change between two evaluations."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from watcher.decision.metric import SHORT_NAMES
from watcher.errors import WatcherError
from watcher.store.reading import Reader
from watcher.store.replicates import image_names, influences_of
from watcher.view.changes import Measured
from watcher.view.tables import plain_table

SHOWN = 5
HINT = (
    "it is kept for checkpoints that have a place, and for those evaluated last:"
    " `checkpoint-watcher requeue` has one evaluated again"
)


class ImageChange(msgspec.Struct, frozen=True):
    """One image's part of a change.

    Attributes:
        name: Its source_id, or what else the worker calls it.
        gain: What it adds to the change, to the first order; all together are the change.
    """

    name: str
    gain: float


def image_changes(
    old: Sequence[float], new: Sequence[float], names: Sequence[str], change: float
) -> list[ImageChange]:
    """Return every image's part of a change of the main metric, the largest gain first.

    Args:
        old: The influence of each image on the one evaluation.
        new: That on the other.
        names: What the images are called, in the same order.
        change: Of the metric.
    """
    share = change / max(len(names), 1)
    parts = zip(names, old, new, strict=True)
    found = [ImageChange(name, after - before + share) for name, before, after in parts]
    return sorted(found, key=lambda one: (-one.gain, one.name))


def main_metric(measured: Measured) -> str:
    """Return the metric that influences are of: mAP of boxes, else of masks."""
    for name in (name for short in ("mAP", "mask_mAP") for name in SHORT_NAMES[short]):
        if name in measured.overall:
            return name
    return ""


def changes_between(reader: Reader, before: Measured, after: Measured) -> list[ImageChange]:
    """Return every image's part of the change between two evaluations, the largest gain first.

    Raises:
        WatcherError: nothing is kept of the images of one.
        StoreError: the database cannot be read.
    """
    found = []
    for one in (before, after):
        influences = influences_of(reader, one.row["evaluation_id"])
        if influences is None:
            raise WatcherError(
                f"nothing is kept of the images of {one.row['checkpoint']}", hint=HINT
            )
        found.append(influences)
    named = image_names(reader, reader.fingerprint() or "")
    names = named or [str(place) for place in range(len(found[0]))]
    metric = main_metric(before)
    values = [one.overall.get(metric) for one in (before, after)]
    return image_changes(found[0], found[1], names, (values[1] or 0.0) - (values[0] or 0.0))


def most_changed(changes: Sequence[ImageChange]) -> list[ImageChange]:
    """Return the images with the largest gain, the largest first, then those with a loss."""
    gains = [one for one in changes if one.gain > 0][:SHOWN]
    losses = [one for one in changes if one.gain < 0][-SHOWN:]
    return [*gains, *losses]


def images_table(changes: Sequence[ImageChange], metric: str) -> RenderableType:
    """Draw the images with the largest gain and the largest loss."""
    table = plain_table("image", "gain", texts=("image",))
    for one in most_changed(changes):
        style = "green" if one.gain > 0 else "red"
        table.add_row(one.name, Text(f"{one.gain:+.5f}", style=style))
    title = f"Images that make up most of the change of {metric}, of {len(changes)}"
    return Group(Text(title, style="bold"), table)
