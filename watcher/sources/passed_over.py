"""Passed over: what looks like a checkpoint beside those that are evaluated, why, and what to do.

Only what the trainer saves by its format is evaluated: `ckpt-1`, `ckpt-2` and so on, regular files
in MODEL_DIR itself. Whatever else a checkpoint may be called, silence about it would be taken for
"none is there".
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from watcher.protocols import CheckpointFormat

_INDEX = re.compile(r"(?P<prefix>.+)\.index(?P<more>.*)", re.DOTALL)
_DATA = re.compile(r"(.+)\.data-[0-9]{5}-of-[0-9]{5}", re.DOTALL)
_TF1 = re.compile(r"model\.ckpt(-[0-9]+)?")
_SHOWN = 3
_FOLDERS = 100
# The trainer writes data before the index, and deletes the index before the data.
_SAVING_SECONDS = 60.0
_OURS = ("best", "kept", "watcher", "eval")
# Into these Model Garden's trainer saves, where it evaluates itself.
_GARDENS = ("best_ckpt", "ema_checkpoints")
_OUR_FILES = ("best.json", "kept.json", "watcher.db")


class Entry(msgspec.Struct, frozen=True):
    """A file in MODEL_DIR, or in a folder in it, as far as its name and kind say.

    Attributes:
        name: Relative to MODEL_DIR, with at most one folder.
        is_link: It is a symbolic link.
        written_at: Seconds since the epoch.
    """

    name: str
    is_link: bool = False
    written_at: float = 0.0


class PassedOver(msgspec.Struct, frozen=True):
    """Checkpoints that are not evaluated for one reason.

    Attributes:
        kind: A word for the reason.
        names: Their prefixes.
        why: The reason, as a sentence without its subject.
        remedy: What to do.
    """

    kind: str
    names: tuple[str, ...]
    why: str
    remedy: str

    def __str__(self) -> str:
        more = f" and {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
        return f"not evaluated: {', '.join(self.names[:_SHOWN])}{more}: {self.why}"


_REASONS: dict[str, tuple[str, str]] = {
    "exported": (
        "what a training starts from, as the OD API's exporter and the model zoo name it; a"
        " trainer's own begin with {first}",
        "to evaluate it, {as_ours}, and give that as MODEL_DIR",
    ),
    "tf1": (
        "named as TensorFlow 1 does, whose checkpoints the OD API cannot restore in TensorFlow 2",
        "if TensorFlow 2 saved it, {as_ours}, and give that as MODEL_DIR",
    ),
    "name": (
        "{saver}, and no other name is looked at",
        "if one is of such a trainer, {as_ours} (the next as {second}), and give that as MODEL_DIR",
    ),
    "own best": (
        "what Model Garden keeps by itself, one checkpoint that it overwrites, and in best_ckpt/"
        " without the optimizer's state",
        "the watcher keeps the best of all in best/",
    ),
    "copy": (
        "more follows in the name after .index",
        "if it is a whole checkpoint, give its files the names {any}.index and {any}.data-...",
    ),
    "link": (
        "symbolic links are not followed",
        "give the folder that the files lie in, or copy them (cp -L)",
    ),
    "folder": (
        "only MODEL_DIR itself is looked at, not the folders in it",
        "give that folder as MODEL_DIR",
    ),
    "no index": (
        "data without an index, half saved or half deleted",
        "nothing can restore it; delete it when nobody needs it",
    ),
}
_AS_OURS = "copy the files as {0}.index and {0}.data-... into a folder of their own"


def passed_over(entries: Iterable[Entry], naming: CheckpointFormat, now: float) -> list[PassedOver]:
    """Return the checkpoints of a listing that are not evaluated, by reason. Pure.

    What is evaluated, or has another outcome of its own, is not among them.

    Args:
        entries: What `listing` returns.
        naming: What the trainer calls its checkpoints.
        now: Seconds since the epoch; data of a save that may be under way lacks no index yet.
    """
    indexes: dict[str, tuple[str, Entry]] = {}
    data: dict[str, float] = {}
    for entry in entries:
        if found := _DATA.fullmatch(entry.name):
            data[found[1]] = entry.written_at
        elif found := _INDEX.fullmatch(entry.name):
            indexes[entry.name] = (found["prefix"], entry)
    found_by: dict[str, list[str]] = {kind: [] for kind in _REASONS}
    for prefix, entry in indexes.values():
        if kind := _kind(prefix, entry, naming, whole=prefix in data):
            found_by[kind].append(entry.name if kind == "copy" else prefix)
    for prefix, written_at in data.items():
        name = Path(prefix).name
        is_old = now - written_at > _SAVING_SECONDS
        if is_old and naming.number(name) and f"{prefix}.index" not in indexes:
            found_by["no index"].append(prefix)
    first = naming.name(1)
    words = {"first": first, "second": naming.name(2), "any": f"{naming.stem}N"}
    saves = f"the OD API's trainer saves {first}, {words['second']} and so on"
    by_step = f"Model Garden's trainer saves {words['any']} with the step for N"
    words["saver"] = saves if naming.counts_saves else by_step
    words["as_ours"] = _AS_OURS.format(first)
    return [
        PassedOver(
            kind,
            tuple(sorted(names, key=_in_order)),
            *(text.format_map(words) for text in _REASONS[kind]),
        )
        for kind, names in found_by.items()
        if names
    ]


def _kind(prefix: str, entry: Entry, naming: CheckpointFormat, *, whole: bool) -> str | None:
    """Return the reason why an index is not looked at; None when it is, or is no checkpoint's."""
    folder, _, name = prefix.rpartition("/")
    is_whole_name = entry.name == f"{prefix}.index"
    if not is_whole_name:
        return "copy" if name.startswith(naming.stem) and not folder else None
    if folder in _GARDENS and not naming.counts_saves:
        return "own best"
    if naming.number(name):
        return "folder" if folder else "link" if entry.is_link else None
    if name == naming.name(0):
        return "exported"
    if not whole and "ckpt" not in name:
        return None  # an index of something else
    return "tf1" if _TF1.fullmatch(name) else "name"


def _in_order(prefix: str) -> tuple[str, int, str]:
    stem, _, number = prefix.rpartition("-")
    return (stem, int(number), "") if number.isdecimal() else (prefix, 0, number)


def listing(model_dir: Path) -> list[Entry]:
    """List what may be a checkpoint's files in a folder, and in the folders in it.

    Folders of the run's own are left out, and so is what cannot be listed.
    """
    entries: list[Entry] = []
    for name in _list(model_dir, "", entries)[:_FOLDERS]:
        if not is_ours(model_dir / name) and not name.endswith("_temp"):
            _list(model_dir / name, f"{name}/", entries)
    return entries


def is_ours(folder: Path) -> bool:
    """Tell whether a folder of a run's MODEL_DIR is the watcher's, by its name or what is in it."""
    return folder.name in _OURS or any((folder / file).exists() for file in _OUR_FILES)


def _list(folder: Path, before: str, entries: list[Entry]) -> list[str]:
    """Add the files of a folder to `entries`; returns the names of the folders in it."""
    folders = []
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            is_data = ".data-" in entry.name
            with contextlib.suppress(OSError):
                if is_data or ".index" in entry.name:
                    status = entry.stat(follow_symlinks=False)
                    is_link = stat.S_ISLNK(status.st_mode)
                    if is_link or stat.S_ISREG(status.st_mode):
                        entries.append(Entry(before + entry.name, is_link, status.st_mtime))
                elif not before and entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
    return sorted(folders)


def look(model_dir: Path, naming: CheckpointFormat) -> list[PassedOver]:
    """Return what of a folder is passed over now."""
    return passed_over(listing(model_dir), naming, time.time())
