"""Bucket: whether a MODEL_DIR in a bucket can be listed and read, and what that costs.

For `--publish` it puts one small object of its own there, and deletes it again.
"""

from __future__ import annotations

import secrets
import time

from watcher.config.bucket import Place
from watcher.config.source import SourceSettings
from watcher.doctor.cadence import newest
from watcher.doctor.finding import Finding, duration
from watcher.errors import CorruptCheckpoint, ModelDirError
from watcher.protocols import CheckpointSource
from watcher.sources.object_store import ObjectError, ObjectFolder

# What Amazon and Google ask for a million lists in their usual regions, in USD.
_USD_A_MILLION = 5.0
_MONTH_SECONDS = 30 * 24 * 3600


def model_dir(source: CheckpointSource, settings: SourceSettings) -> list[Finding]:
    """Say whether the bucket can be listed, and its newest checkpoint be read."""
    try:
        source.require(may_be_empty=settings.wait_for_model_dir)
        found = source.scan()
    except ModelDirError as error:
        what, _, remedy = error.message.partition("; ")
        return [Finding("model_dir", "error", what, error.hint or remedy or None)]
    lists = _MONTH_SECONDS / settings.poll_seconds
    price = Finding(
        "polling",
        "ok",
        f"a list each {settings.poll_seconds:g} s is {lists:,.0f} a month, about"
        f" {lists / 1e6 * _USD_A_MILLION:.2f} USD",
    )
    if not found:
        text = f"{source} can be listed, and there is no checkpoint in it yet"
        return [Finding("model_dir", "ok", text), price]
    last = newest(found)
    age = duration(max(0.0, time.time() - last.written_at))
    text = f"{len(found)} checkpoints, {last.name} written {age} ago"
    return [Finding("model_dir", "ok", text), *_readable(source, last.name), price]


def _readable(source: CheckpointSource, name: str) -> list[Finding]:
    try:
        source.read_index(name)
    except (FileNotFoundError, CorruptCheckpoint):  # of no concern here
        return []
    except OSError as error:
        what, _, remedy = str(error).partition("; ")
        text = f"{name} cannot be read, though it is listed: {what}"
        return [Finding("model_dir", "error", text, remedy or None)]
    return []


def publishing(place: Place, settings: SourceSettings) -> list[Finding]:
    """Try to put and to delete an object where `--publish` will."""
    folder, name = ObjectFolder(place, settings), f".checkpoint-watcher-{secrets.token_hex(6)}"
    try:
        folder.put(name, b"")
        folder.delete(name)
    except ObjectError as error:
        text = f"best/ cannot be published: {error.what}"
        return [Finding("publish", "error", text, error.remedy or None)]
    return [Finding("publish", "ok", f"objects can be put into {place}, and deleted")]
