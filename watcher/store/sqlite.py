"""sqlite-utils, imported without NumPy.

It looks for NumPy to know the types of its numbers. The writer of TensorBoard's files has brought
that into the environment, and the daemon, which stores none of its numbers, would take 12 MiB more.
"""

from __future__ import annotations

import sys

_HIDDEN = "numpy" not in sys.modules
if _HIDDEN:
    sys.modules["numpy"] = None  # type: ignore[assignment]  # an import of it fails
try:
    from sqlite_utils import Database, Migrations
finally:
    if _HIDDEN:
        del sys.modules["numpy"]

__all__ = ["Database", "Migrations"]
