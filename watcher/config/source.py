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
    poll_seconds: Annotated[
        float,
        about(
            "Ask a bucket for new checkpoints this often; gs:// and s3:// only.", "SECONDS", ge=1
        ),
    ] = 20.0
    endpoint_url: Annotated[
        str | None,
        about(
            "Where the bucket's server is. Default: Google's, or Amazon's of the region; as the"
            " environment says, AWS_ENDPOINT_URL or STORAGE_EMULATOR_HOST.",
            "URL",
        ),
    ] = None
    region: Annotated[
        str | None,
        about("Region of an s3:// bucket. Default: AWS_REGION, or that of the profile.", "NAME"),
    ] = None
    anonymous: Annotated[
        bool, about("Look for no credentials: the bucket may be read by anybody.")
    ] = False

    def patience(self, remote: bool) -> float:
        """Return for how many seconds an incomplete checkpoint may stay so.

        In a bucket the index of a name that is used again may follow its data a while later.
        """
        return max(self.grace_seconds, 15 * self.poll_seconds) if remote else self.grace_seconds
