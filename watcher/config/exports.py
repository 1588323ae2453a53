"""Settings of what is made of the evaluations for other programs."""

from __future__ import annotations

from typing import Annotated

import msgspec

from watcher.config.bucket import Place, parse_place
from watcher.config.rules import about


class ExportSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Event files for TensorBoard, and a copy of best/ in a bucket."""

    tensorboard: Annotated[
        bool, about("Write event files for TensorBoard, as the OD API's own evaluation does.")
    ] = True
    tensorboard_categories: Annotated[
        bool,
        about(
            "Write each category's AP for TensorBoard, too, of evaluations from then on; many"
            " categories are many charts."
        ),
    ] = False
    visualizations: Annotated[
        Annotated[int, msgspec.Meta(ge=0)] | None,
        about(
            "How many images of the eval set TensorBoard shows with what was detected."
            " Default: the pipeline's num_visualizations.",
            "N",
        ),
    ] = None
    publish: Annotated[
        str | None,
        about(
            "Upload best/ and EARLY_STOP into this folder of a bucket, whenever they change:"
            " gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.",
            "URL",
        ),
    ] = None

    @property
    def published_to(self) -> Place | None:
        """Where best/ is uploaded to, None for nowhere."""
        return parse_place(self.publish) if self.publish else None
