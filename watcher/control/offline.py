"""Offline: what a person asks for is carried out by the command itself while no daemon runs."""

from __future__ import annotations

import time
from pathlib import Path

from watcher.config import Settings
from watcher.control.channel import Answer, Request
from watcher.control.commands import Commands
from watcher.errors import AlreadyRunning, StoreError
from watcher.promotion.projection import Projector
from watcher.protocols import CheckpointSource
from watcher.store import DATABASE_NAME, PINS_NAME, Store
from watcher.store.lock import hold_lock


def carry_out_here(
    state_dir: Path,
    request: Request,
    source: CheckpointSource,
    *,
    name: str,
    model_dir: Path,
    settings: Settings | None,
) -> Answer | None:
    """Carry out a request and bring the folders up to date, as the daemon would.

    Args:
        state_dir: The run's state folder.
        request: What is asked for.
        source: Where the run's checkpoints come from.
        name: The run's.
        model_dir: The run's.
        settings: What folders and sentinel follow; None where nobody knows, and they stay.

    Returns:
        What came of it, None while a daemon runs: then that is to be asked.

    Raises:
        StoreError: the database, a folder or a file cannot be written.
    """
    try:
        with (
            hold_lock(state_dir / "lock"),
            Store(
                state_dir / DATABASE_NAME, run=name, model_dir=model_dir, now=time.time()
            ) as store,
        ):
            commands = Commands(store, source, state_dir / PINS_NAME)
            answer = commands.carry_out(request, time.time())
            if settings:
                Projector(settings, store, source, name).update(time.time())
            return answer
    except AlreadyRunning:
        return None
    except OSError as error:
        raise StoreError(
            f"cannot write into {state_dir}: {error.strerror}",
            hint="ask as the user that the watcher runs as, where the folder can be written",
        ) from error
