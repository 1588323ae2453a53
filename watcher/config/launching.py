"""Settings of `checkpoint-watcher train`: those of the watcher, and the launcher's own."""

from __future__ import annotations

from typing import Annotated

import msgspec

from watcher.config.evaluator import OD_API, ModelGardenSettings, OdApiSettings
from watcher.config.rules import NotNegative, about
from watcher.config.settings import Settings, names


class TrainerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The trainer: when it is stopped and started again."""

    watch: Annotated[
        bool, about("Run the watcher beside the trainer, and let it finish its queue afterwards.")
    ] = False
    stop_at_checkpoint: Annotated[
        bool, about("On an early stop, wait until the trainer has saved once more.")
    ] = False
    stop_grace_seconds: Annotated[
        NotNegative, about("Time between SIGTERM and SIGKILL on an early stop.", "SECONDS")
    ] = 30.0
    restarts: Annotated[
        int,
        about(
            "Start a crashed trainer again, so many times in a row; a checkpoint of a later step"
            " begins the count anew.",
            "N",
            ge=0,
        ),
    ] = 0
    restart_seconds: Annotated[
        float,
        about(
            "First delay before a restart; it doubles, to five minutes at most.", "SECONDS", gt=0
        ),
    ] = 5.0
    drain_timeout: Annotated[
        NotNegative | None,
        about(
            "With --watch: how long the watcher may take for its queue after the trainer ended."
            " Default: as long as it takes.",
            "SECONDS",
        ),
    ] = None
    trainer_log: Annotated[
        str | None,
        about("Append the trainer's output to a file. Default: it is passed through.", "FILE"),
    ] = None


class _OptionalPipeline(OdApiSettings, tag=OD_API, frozen=True, kw_only=True):
    __doc__ = OdApiSettings.__doc__

    # The launcher alone needs none, and the trainer's own command usually names it.
    pipeline_config: Annotated[
        str,
        about("Pipeline config of the run. Default: the trainer's --pipeline_config_path.", "FILE"),
    ] = ""


class LaunchSettings(Settings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With the settings of `run`, everything that `train` can be told.

    `run` passes over the launcher's own keys in a shared file.
    """

    evaluator: _OptionalPipeline | ModelGardenSettings = _OptionalPipeline()
    trainer: TrainerSettings = TrainerSettings()


def launcher_names() -> frozenset[str]:
    """Return the names of the settings that `train` has and `run` has not."""
    return frozenset(names(LaunchSettings)) - frozenset(names(Settings))
