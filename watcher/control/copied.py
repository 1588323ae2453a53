"""Copied: a run works on its own folders, not on those of its original, nor of another run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from watcher.config import Settings, make_settings
from watcher.config.bucket import is_url, parse_place
from watcher.config.policies import boards
from watcher.decision.board import MAIN_BOARD
from watcher.errors import ConfigError, StoreError
from watcher.store.database_file import DATABASE_NAME
from watcher.store.reading import Reader, open_reader
from watcher.store.relocation import is_folder, recorded_settings, recorded_state, same_folder


def refuse_copy(settings: Settings) -> None:
    """Raise ConfigError where `run` would begin on a copy and write into the original's folders."""
    # What cannot be read now is told, or waited for, when it is opened.
    run = settings.run
    with suppress(StoreError), open_reader(run.state_path, timeout_seconds=0.1) as reader:
        _refuse_other_run(reader, run.model_dir, run.model_path, run.state_path)
        refuse_shared(settings, reader, evaluates=True)


def refuse_other_run(model_dir: str, model_path: Path, state_dir: Path) -> None:
    """Raise ConfigError where a state folder is that of a run of another MODEL_DIR, which is there.

    Args:
        model_dir: As given, a folder or a URL.
        model_path: The folder, absolute.
        state_dir: Where the database is looked for.
    """
    with suppress(StoreError, OSError), open_reader(state_dir, timeout_seconds=0.1) as reader:
        _refuse_other_run(reader, model_dir, model_path, state_dir)


def _refuse_other_run(reader: Reader, model_dir: str, model_path: Path, state_dir: Path) -> None:
    other = _other_run(reader.recorded(), model_dir, model_path, state_dir)
    if other is not None:
        raise ConfigError(
            f"state_dir ({state_dir}) is that of the run of {other}",
            hint=f"give the --state-dir of {model_dir}, one of its own"
            + ("" if is_url(other) else f"; if MODEL_DIR was moved, move {other} away first"),
        )


def _other_run(
    run: Mapping[str, Any], model_dir: str, model_path: Path, state_dir: Path
) -> str | None:
    before, place = Path(run["model_dir"]), str(recorded_settings(run).get("model_dir") or "")
    if is_url(place) or is_url(model_dir):
        # The state folder of a run in a bucket is given in the place of MODEL_DIR, too.
        is_its = _parsed(place) == _parsed(model_dir) or same_folder(model_path, state_dir)
        return None if is_its or not place else place
    if before == model_path or not (is_folder(before) and is_folder(model_path)):
        return None
    if same_folder(before, model_path):
        return None
    # Else it came here with its MODEL_DIR, of which the other is the original.
    return str(before) if same_folder(recorded_state(run), state_dir) else None


def _parsed(model_dir: str) -> object:
    with suppress(ValueError):  # no URL of a bucket at all, which is refused elsewhere
        return parse_place(model_dir) if is_url(model_dir) else Path(model_dir)
    return model_dir


def refuse_shared(settings: Settings, reader: Reader, *, evaluates: bool) -> None:
    """Raise ConfigError where a copied run would write into a folder of the run it is a copy of.

    Args:
        settings: What the copy would work by.
        reader: The copy's database.
        evaluates: Whether it would write event files too.
    """
    run = reader.recorded()
    values, there = recorded_settings(run), recorded_state(run)
    if not values or there == settings.run.state_path:
        return
    try:
        before = make_settings(values, dict.fromkeys(values, "the run's database"))
    except ConfigError:  # of a version with other rules
        return
    theirs = set(_written(before, evaluates).values())
    shared = [one for one in _written(settings, evaluates).items() if one[1] in theirs]
    if shared and _is_original(there, run["uuid"], settings.run.state_path):
        setting, path = shared[0]
        raise ConfigError(
            f"{settings.run.state_path} is a copy of {there}, and {path} is that one's",
            hint=f"start `checkpoint-watcher run` on the copy with another {setting}",
        )


def _is_original(there: Path, uuid: str, here: Path) -> bool:
    """Tell whether the run that was recorded in one state folder is there beside that of another.

    One that was moved has left nothing where it was; one that was copied is still there. What is
    there and cannot be read is taken for the original.
    """
    if same_folder(there, here):
        return False
    try:
        if not (there / DATABASE_NAME).is_file():
            return False
        with open_reader(there, timeout_seconds=0.1) as other:
            return bool(other.recorded()["uuid"] == uuid)
    except (OSError, StoreError):
        return True


def _written(settings: Settings, evaluates: bool) -> dict[str, Path]:
    """Return what a run writes beside its state folder: setting to path, links resolved."""
    named = {
        "--best-dir" if board.name == MAIN_BOARD else f"folder of [[board]] {board.name}": path
        for board in boards(settings.run, settings.ranking)
        for path in [board.folder]
    }
    named |= {"--kept-dir": settings.run.kept_path, "--sentinel": settings.run.sentinel_path}
    if evaluates and settings.exports.tensorboard:
        named["--eval-dir"] = settings.run.eval_path
    return {setting: path.resolve() for setting, path in named.items()}
