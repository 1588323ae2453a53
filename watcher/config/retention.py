"""Settings of what is kept beside the best, and of what may wait."""

from __future__ import annotations

from typing import Annotated

import msgspec

from watcher.config.rules import Positive, about
from watcher.decision.queue_policy import QueuePolicy, parse_policy, parse_size
from watcher.decision.retain import RetainPolicy


class RetentionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept, and what may wait."""

    keep_every_steps: Annotated[
        Positive | None,
        about("Keep, in kept/, the first checkpoint of each N steps, whatever its score.", "N"),
    ] = None
    keep_last: Annotated[
        Positive | None, about("Keep the last N checkpoints in kept/, whatever their score.", "N")
    ] = None
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
    evict_seconds: Annotated[
        float,
        about(
            "How long what left best/ can still be read there, by those who have its name.",
            "SECONDS",
            ge=0,
        ),
    ] = 10.0

    @property
    def policy(self) -> RetainPolicy:
        """What `retain` decides by."""
        return RetainPolicy(self.keep_every_steps, self.keep_last)

    @property
    def waiting_policy(self) -> QueuePolicy:
        """What may wait: `queue_policy` within `max_pinned_bytes`."""
        limit = None if self.max_pinned_bytes is None else parse_size(str(self.max_pinned_bytes))
        return parse_policy(self.queue_policy, limit)
