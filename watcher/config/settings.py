"""All settings of a run: each group of settings adds its fields to the one before."""

from __future__ import annotations

from typing import Annotated, Literal

from watcher.config.rules import NotNegative, about
from watcher.config.service import ServiceSettings
from watcher.decision.queue_policy import QueuePolicy, parse_policy, parse_size


class Settings(ServiceSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The queue, the looks at MODEL_DIR, the end and the log.

    With the groups before it, everything that can be set. Field names are the TOML keys and, with
    dashes, the flags.
    """

    queue_policy: Annotated[
        str,
        about(
            "What waits when evaluation is slower than training: all; latest; every-N, those"
            " whose number divides by N; or spread, ten at most, evenly over the steps.",
            "all|latest|every-N|spread",
        ),
    ] = "all"
    max_pinned_bytes: Annotated[
        int | str | None,
        about(
            "Size of the checkpoints that may wait, such as 20GB. Beyond it they are thinned"
            " evenly, and the newest stays. Default: no limit.",
            "SIZE",
        ),
    ] = None
    exit_when_idle: Annotated[
        NotNegative | None,
        about(
            "End with code 0 when nothing is pending and nothing new came for so long.",
            "SECONDS",
        ),
    ] = None
    wait_for_model_dir: Annotated[bool, about("Wait for a MODEL_DIR that does not exist yet.")] = (
        False
    )
    rescan_seconds: Annotated[
        float, about("Look at MODEL_DIR at least this often.", "SECONDS", gt=0, le=10)
    ] = 10.0
    grace_seconds: Annotated[
        float,
        about(
            "How long an incomplete checkpoint may stay so before it is corrupt.", "SECONDS", gt=0
        ),
    ] = 30.0
    evict_seconds: Annotated[
        float,
        about(
            "How long what left best/ can still be read there, by those who have its name.",
            "SECONDS",
            ge=0,
        ),
    ] = 10.0
    log_format: Annotated[
        Literal["auto", "live", "human", "json"],
        about("What run prints; auto is live on a terminal, else human-readable lines."),
    ] = "auto"

    @property
    def waiting_policy(self) -> QueuePolicy:
        """What may wait: `queue_policy` within `max_pinned_bytes`."""
        limit = None if self.max_pinned_bytes is None else parse_size(str(self.max_pinned_bytes))
        return parse_policy(self.queue_policy, limit)
