"""The format of a trainer whose checkpoints are tensor bundles: names, layout and counting in one.

All that a trainer's checkpoints are known by is said in the two tables that this puts together;
`watcher.protocols.CheckpointFormat` says what is asked of a format.
"""

from __future__ import annotations

from pathlib import Path

from watcher.checkpoints import bundle
from watcher.checkpoints.bundle import MODEL_GARDEN_LAYOUT, OD_API_LAYOUT, Layout
from watcher.checkpoints.bundle_index import parse_index
from watcher.checkpoints.naming import USUAL_STEM, Naming
from watcher.files.slices import Progress, Work
from watcher.types import Pin


class BundleFormat(Naming, frozen=True):
    """Tensor bundles as one trainer names and fills them.

    Attributes:
        layout: Where in them the global step and the model are.
    """

    layout: Layout = OD_API_LAYOUT

    def global_step(self, prefix: Path) -> int | None:
        """Read the global step alone; see `bundle.read_global_step`."""
        return bundle.read_global_step(prefix, self.layout)

    def model_variables(self, index: bytes) -> list[str]:
        """List the keys of the model's variables in an index; see `parse_index`."""
        return bundle.model_variables(parse_index(index), self.layout)

    def verifying(self, prefix: Path, index: bytes, progress: Progress) -> Work[Pin]:
        """Check every byte of a private copy, and return it as a pin; see `bundle.verify`."""
        sizes = bundle.shard_sizes(parse_index(index))
        progress.begin(f"verifying {prefix.name}", sum(sizes))
        facts = yield from bundle.verifying(prefix, index, layout=self.layout, on_read=progress.add)
        return Pin(
            prefix=prefix,
            method="link",
            sha256=facts.sha256,
            global_step=facts.global_step,
            size_bytes=facts.size_bytes,
            model_variables=facts.model_variables,
        )


OD_API = BundleFormat(USUAL_STEM)
# The number is the global step.
MODEL_GARDEN = BundleFormat(USUAL_STEM, counts_saves=False, layout=MODEL_GARDEN_LAYOUT)
