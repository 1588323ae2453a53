"""`checkpoint-watcher explain`: how rank and stop were decided, or would be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from watcher.cli import completing
from watcher.cli.options import as_json, print_json, run_folder
from watcher.cli.runs import only_place
from watcher.cli.settings_help import examples
from watcher.config import FILE_ONLY
from watcher.config.ranking import RankingSettings
from watcher.config.stopping import StoppingSettings
from watcher.errors import ConfigError, CorruptCheckpoint, ModelDirError, StoreError

if TYPE_CHECKING:
    from watcher.types import ScoredCheckpoint

_DECIDING = {*RankingSettings.__struct_fields__, *StoppingSettings.__struct_fields__} - FILE_ONLY


@click.command(
    epilog=examples(
        "checkpoint-watcher explain models/ssd",
        "checkpoint-watcher explain models/ssd --what-if patience=3",
    )
)
@run_folder
@as_json
@click.option(
    "--what-if",
    "what_if",
    multiple=True,
    metavar="SETTING=VALUE",
    shell_complete=completing.choices(*(f"{name}=" for name in sorted(_DECIDING))),
    help="Decide by another setting, patience=3 say. Can be given several times.",
)
@click.option(
    "--board",
    "board_name",
    metavar="NAME",
    shell_complete=completing.boards,
    help="Explain this board and not the first one.",
)
def explain(
    model_dir: Path,
    state_dir: str | None,
    json_output: bool,
    what_if: tuple[str, ...],
    board_name: str | None,
) -> None:
    """Explain how the checkpoints of MODEL_DIR are ranked, and why the run stops or goes on.

    By the settings that the watcher was started with last, or with --what-if by others: what is
    recorded is decided on anew, and nothing is evaluated. Reads the live database, changes nothing.
    """
    from watcher.store.reading import open_reader
    from watcher.view import show
    from watcher.view.explanation import as_json as plain
    from watcher.view.explanation import drawn
    from watcher.view.machines import remarks

    place = only_place(model_dir, state_dir)
    model_dir = place.model_dir
    with open_reader(place.state_dir) as reader:
        told, stops_by = _explained(reader, what_if, board_name)
        _tell_held(reader)
        machines = remarks(reader, {row.evaluation_id: row.name for row in told.ranking.leaders})
    if json_output:
        print_json(plain(told, _in_model_dir(told, model_dir), machines, stops_by))
    else:
        show(drawn(told, _in_model_dir(told, model_dir), machines, stops_by))


def _tell_held(reader: Any) -> None:
    """Say that what stands was decided by another evaluation than the one that is explained."""
    import json

    run = reader.recorded()
    decided_by = json.loads(run.get("stopping") or "{}").get("fingerprint")
    if decided_by not in (None, run["fingerprint"]):
        text = (
            "another evaluation counts now, and is explained here: best/ and the early stop stand"
        )
        click.echo(f"{text} as the one before decided, until what waits is measured anew", err=True)


def _explained(reader: Any, what_if: tuple[str, ...], board_name: str | None) -> Any:
    """Return the explanation, and by which board it is stopped where that is another one."""
    import time

    import msgspec

    from watcher.config.policies import boards, require_metrics, stop_policy
    from watcher.decision.averages import deserving
    from watcher.decision.explain import explain as explained
    from watcher.decision.explain import with_certainty
    from watcher.decision.stop import undone_between
    from watcher.decision.ties import on_draws_of, tie_set
    from watcher.store.queries import has_intervals
    from watcher.store.replicates import draws_of, paired

    settings = _settings(reader, what_if)
    made = {board.name: board for board in boards(settings.run, settings.ranking)}
    board = made.get(board_name or next(iter(made)))
    if board is None:
        raise ConfigError(f"board ({board_name}) is not set", hint=f"there are: {', '.join(made)}")
    scored = reader.scored()
    first = next(iter(made))
    stops_by = None if board.name == first else first
    # Another board's are what the trainer saved.
    averages = [row for row in reader.scored_averages() if row.pin and not stops_by]
    keys = {key for metric in board.metrics for key in metric.keys}
    values = reader.values([row.evaluation_id for row in (*scored, *averages)], keys)
    if values:
        require_metrics([board], *reader.measured())
    begun = datetime.fromisoformat(reader.begun_at()).timestamp()

    def tied_with(best: int) -> set[int]:
        if not has_intervals(reader):
            return set()
        # As the daemon looks at them: those whose files are there.
        ids = {best, *(row.evaluation_id for row in (*scored, *averages) if row.pin)}
        draws = draws_of(reader, ids, board.metric.keys)
        drawn = on_draws_of(best, draws, board.metric)
        return tie_set(drawn, best, board.policy.mode)

    def deserve(
        averages: Sequence[ScoredCheckpoint], saved: Sequence[ScoredCheckpoint]
    ) -> list[ScoredCheckpoint]:
        promote, differ = settings.ranking.average_promote, partial(paired, reader, board.metric)
        return deserving(averages, saved, promote, board.policy.mode, differ)

    told = explained(
        scored,
        values,
        board,
        stop_policy(
            settings.ranking, settings.stopping, reader.resumed_step(), reader.generation()
        ),
        incumbent=reader.incumbent(board.name),
        hours=(time.time() - begun) / 3600,
        not_finite=reader.not_finite(),
        averages=averages,
        deserve=deserve,
        tied_with=tied_with,
    )
    awaits = reader.awaited(undone_between(told.decision, told.walked))
    told = msgspec.structs.replace(told, awaits=awaits)
    if not has_intervals(reader):
        return told, stops_by
    ids = [row.evaluation_id for row in told.compared]
    return with_certainty(told, draws_of(reader, ids, board.metric.keys)), stops_by


def _in_model_dir(told: Any, model_dir: Path) -> set[int]:
    """Return the leaders without a pin that the trainer still has, as `run` would find them."""
    unpinned = [row for row in told.ranking.leaders if row.pin is None]
    if not unpinned:
        return set()
    from watcher.config.source import SourceSettings
    from watcher.sources.choice import open_source

    source = open_source(SourceSettings(), model_dir)
    try:
        there = {found.name: found for found in source.scan()}
    except ModelDirError:
        return set()
    here = set()
    for row in unpinned:
        with suppress(KeyError, OSError, CorruptCheckpoint):
            if source.identify(there[row.name]) == row.sha256:
                here.add(row.checkpoint_id)
    return here


def _settings(reader: Any, what_if: tuple[str, ...]) -> Any:
    """Return the settings of the last start, or those that `run` would take with some others."""
    from watcher.config import Settings, list_settings, load, make_settings

    start = reader.last_start()
    values = dict(start.settings)
    if not values:
        raise StoreError(
            "this database does not hold the settings of the run: it was rebuilt, or is of an"
            " earlier version",
            hint="start `checkpoint-watcher run` on it once",
        )
    if not what_if:
        return make_settings(values, dict.fromkeys(values, "the run's database"))
    asked = ("model_dir", "evaluator", "pipeline_config", "experiment", "config_file", "state_dir")
    flags = {name: values[name] for name in asked if name in values}
    for pair in what_if:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in _DECIDING:
            raise _no_pair(pair, name)
        flags[name] = [*(flags.get(name) or []), value] if name in list_settings() else value
    try:
        return load(Settings, flags, {}, None, last=start).settings
    except ConfigError as error:
        raise ConfigError(error.message, hint=_of_what_if(error.hint, flags)) from error


def _no_pair(pair: str, name: str) -> ConfigError:
    close = difflib.get_close_matches(name, _DECIDING, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(_DECIDING))}"
    if name in _DECIDING:
        hint = f"give it a value: --what-if {name}=VALUE"
    return ConfigError(f"--what-if ({pair}) is no SETTING=VALUE that ranks or stops", hint=hint)


def _of_what_if(hint: str | None, names: Iterable[str]) -> str | None:
    """Return a hint that names --what-if where it names the flag of `run`."""
    for name in names:
        flag = f"set by --{name.replace('_', '-')};"
        hint = hint and hint.replace(flag, f"set by --what-if {name};")
    return hint
