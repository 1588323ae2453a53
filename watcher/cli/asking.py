"""What `keep`, `requeue` and `resume` share: ask the daemon, or do it where none runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from watcher.config import Settings, make_settings
from watcher.config.bucket import is_url
from watcher.config.source import SourceSettings
from watcher.control.channel import Request, ask
from watcher.control.copied import refuse_shared
from watcher.errors import StoreError, WatcherError
from watcher.store.reading import Reader, open_reader

# Ranking, or releasing files, by settings that were not the run's own could cost a checkpoint.
_NO_SETTINGS = (
    "best/, kept/ and EARLY_STOP follow at the next start of `checkpoint-watcher run`: this"
    " database was rebuilt, and does not hold the settings of the run yet"
)

_LISTED = "`checkpoint-watcher history MODEL_DIR` lists the checkpoints of this run"


def carry_out(state_dir: Path, request: Request, *, after: str = "", hint: str = _LISTED) -> None:
    """Have a request carried out and print what came of it.

    Args:
        state_dir: The run's state folder.
        request: What is asked for.
        after: What is to be done next where no daemon runs that goes on with it.
        hint: Where something of it cannot be done.

    Raises:
        WatcherError: nothing of it could be done.
    """
    import structlog

    from watcher.control.offline import carry_out_here
    from watcher.sources.choice import open_source

    with open_reader(state_dir) as reader:
        run = reader.run()
        settings = _settings(state_dir, run, reader)
    # The answer says it all; a problem that the daemon would log is shown by the next `status`.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    name, model_dir = str(run["name"]), Path(run["model_dir"])
    source = open_source(SourceSettings(), model_dir)
    if settings:
        source = open_source(settings.source, settings.run.origin, settings.run.evaluator)
    here = carry_out_here(
        state_dir, request, source, name=name, model_dir=model_dir, settings=settings
    )
    answer = here or ask(state_dir, request)
    if answer is None:
        click.echo("the watcher has not answered yet; it does so when it can write its database")
        return
    if here and here.done and not settings:
        click.echo(_NO_SETTINGS, err=True)
    for line in answer.done:
        click.echo(line)
    if after and here and here.done:
        click.echo(after, err=True)
    if answer.refused:
        raise WatcherError("; ".join(answer.refused), hint=hint)
    if not answer.done:
        click.echo("nothing to do")


def _settings(state_dir: Path, run: dict[str, Any], reader: Reader) -> Settings | None:
    """Return the settings of the last start, None when a rebuilt database does not hold them."""
    if "settings" not in run:
        raise StoreError(
            f"{reader.path} is of an earlier version",
            hint="start `checkpoint-watcher run` on it once",
        )
    if not run["settings"]:
        return None
    values = {**run["settings"], "state_dir": str(state_dir)}
    if not is_url(values.get("model_dir")):
        values["model_dir"] = run["model_dir"]
    settings = make_settings(values, dict.fromkeys(values, "the run's database"))
    refuse_shared(settings, reader, evaluates=False)
    return settings
