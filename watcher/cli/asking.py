"""What `keep`, `requeue` and `resume` share: ask the daemon, or do it where none runs."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import click
import msgspec

from watcher.config import make_settings
from watcher.errors import AlreadyRunning, StoreError, WatcherError
from watcher.inbox import Answer, Request, ask
from watcher.reading import open_reader


def carry_out(state_dir: Path, request: Request) -> None:
    """Have a request carried out and print what came of it.

    Raises:
        WatcherError: nothing of it could be done.
    """
    with open_reader(state_dir) as reader:
        run = reader.run()
    answer = _do_it(state_dir, request, run) or ask(state_dir, request)
    if answer is None:
        click.echo("the watcher has not answered yet; it does so when it can write its database")
        return
    for line in answer.done:
        click.echo(line)
    if answer.refused:
        raise WatcherError(
            "; ".join(answer.refused),
            hint="`checkpoint-watcher history MODEL_DIR` lists the checkpoints of this run",
        )
    if not answer.done:
        click.echo("nothing to do")


def _do_it(state_dir: Path, request: Request, run: dict[str, object]) -> Answer | None:
    """Carry it out here and bring the folders up to date; None while a daemon runs."""
    import structlog

    from watcher.lock import hold_lock
    from watcher.orders import Orders
    from watcher.promotion.projection import Projector
    from watcher.store import DATABASE_NAME, PINS_NAME, Store

    values = msgspec.json.decode(str(run.get("settings", "{}")))
    if not values:
        raise StoreError(
            f"{state_dir / DATABASE_NAME} is of an earlier version",
            hint="start `checkpoint-watcher run` on it once",
        )
    values["model_dir"] = str(run["model_dir"])
    settings = make_settings(values, dict.fromkeys(values, "the run's database"))
    # The answer says it all; a problem that the daemon would log is shown by the next `status`.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        with hold_lock(state_dir / "lock"):
            path, name = state_dir / DATABASE_NAME, str(run["name"])
            with Store(path, run=name, model_dir=settings.model_path, now=time.time()) as store:
                orders = Orders(store, settings.model_path, state_dir / PINS_NAME)
                answer = orders.carry_out(request, time.time())
                Projector(settings, store, name).update(time.time())
            return answer
    except AlreadyRunning:
        return None
