"""The report's images: those that changed most from one checkpoint to another, side by side."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from watcher.errors import WatcherError
from watcher.store.reading import Reader
from watcher.tensorboard.pictures import read_pictures
from watcher.view.changes import Measured
from watcher.view.images import ImageChange, changes_between, main_metric, most_changed
from watcher.web.markup import Markup, joined, tag

# Of all pictures: a report is sent around.
_MOST_BYTES = 12 << 20


class ChangedImages(msgspec.Struct, frozen=True):
    """Images that changed between two checkpoints.

    Attributes:
        before: The one.
        after: The other.
        changes: The images that gained and lost the most.
        pictures: PNGs of an image by both, by its name; only of those that TensorBoard has.
    """

    before: Measured
    after: Measured
    changes: list[ImageChange]
    pictures: Mapping[str, tuple[bytes, bytes]]


def read_changed_images(
    reader: Reader, eval_dir: Path, before: Measured, after: Measured
) -> ChangedImages | None:
    """Return what changed from one evaluation to another, None where nothing is kept of that.

    Raises:
        StoreError: the database cannot be read now.
    """
    try:
        changes = changes_between(reader, before, after)
    except WatcherError:
        return None
    every = _tags(reader, before), _tags(reader, after)
    names = [one.name for one in changes if one.name in every[0] and one.name in every[1]]
    found = []
    for measured, tags in zip((before, after), every, strict=True):
        wanted = {tags[name] for name in names}
        shown: dict[str, bytes] = {}
        # What is gone or cannot be read is a picture less.
        with contextlib.suppress(OSError, ImportError):
            shown = read_pictures(reader, eval_dir, measured.row["evaluation_id"], wanted)
        found.append(shown)
    pictures = {
        name: (found[0][every[0][name]], found[1][every[1][name]])
        for name in names
        if every[0][name] in found[0] and every[1][name] in found[1]
    }
    return ChangedImages(before, after, changes, pictures)


def changed_images(shown: ChangedImages) -> Markup:
    """Return a table of the images that changed most, and the pictures that there are."""
    metric = main_metric(shown.before)
    told = (
        f"from {shown.before.row['checkpoint']} to {shown.after.row['checkpoint']}: what each of"
        f" {len(shown.changes)} images adds to the change of {metric}"
    )
    rows = [
        tag(
            "tr",
            tag("td", one.name, data_name="image "),
            tag("td", f"{one.gain:+.5f}", data_name="gain ", class_="number"),
        )
        for one in most_changed(shown.changes)
    ]
    heads = tag("tr", tag("th", "image"), tag("th", "gain", class_="number"))
    table = tag("table", tag("thead", heads), rows)
    return joined([tag("p", told, class_="quiet"), table, *_pairs(shown)])


def _pairs(shown: ChangedImages) -> list[Markup]:
    """Return the pictures of those that changed most first, as many as fit."""
    pairs, taken = [], 0
    ordered = sorted(shown.changes, key=lambda one: -abs(one.gain))
    for one in ordered:
        both = shown.pictures.get(one.name)
        taken += sum(map(len, both)) if both else 0
        if taken > _MOST_BYTES:
            break
        if both:
            names = shown.before.row["checkpoint"], shown.after.row["checkpoint"]
            pictures = [_picture(png, name) for png, name in zip(both, names, strict=True)]
            said = tag("figcaption", f"{one.name}: {one.gain:+.5f}")
            pairs.append(tag("figure", said, pictures, class_="pair"))
    return pairs


def _picture(png: bytes, checkpoint: str) -> Markup:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return tag(
        "div",
        tag("p", f"{checkpoint}: detections on the left, ground truth on the right"),
        tag("img", src=source, alt=f"Detections of {checkpoint} beside the ground truth"),
    )


def _tags(reader: Reader, measured: Measured) -> dict[str, str]:
    """Return the tags of an evaluation's pictures by the images' names."""
    told = reader.details_of(measured.row["evaluation_id"]).get("pictured")
    return told if isinstance(told, dict) else {}
