"""Averages: which checkpoints are averaged, and which average deserves a place. Pure.

The mean of the weights of several checkpoints of one run is often better than each of them where
the learning rate is still high (Izmailov et al., Averaging Weights Leads to Wider Optima, 2018).
`greedy` is the greedy soup of Wortsman et al., Model soups, 2022: the best one first, and of the
others, best first, each stays in that makes the mean no worse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import msgspec

from watcher.decision.metric import Mode
from watcher.decision.rank import rankable
from watcher.decision.ties import Difference
from watcher.types import ScoredCheckpoint

Promote = Literal["confirmed", "better", "never"]
FEWEST = 2


class Choice(msgspec.Struct, frozen=True):
    """Which checkpoints are meant: the `top` or the `last` so many."""

    by: Literal["top", "last"]
    count: int

    def __str__(self) -> str:
        return f"{self.by}-{self.count}"


# How much more the first has than the second, on the same images; None where that is not known.
Differ = Callable[[ScoredCheckpoint, ScoredCheckpoint], Difference | None]


def parse_choice(text: str) -> Choice:
    """Parse `top-3` or `last-5`; raises ValueError with the rule."""
    match = re.fullmatch(r"(top|last)-([0-9]{1,3})", text)
    if match is None or int(match[2]) < FEWEST:
        raise ValueError("expected top-K or last-K with K >= 2, such as top-3")
    return Choice("top" if match[1] == "top" else "last", int(match[2]))


def choose(rows: Iterable[ScoredCheckpoint], choice: Choice, mode: Mode) -> list[ScoredCheckpoint]:
    """Return what is meant, best first.

    Args:
        rows: Evaluations of one fingerprint. Those of the newest generation among them count.
        choice: What is meant.
        mode: Whether the larger or the smaller score is better.
    """
    good = [row for row in rows if rankable(row.score)]
    newest = max((row.generation for row in good), default=1)
    lives = [row for row in good if row.generation == newest]
    if choice.by == "last":
        lives.sort(key=lambda row: (row.global_step, row.checkpoint_id))
        lives = lives[-choice.count :]
    return by_score(lives, mode)[: choice.count]


def by_score(rows: Iterable[ScoredCheckpoint], mode: Mode) -> list[ScoredCheckpoint]:
    """Return rows by score, best first; of equal ones the earlier step is first."""
    sign = 1 if mode == "max" else -1
    good = [row for row in rows if rankable(row.score)]
    return sorted(good, key=lambda row: (-sign * (row.score or 0.0), row.global_step))


def next_trial(
    candidates: Sequence[ScoredCheckpoint],
    trials: Sequence[tuple[frozenset[int], float | None]],
    mode: Mode,
) -> frozenset[int] | None:
    """Return of which checkpoints the next average is, None when greedy is done.

    Args:
        candidates: What may be averaged, best first.
        trials: What was tried so far, in order: the checkpoint ids, and the score of their mean;
            None where there is none, so that it is no better.
        mode: Whether the larger or the smaller score is better.
    """
    sign = 1 if mode == "max" else -1
    members, best = frozenset({candidates[0].checkpoint_id}), candidates[0].score
    tried = dict(trials)
    for row in candidates[1:]:
        trial = members | {row.checkpoint_id}
        if trial not in tried:
            return trial
        score = tried[trial]
        if rankable(score) and score is not None and sign * (score - (best or 0.0)) >= 0:
            members, best = trial, score
    return None


def deserving(
    averages: Iterable[ScoredCheckpoint],
    rows: Iterable[ScoredCheckpoint],
    promote: Promote,
    mode: Mode,
    differ: Differ,
) -> list[ScoredCheckpoint]:
    """Return which averages may have a place among what the trainer saved.

    Args:
        averages: Those there are.
        rows: What the trainer saved, which may have places.
        promote: `never`; `better` than the best of `rows`; or `confirmed`, where the difference
            to that one is a gain with its whole interval.
        mode: Whether the larger or the smaller score is better.
        differ: Tells how sure a difference is.
    """
    best = next(iter(by_score(rows, mode)), None)
    if promote == "never" or best is None:
        return []
    sign = 1 if mode == "max" else -1
    better = [
        row
        for row in by_score(averages, mode)
        if sign * ((row.score or 0.0) - (best.score or 0.0)) > 0
    ]
    if promote == "better":
        return better
    sure = [(row, differ(row, best)) for row in better]
    return [row for row, told in sure if told is not None and told.is_told]
