"""What the settings' fields are made of: types with their rules, and their descriptions."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

# A year. The system takes no wait that is much longer, and nobody means one.
MOST_SECONDS = 365 * 86400
ENVIRONMENT_PREFIX = "CHECKPOINT_WATCHER_"

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[float, Meta(ge=0)]
Niceness = Annotated[int, Meta(ge=0, le=19)]


def about(description: str, metavar: str | None = None, **rules: Any) -> Meta:
    """Describe a field for `--help`; `rules` are msgspec's, such as `ge=0`."""
    return Meta(description=description, extra={"metavar": metavar}, **rules)
