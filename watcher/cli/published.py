"""What a watcher elsewhere published of a run in a bucket: its `best.json`, and why to stop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import msgspec

from watcher.cli.options import print_json
from watcher.config import ENVIRONMENT_PREFIX
from watcher.config.bucket import Place, as_typed, parse_place
from watcher.config.source import SourceSettings
from watcher.errors import ConfigError, StoreError

_FOLDERS = ("", "best")


def show_published(folder: Path, *, json_output: bool) -> None:
    """Print what `--publish` wrote into the folder of a URL, or into best/ in it.

    Raises:
        StoreError: there is nothing, or it cannot be read.
        ConfigError: the URL is wrong.
    """
    url = as_typed(folder)
    try:
        place = parse_place(url)
    except ValueError as error:
        raise ConfigError(f"model_dir ({url}) is invalid: {error}") from error
    for name in _FOLDERS:
        prefix = "/".join(part for part in (place.prefix, name) if part)
        at = Place(place.scheme, place.bucket, prefix)
        if told := _read(at):
            board, stop = told
            break
    else:
        raise StoreError(
            f"no best.json is published in {url}, nor in {url}/best",
            hint="`run --publish URL` writes one; on the machine that watches give the state"
            " folder, which `run` got as --state-dir",
        )
    if json_output:
        print_json({"published": str(at), "best": board, "stop": stop})
        return
    click.echo(f"{board.get('run')}  ranked by {board.get('metric')} ({board.get('mode')})")
    if stop:
        click.echo(f"stop     {stop.get('message') or stop.get('reason')}")
    click.echo(f"\nPublished: {at}\nrank  {'checkpoint':<12}{'step':>9}  score")
    for row in board.get("checkpoints", ()):
        score = row.get("score")
        rank, name, step = (_shown(row.get(key)) for key in ("rank", "checkpoint", "global_step"))
        shown = f"{score:.6f}" if isinstance(score, int | float) else _shown(score)
        click.echo(f"{rank:>4}  {name:<12}{step:>9}  {shown}")
    click.echo("\nAll else is in the database, on the machine that watches.")


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


def _read(place: Place) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
    """Return `best.json` and `EARLY_STOP` as they are there; None where there is no best.json."""
    from watcher.sources.object_store import ObjectError, ObjectFolder

    given = {
        name: os.environ[variable]
        for name in ("endpoint_url", "region", "anonymous")
        if (variable := ENVIRONMENT_PREFIX + name.upper()) in os.environ
    }
    try:
        folder = ObjectFolder(place, msgspec.convert(given, SourceSettings, strict=False))
        found = [folder.find(name) for name in ("best.json", "EARLY_STOP")]
        board, stop = (msgspec.json.decode(folder.read(one)) if one else None for one in found)
    except ObjectError as error:
        raise StoreError(error.what, hint=error.remedy or None) from error
    except msgspec.DecodeError as error:
        raise StoreError(f"{place}/best.json cannot be read: {error}") from error
    return (board, stop) if isinstance(board, dict) else None
