"""Settings of early stopping."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from watcher.config.rules import NotNegative, Positive, about
from watcher.decision.trend import FEWEST


class StoppingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When training should end."""

    patience: Annotated[
        Positive | None,
        about("Stop after N evaluations without improvement. Default: never stop.", "N"),
    ] = None
    patience_steps: Annotated[
        Positive | None, about("Stop after N training steps without improvement.", "N")
    ] = None
    min_delta: Annotated[
        float | str,
        about(
            "A gain that is not greater than this is no improvement; 1% is of the score so far.",
            "DELTA|PERCENT",
        ),
    ] = 0.0
    smoothing: Annotated[
        str,
        about(
            "What stopping sees of the scores: ema:W, as TensorBoard draws it, or median:N of the"
            " last N.",
            "none|ema:W|median:N",
        ),
    ] = "none"
    min_steps: Annotated[
        int,
        about("No rule about scores stops before an evaluation at this step.", "STEPS", ge=0),
    ] = 0
    min_evaluations: Annotated[
        int, about("No rule about scores stops before so many evaluations.", "N", ge=0)
    ] = 0
    target: Annotated[float | None, about("Stop when the score is as good as this.", "SCORE")] = (
        None
    )
    divergence: Annotated[
        float | None, about("Stop when the score is worse than this.", "SCORE")
    ] = None
    max_not_finite: Annotated[
        Positive | None,
        about("Stop after N checkpoints in a row whose weights or losses are not finite.", "N"),
    ] = None
    plateau_std: Annotated[
        NotNegative | None,
        about("Stop when the last scores' standard deviation is at most this.", "STD"),
    ] = None
    plateau_window: Annotated[int, about("How many scores --plateau-std looks at.", "N", ge=2)] = 5
    trend_below: Annotated[
        float | None,
        about(
            "Stop when the gain per evaluation, by a line through the last scores (not smoothed),"
            " lies below this with 80 % confidence.",
            "GAIN",
        ),
    ] = None
    trend_window: Annotated[
        int, about("How many scores --trend-below looks at.", "N", ge=FEWEST)
    ] = 10
    max_steps: Annotated[
        Positive | None, about("Stop once a checkpoint of this global step is evaluated.", "STEPS")
    ] = None
    max_hours: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        about(
            "Stop so many hours after the run was first seen, or the trainer started over.", "HOURS"
        ),
    ] = None
