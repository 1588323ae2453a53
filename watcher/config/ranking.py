"""Settings of ranking."""

from __future__ import annotations

from typing import Annotated, Literal

from watcher.config.paths import PathSettings
from watcher.config.rules import about

DEFAULT_METRIC = "DetectionBoxes_Precision/mAP"


class RankingSettings(PathSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which checkpoint is the better one, and how many are kept."""

    metric: Annotated[
        str, about("Primary metric: what ranks and stops, by the OD API's name.", "NAME")
    ] = DEFAULT_METRIC
    mode: Annotated[
        Literal["max", "min"], about("Whether the larger or the smaller score is better.")
    ] = "max"
    top_k: Annotated[
        int, about("Places in best/. -1 keeps every scored checkpoint, 0 none.", "K", ge=-1)
    ] = 3
