"""Settings of early stopping."""

from __future__ import annotations

from typing import Annotated

from watcher.config.ranking import RankingSettings
from watcher.config.rules import Positive, about


class StoppingSettings(RankingSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When training should end."""

    patience: Annotated[
        Positive | None,
        about("Stop after N evaluations without improvement. Default: never stop.", "N"),
    ] = None
    min_delta: Annotated[
        float, about("A gain that is not greater than this is no improvement.", "DELTA", ge=0)
    ] = 0.0
    min_steps: Annotated[
        int, about("Do not stop before an evaluation at this global step.", "STEPS", ge=0)
    ] = 0
