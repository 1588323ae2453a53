"""The sentinel: a file that says training should end, and why. The effect of `stop`.

One JSON object: `schema` (1), `reason` (code, see `stop.REASONS`), `message`, `run` (the
run's identity, as `runs.uuid`), `metric`, `mode`, `best` (`checkpoint`, `global_step`, `score`),
`global_step` (of the evaluation that decided), `created_at`, `version`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from watcher import __version__
from watcher.decision.stop import StopDecision
from watcher.files.atomic_io import read_regular, replace_file
from watcher.types import ScoredCheckpoint

SENTINEL_SCHEMA = 1
_MOVING = ("created_at", "version")


def sentinel_content(
    decision: StopDecision,
    *,
    run: str,
    metric: str,
    mode: str,
    created_at: str,
    best: ScoredCheckpoint | None = None,
) -> dict[str, Any]:
    """Return the sentinel's JSON object; the schema is at the top of this module.

    Args:
        decision: Why to stop.
        run: The run's identity.
        metric: The primary metric, as the user wrote it.
        mode: `max` or `min`.
        created_at: ISO 8601, UTC.
        best: The best checkpoint on the board. Default: the best of all that were evaluated,
            which may not be there any more.
    """
    best = best or decision.best
    return {
        "schema": SENTINEL_SCHEMA,
        "reason": decision.reason,
        "message": decision.message,
        "run": run,
        "metric": metric,
        "mode": mode,
        "best": best
        and {"checkpoint": best.name, "global_step": best.global_step, "score": best.score},
        "global_step": decision.global_step,
        "created_at": created_at,
        "version": __version__,
    }


def same_decision(present: dict[str, Any] | None, content: dict[str, Any]) -> bool:
    """True when the sentinel that lies there says what `content` says."""
    return present is not None and all(
        present.get(key) == value for key, value in content.items() if key not in _MOVING
    )


def write_sentinel(path: Path, content: dict[str, Any]) -> None:
    """Write the sentinel so that a reader sees either nothing or all of it.

    Raises:
        OSError: the file could not be written.
    """
    encoded = msgspec.json.format(msgspec.json.encode(content), indent=2)
    # Others act on this file (a launcher, a path unit run by another user), so all may read it.
    replace_file(path, encoded + b"\n", mode=0o644)


def is_sentinel(content: dict[str, Any] | None) -> bool:
    """Tell whether what `read_sentinel` gave is a sentinel, of whichever run."""
    if not content or not isinstance(content.get("run"), str):
        return False
    return isinstance(content.get("schema"), int) and ("reason" in content or "message" in content)


def read_sentinel(path: Path) -> dict[str, Any] | None:
    """Return the sentinel's object, None when there is none; a foreign content gives `{}`."""
    try:
        content = msgspec.json.decode(read_regular(path, limit_bytes=1 << 20))
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError):
        return {}
    return content if isinstance(content, dict) else {}
