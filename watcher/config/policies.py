"""Policies: from the settings, which are text and numbers, to what rank and stop decide by."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from watcher.config.ranking import (
    BoardSettings,
    RankingSettings,
    VetoSettings,
)
from watcher.config.run import RunSettings
from watcher.config.settings import Settings
from watcher.config.stopping import StoppingSettings
from watcher.decision.board import AVERAGES_BOARD, KEPT_BOARD, MAIN_BOARD, Board
from watcher.decision.metric import Metric, parse_directed, parse_metric, unknown_metric
from watcher.decision.rank import RankPolicy, Veto
from watcher.decision.smooth import parse_smoothing
from watcher.decision.walk import StopPolicy
from watcher.errors import ConfigError

# The settings that rank, keep and stop, and where that is seen.
DECIDING = frozenset(
    {
        *("best_dir", "kept_dir", "sentinel", "keep_every_steps", "keep_last"),
        *RankingSettings.__struct_fields__,
        *StoppingSettings.__struct_fields__,
    }
)

SomeSettings = TypeVar("SomeSettings", bound=Settings)


def boards(run: RunSettings, ranking: RankingSettings) -> tuple[Board, ...]:
    """Return the boards of a run; the first is the main one, which drives stopping.

    Raises:
        ConfigError: two boards share a name or a folder, a folder or the sentinel is one of
            something else, or a metric or a veto cannot be read.
    """
    made = tuple(
        _board(run, ranking, board, place)
        for place, board in enumerate(ranking.board or (BoardSettings(),))
    )
    names = [board.name for board in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"board ({twice}): two have this name", hint="give each its own")
    _check_folders(run, ranking, made)
    return made


def averages_path(run: RunSettings) -> Path:
    """Return the folder of the averages."""
    return run.model_path / f"best-{AVERAGES_BOARD}"


def _check_folders(run: RunSettings, ranking: RankingSettings, made: tuple[Board, ...]) -> None:
    """Refuse a folder that something else lies in: promoting would write over it."""
    by_setting = ", which state_dir sets" if run.state_dir else ""
    taken = {
        run.model_path.resolve(): "the trainer's MODEL_DIR",
        run.state_path.resolve(): f"the watcher's state folder{by_setting}",
    }
    folders = [
        ("kept_dir", run.kept_path),
        ("folder of the averages", averages_path(run)),
        *((_folder_setting(ranking, place), one.folder) for place, one in enumerate(made)),
    ]
    for setting, folder in folders:
        if there := taken.get(folder.resolve()):
            raise ConfigError(
                f"{setting} ({folder}) is {there}", hint="give it a folder of its own"
            )
        taken[folder.resolve()] = f"that of {setting.removeprefix('folder of ')} too"
    evaluations = run.eval_path.resolve()
    if evaluations != run.model_path.resolve() and (there := taken.get(evaluations)):
        raise ConfigError(
            f"eval_dir ({run.eval_path}) is {there}", hint="give it a folder of its own"
        )
    if there := taken.get(run.sentinel_path.resolve()):
        raise ConfigError(
            f"sentinel ({run.sentinel_path}) is {there}",
            hint="the watcher writes and removes that file: give it a name of its own",
        )


def _folder_setting(ranking: RankingSettings, place: int) -> str:
    """Name what sets the folder of a board."""
    board = ranking.board[place] if ranking.board else BoardSettings()
    return f"folder of board {board.name}" if place or board.folder else "best_dir"


def _board(run: RunSettings, ranking: RankingSettings, board: BoardSettings, place: int) -> Board:
    main = place == 0
    if board.name in (KEPT_BOARD, AVERAGES_BOARD) or (not main and board.name == MAIN_BOARD):
        raise ConfigError(
            f"board[{place}].name ({board.name}) is taken, or was not given",
            hint=f"every [[board]] but the first, board[0], needs a name, other than"
            f" {MAIN_BOARD}, {KEPT_BOARD} and {AVERAGES_BOARD}",
        )
    folder = run.best_path
    if board.folder or not main:
        folder = run.model_path / (board.folder or f"{MAIN_BOARD}-{board.name}")
    tie_break = ranking.tie_break if board.tie_break is None else board.tie_break
    veto = ranking.veto if board.veto is None else board.veto
    try:
        vetoes = tuple(parse_veto(one) for one in veto)
    except ValueError as error:
        raise ConfigError(f"veto of board {board.name} is invalid: {error}") from error
    metric = parse_metric(board.metric or ranking.metric)
    # The mode of a metric is its nature's where it has one; that of the first board, which is set
    # in its table, says nothing of another's.
    own, of_first = bool(board.metric) and not main, bool(ranking.board and ranking.board[0].mode)
    by_nature, as_set = metric.natural_mode, None if own and of_first else ranking.mode
    modes = (by_nature, as_set) if own else (as_set, by_nature)
    policy = RankPolicy(
        mode=board.mode or modes[0] or modes[1] or "max",
        top_k=ranking.top_k if board.top_k is None else board.top_k,
        tie_break=tuple(parse_directed(text) for text in tie_break),
        ties=board.ties or ranking.ties,
        ties_by=board.ties_by or ranking.ties_by,
        veto=vetoes,
    )
    return Board(board.name, folder, metric, policy)


def with_main_board(settings: SomeSettings) -> SomeSettings:
    """Return settings whose `metric`, `mode` and so on are those of the first board."""
    if not settings.ranking.board:
        return settings
    first = settings.ranking.board[0]
    names = ("metric", "mode", "top_k", "tie_break", "ties", "ties_by", "veto")
    given = {name: getattr(first, name) for name in names if getattr(first, name) is not None}
    if first.folder:
        given["best_dir"] = str(settings.run.model_path / first.folder)
    return settings.replaced(**given)


def stop_policy(
    ranking: RankingSettings,
    stopping: StoppingSettings,
    resumed_step: int = -1,
    generation: int = 1,
) -> StopPolicy:
    """Return what `decide` decides by, under these settings.

    Args:
        ranking: Those of the main board included.
        stopping: Validated.
        resumed_step: Step up to which `checkpoint-watcher resume` withdrew every decision.
        generation: The newest of the trainer's lives, the one that is decided by.
    """
    as_set = msgspec.structs.asdict(stopping)
    as_set["min_delta"], relative = parse_delta(stopping.min_delta)
    as_set["smoothing"] = parse_smoothing(stopping.smoothing)
    return StopPolicy(
        **as_set,
        mode=ranking.better,
        min_delta_relative=relative,
        resumed_step=resumed_step,
        generation=generation,
    )


def require_metrics(
    all_boards: Iterable[Board], names: Collection[str], categories: Collection[str] | None
) -> None:
    """Raise ConfigError when a board reads a metric that the evaluation does not report.

    Args:
        all_boards: The boards of the run.
        names: The overall metrics that a result will have.
        categories: Names of the categories, None when they are not known.
    """
    for board in all_boards:
        for metric in board.metrics:
            part = metric.missing(names, categories)
            if part is not None:
                raise unknown_metric(_field(board, metric), metric.text, part, names, categories)


def _field(board: Board, metric: Metric) -> str:
    """Return the setting by which a board reads a metric."""
    of = "" if board.name == MAIN_BOARD else f" of [[board]] {board.name}"
    if metric is board.metric:
        return f"metric{of}"
    return (
        f"{'veto' if any(one.metric is metric for one in board.policy.veto) else 'tie_break'}{of}"
    )


def parse_delta(value: float | str) -> tuple[float, bool]:
    """Parse `min_delta`: `0.005`, or `1%`, which is relative; raises ValueError with the rule."""
    text = str(value).strip()
    try:
        delta = float(text.removesuffix("%"))
    except ValueError:
        delta = -1.0
    if not 0 <= delta < float("inf"):
        raise ValueError("expected a number >= 0, or a percentage such as 1%")
    return (delta / 100, True) if text.endswith("%") else (delta, False)


def parse_veto(value: str | VetoSettings) -> Veto:
    """Parse a veto, `AP[person]:0.02` or a table; raises ValueError with the rule."""
    if isinstance(value, VetoSettings):
        name, drop = value.metric, value.drop
    else:
        name, _, number = value.rpartition(":")
        try:
            drop = float(number)
        except ValueError:
            drop = -1.0
    if not name or not 0 <= drop < float("inf"):
        raise ValueError("expected METRIC:DROP with DROP >= 0, such as AP[person]:0.02")
    metric, mode = parse_directed(name)
    return Veto(metric, mode, drop)
