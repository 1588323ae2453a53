"""Images: which of the eval set make up most of the change between two evaluations. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from watcher.view.tables import plain_table

SHOWN = 5


@dataclass(frozen=True, slots=True)
class ImageChange:
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


def images_table(changes: Sequence[ImageChange], metric: str) -> RenderableType:
    """Draw the images with the largest gain and the largest loss."""
    table = plain_table("image", "gain", texts=("image",))
    gains = [one for one in changes if one.gain > 0][:SHOWN]
    losses = [one for one in changes if one.gain < 0][::-1][:SHOWN]
    for one in [*gains, *losses[::-1]]:
        style = "green" if one.gain > 0 else "red"
        table.add_row(one.name, Text(f"{one.gain:+.5f}", style=style))
    title = f"Images that make up most of the change of {metric}, of {len(changes)}"
    return Group(Text(title, style="bold"), table)
