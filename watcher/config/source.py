"""Settings of where checkpoints come from."""

from __future__ import annotations

from typing import Annotated

import msgspec

from watcher.config.rules import about


class SourceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Looks at MODEL_DIR."""

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
