"""Contradictions: settings that are each valid, and that together cannot be meant. Pure.

What ends every run at once, or leaves rules that can never fire, is refused where settings are
given. What does nothing, or what few expect, is told at the start and by `doctor`. Settings that a
database recorded are taken as they are: what was started once can always be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from watcher.config.evaluator import ModelGardenSettings
from watcher.config.launching import LaunchSettings
from watcher.config.places import refuse_places
from watcher.config.policies import boards, parse_delta
from watcher.config.settings import Settings, fields
from watcher.config.wording import as_written, either
from watcher.decision.board import Board
from watcher.errors import ConfigError

_SMOOTHED = ("patience", "patience_steps", "target", "divergence", "plateau_std")
_SCORE_RULES = (*_SMOOTHED, "trend_below")
# What stops for a best that someone will want to have.
_FOR_THE_BEST = ("patience", "patience_steps", "target", "plateau_std", "trend_below")
# Settings that do something only beside one of these.
_BESIDE: Mapping[str, tuple[str, ...]] = {
    "min_steps": _SCORE_RULES,
    "min_evaluations": _SCORE_RULES,
    "smoothing": _SMOOTHED,
    "min_delta": ("patience", "patience_steps"),
    "plateau_window": ("plateau_std",),
    "recompute_batch_norm": ("average",),
    "trend_window": ("trend_below",),
    "tensorboard_categories": ("tensorboard",),
    "visualizations": ("tensorboard",),
    "eval_dir": ("tensorboard",),
    "health_seconds": ("listen",),
    "notify_seconds": ("notify", "notify_command"),
    "notify_confirmed": ("notify", "notify_command"),
}
# Below it the intervals were seen to hold the truth in clearly less than 95 %.
_FEWEST_REPLICATES = 200
_BESIDE_OF_LAUNCHER: Mapping[str, tuple[str, ...]] = {"drain_timeout": ("watch",)}


class Doubt(msgspec.Struct, frozen=True):
    """Settings that hardly can be meant so; the hint says what to do."""

    message: str
    hint: str


def refuse_contradictions(settings: Settings, *, mode_by_hand: bool = False) -> None:
    """Raise ConfigError for settings by which no run can do what they ask for.

    Args:
        settings: All of them.
        mode_by_hand: Whether someone typed the first board's mode: then it is meant.
    """
    main, *others = boards(settings.run, settings.ranking)
    # Whoever names both in one [[board]] means it; for the first there is a flag to say so.
    meant = [bool(one.metric and one.mode) for one in settings.ranking.board[1:]]
    for board, by_hand in zip((main, *others), (mode_by_hand, *meant), strict=True):
        if board.contradiction and not by_hand:
            raise ConfigError(
                _contradicted(settings, board),
                hint=f"leave mode out: it is {board.metric.natural_mode} then; if it is meant, give"
                f" {'--mode' if board is main else 'the board a metric too, and mode'}"
                f" {board.policy.mode} by hand",
            )
    refuse_places(settings)
    images = settings.ranking.recompute_batch_norm
    if images is not None and isinstance(settings.evaluator, ModelGardenSettings):
        raise ConfigError(
            f"recompute_batch_norm ({images}): that of Model Garden's models cannot be computed"
            " anew",
            hint="leave it out: an average has the mean of the checkpoints' statistics then",
        )
    sign = 1 if settings.ranking.better == "max" else -1
    target, divergence = settings.stopping.target, settings.stopping.divergence
    if target is not None and divergence is not None and sign * (target - divergence) <= 0:
        raise ConfigError(
            f"target ({target:g}) is not better than divergence ({divergence:g}), by mode"
            f" {settings.ranking.better}: every score would end the run",
            hint="a run goes on with the scores between them: with mode max target is the larger,"
            " with mode min the smaller one",
        )
    steps, rules = settings.stopping.max_steps, _named(settings, _SCORE_RULES)
    if steps is not None and settings.stopping.min_steps >= steps and rules:
        raise ConfigError(
            f"min_steps ({settings.stopping.min_steps}) is not below max_steps ({steps}): the run"
            f" ends before {rules} may stop it",
            hint="set min_steps lower or max_steps higher, or leave one of them out",
        )


def doubts(settings: Settings) -> list[Doubt]:
    """Return what a person should be told of settings that are taken."""
    main, *others = boards(settings.run, settings.ranking)
    return [
        *_mode(settings, (main, *others)),
        *_places(settings, others),
        *_stopping(settings, main),
        *_memory(settings),
        *_noise(settings, (main, *others)),
        *_few_replicates(settings),
        *_idle(settings, _BESIDE),
    ]


def launch_doubts(settings: LaunchSettings) -> list[Doubt]:
    """Return what is to be told of the launcher's own settings."""
    return list(_idle(settings, _BESIDE_OF_LAUNCHER))


def _contradicted(settings: Settings, board: Board) -> str:
    """Say what a board's mode does against its metric's nature; of one that nobody set, mode."""
    of = f"board {board.name}: " if settings.ranking.board else ""
    return f"{of}{board.contradiction}"


def _mode(settings: Settings, every: Iterable[Board]) -> Iterator[Doubt]:
    for board in every:
        if board.contradiction:
            yield Doubt(
                _contradicted(settings, board),
                f"leave mode out, unless it is meant: it is {board.metric.natural_mode} then",
            )


def _places(settings: Settings, others: Iterable[Board]) -> Iterator[Doubt]:
    rules = _named(settings, _FOR_THE_BEST)
    if settings.ranking.top_k == 0 and rules:
        yield Doubt(
            f"top_k (0) keeps no place for the best that {rules} stops for: its score is recorded,"
            " its files go as the trainer's do",
            "set top_k to 1 or more, unless scores are all that is wanted",
        )
    for board in others:
        if board.policy.top_k == 0:
            yield Doubt(
                f"board {board.name}: top_k (0) gives it no place, so nothing is ever promoted to"
                f" {board.folder}",
                "set its top_k to 1 or more, or leave the board out",
            )


def _stopping(settings: Settings, main: Board) -> Iterator[Doubt]:
    steps, patience = settings.stopping.max_steps, settings.stopping.patience_steps
    if steps is not None and patience is not None and patience >= steps:
        yield Doubt(
            f"patience_steps ({patience}) cannot be used up before max_steps ({steps})",
            "set patience_steps lower, or leave it out",
        )
    delta, relative = parse_delta(settings.stopping.min_delta)
    if relative and delta >= 1 and settings.ranking.better == "min":
        yield Doubt(
            f"min_delta ({settings.stopping.min_delta}) with mode min asks for a score below 0:"
            " none that is above counts as an improvement",
            "give the share of the score that a gain has to exceed, such as 1%",
        )
    share = (
        main.metric.natural_mode == "max"
    )  # precision, recall, accuracy, intersection over union
    for field in ("target", "divergence", "trend_below"):
        value = settings.value(field)
        if value is not None and value > 1 and share and not main.metric.is_expression:
            yield Doubt(
                f"{field} ({value:g}) is more than {main.metric.text} can be, which is 1",
                f"{field} is a share and no percentage: {value / 100:g}",
            )


def _memory(settings: Settings) -> Iterator[Doubt]:
    cache, limit = settings.evaluator.eval_cache_mib, settings.carrier.worker_memory_bytes
    if cache is not None and limit is not None and cache << 20 >= limit:
        yield Doubt(
            f"eval_cache_mib ({cache}) is not below worker_memory_limit"
            f" ({settings.carrier.worker_memory_limit}): a worker whose eval set fills it is"
            " replaced after each evaluation",
            "set worker_memory_limit some gigabytes higher than eval_cache_mib",
        )


def _noise(settings: Settings, every: Iterable[Board]) -> Iterator[Doubt]:
    by_noise = any(board.policy.ties_by == "noise" for board in every)
    named = [
        *["ties_by (noise)"] * by_noise,
        *["notify_confirmed"] * settings.service.notify_confirmed,
    ]
    if named and not settings.evaluator.replicates:
        yield Doubt(
            f"{' and '.join(named)} cannot be told with replicates (0): nothing is known of the"
            " noise of a score",
            "leave replicates out, or set it to 1000",
        )


def _few_replicates(settings: Settings) -> Iterator[Doubt]:
    count = settings.evaluator.replicates
    if 0 < count < _FEWEST_REPLICATES:
        yield Doubt(
            f"replicates ({count}) are few: an interval at 95 % is made of the {count // 20 or 1}"
            " that lie outermost, and comes out too narrow",
            "leave it out, or set it to 1000; 0 switches intervals off",
        )


def _idle(settings: Settings, table: Mapping[str, tuple[str, ...]]) -> Iterator[Doubt]:
    for name, needed in table.items():
        if _is_set(settings, name) and not any(_is_on(settings, one) for one in needed):
            others = either(needed)
            yield Doubt(
                f"{name} ({as_written(settings.value(name))}) has no effect without {others}",
                f"set {others} as well, or leave {name} out",
            )


def _is_set(settings: Settings, name: str) -> bool:
    """True when a setting is another than by default, and not the one that asks for nothing."""
    value = settings.value(name)
    if name == "min_delta":
        return parse_delta(value)[0] > 0
    default = next(one.default for one in fields(type(settings)) if one.name == name)
    return bool(value) and value != default


def _is_on(settings: Settings, name: str) -> bool:
    """True for a switch that is on, a rule that is given (0 is one), a list that is not empty."""
    value = settings.value(name)
    return value is not None and value is not False and value != ()


def _named(settings: Settings, names: Iterable[str]) -> str:
    """Return those that are given, with their values, as a list for people."""
    return either([f"{name} ({settings.value(name)})" for name in names if _is_on(settings, name)])
