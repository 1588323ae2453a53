"""Places: what the watcher writes and deletes must be no file of the trainer, nor one of its own.

Asked where settings are given; those that a database recorded are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from watcher.config.bucket import is_url
from watcher.config.policies import averages_path, boards
from watcher.config.run import SENTINEL_NAME
from watcher.config.settings import Settings
from watcher.errors import ConfigError

# What we keep in a state folder. One outside of MODEL_DIR may hold best/ and others beside it, and
# of a bucket it does.
_STATE_NAMES = (
    *("watcher.db*", "*.log*", "*lock", "pins", "requests", "snapshot"),
    *("notified.json", "published.json", "EARLY_STOP.remote", ".*"),
)
# What a trainer writes, whichever it is, and what it is told by.
_TRAINER_FILES = (
    *("checkpoint", "*.index", "*.data-*-of-*", "*ckpt-*", "events.out.*"),
    *("params.yaml", "pipeline.config", "*.pbtxt", "*.tfrecord*", "*.record*"),
)
# The settings that name a file of somebody else.
_FILES = ("pipeline_config", "config_file", "trainer_log")
_TRAINER_FOLDERS = ("train", "eval", "validation")
_HINT = "the watcher writes and removes that file: give it a name of its own"


def refuse_places(settings: Settings) -> None:
    """Raise ConfigError where the sentinel or a folder would take the place of something else."""
    for setting, folder in _folders(settings):
        if _is_in_state(settings, folder):
            raise ConfigError(
                f"{setting} ({folder}) lies in the watcher's state folder"
                f" {settings.run.state_path}",
                hint="give it a folder of its own",
            )
    # That of `train` may be an object, which it only reads.
    if not is_url(settings.run.sentinel) and (why := _taken(settings)):
        raise ConfigError(f"sentinel ({settings.run.sentinel_path}) {why}", hint=_HINT)


def _folders(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield what the watcher writes into beside its state folder, each with what sets it."""
    run = settings.run
    main, *others = boards(run, settings.ranking)
    yield "best_dir", main.folder
    yield "kept_dir", run.kept_path
    yield "eval_dir", run.eval_path
    for board in others:
        yield f"folder of board {board.name}", board.folder


def _taken(settings: Settings) -> str | None:
    """Say whose the sentinel's path is, None where it is free."""
    run = settings.run
    path = run.sentinel_path
    real, model_dir = path.resolve(), run.model_path.resolve()
    for name in _FILES:
        if real in _named(settings, name):
            return f"is {name}"
    for name in (path.name, real.name):
        if any(fnmatch(name, pattern) for pattern in _TRAINER_FILES):
            return f"has the name of a trainer's file, {name}"
    if real.parent == model_dir and real.name in _TRAINER_FOLDERS:
        return f"has the name of a trainer's folder, {real.name}/"
    if _is_in_state(settings, path):
        return f"lies in the watcher's state folder {run.state_path}"
    for setting, folder in [*_folders(settings), ("folder of the averages", averages_path(run))]:
        inside = real.is_relative_to(folder.resolve())
        # Model Garden's event files lie in MODEL_DIR itself. And a folder that is published, or
        # mounted elsewhere, may hold the sentinel under its own name.
        if inside and real.name != SENTINEL_NAME and not model_dir.is_relative_to(folder.resolve()):
            return f"lies in {setting} {folder}"
    return "is a folder" if real.is_dir() else None


def _named(settings: Settings, name: str) -> set[Path]:
    """Return the files that a setting names."""
    given = settings.flat().get(name)  # which is of one evaluator, or of `train` alone
    listed = [given] if isinstance(given, str) else given or ()
    return {Path(one).resolve() for one in listed if one}


def _is_in_state(settings: Settings, path: Path) -> bool:
    """Tell whether a path is one of the watcher's own inside its state folder."""
    state, model_dir = settings.run.state_path.resolve(), settings.run.model_path.resolve()
    real = path.resolve()
    if real == state or not real.is_relative_to(state):
        return False
    name = real.relative_to(state).parts[0]
    ours = any(fnmatch(name, pattern) for pattern in _STATE_NAMES)
    return ours or (state != model_dir and state.is_relative_to(model_dir))
