"""Settings of ranking."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from watcher.config.rules import about
from watcher.decision.board import MAIN_BOARD
from watcher.decision.metric import Mode, parse_metric

DEFAULT_METRIC = "DetectionBoxes_Precision/mAP"

_TopK = Annotated[int, Meta(ge=-1)]


class VetoSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A metric, and how much worse than the best's it may be."""

    metric: str
    drop: Annotated[float, Meta(ge=0)]


class BoardSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[board]]` of the file.

    What the first leaves out is as the setting of that name says, what another one leaves out is
    as in the first.

    Attributes:
        name: Letters, digits, `-` and `_`. Default: `best` for the first.
        folder: Default: `best` for the first, `best-NAME` for the others, in MODEL_DIR.
        mode: Default: of a metric of its own that metric's nature.
    """

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+$")] = MAIN_BOARD
    folder: str | None = None
    metric: str | None = None
    mode: Literal["max", "min"] | None = None
    top_k: _TopK | None = None
    tie_break: tuple[str, ...] | None = None
    ties: Literal["oldest", "newest"] | None = None
    ties_by: Literal["score", "noise"] | None = None
    veto: tuple[str | VetoSettings, ...] | None = None


class RankingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which checkpoint is the better one."""

    metric: Annotated[
        str,
        about(
            "Primary metric, what ranks and stops: a name of the OD API, mAP, mAP50, loss,"
            " latency_ms, AP[category], or an expression, such as 'mAP - 0.002 * latency_ms'.",
            "METRIC",
        ),
    ] = DEFAULT_METRIC
    mode: Annotated[
        Literal["max", "min"] | None,
        about(
            "Whether the larger or the smaller score is better. Default: as the metric's nature"
            " is, min for a loss or latency_ms; max for an expression.",
            "max|min",
        ),
    ] = None
    top_k: Annotated[
        int, about("Places in best/. -1 keeps every scored checkpoint, 0 none.", "K", ge=-1)
    ] = 3
    tie_break: Annotated[
        tuple[str, ...],
        about("Metric that decides between equal scores, before the step does.", "METRIC[:MODE]"),
    ] = ()
    ties: Annotated[
        Literal["oldest", "newest"], about("Which step comes first when all scores are equal.")
    ] = "oldest"
    ties_by: Annotated[
        Literal["score", "noise"],
        about(
            "What counts as equal beside the best: only an equal score, or, by noise, each score"
            " that this eval set cannot tell from the best one."
        ),
    ] = "score"
    veto: Annotated[
        tuple[str | VetoSettings, ...],
        about(
            "Promote nothing whose METRIC is more than DROP worse than that of the best.",
            "METRIC:DROP",
        ),
    ] = ()
    average: Annotated[
        str | None,
        about(
            "Average the weights of the best, or last, so many checkpoints whenever nothing else"
            " waits, and evaluate the average as well.",
            "top-K|last-K",
        ),
    ] = None
    recompute_batch_norm: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        about(
            "Compute the statistics of batch normalisation of an average anew, from so many"
            " training images; the Object Detection API alone.",
            "IMAGES",
        ),
    ] = None
    average_promote: Annotated[
        Literal["confirmed", "better", "never"],
        about(
            "Which averages may have a place in best/: those whose gain over the best checkpoint is"
            " above 0 with its whole 95 % interval, those whose score is better, or none."
        ),
    ] = "confirmed"
    board: Annotated[
        tuple[BoardSettings, ...],
        Meta(description="Leaderboards, as [[board]] in the file; the first drives stopping."),
    ] = ()

    @property
    def better(self) -> Mode:
        """Which score is better: `mode`, or the metric's nature where that is not set."""
        return self.mode or parse_metric(self.metric).natural_mode or "max"
