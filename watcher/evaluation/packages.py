"""Packages: what of an evaluation's an interpreter lacks, found without importing any of it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

_LOOK_SECONDS = 10.0
_ANSWER = "checkpoint-watcher: lacks"
# Looks for them without importing them, which takes a second instead of half a minute.
_PROGRAM = (
    "import importlib.util as u, sys;"
    "lacks = [name for name in sys.argv[1:] if not u.find_spec(name)];"
    f"print('{_ANSWER}', *lacks);"
    "sys.exit(bool(lacks))"
)


def lacking(python: Path, packages: Sequence[str]) -> list[str] | None:
    """Return which top-level packages an interpreter cannot find; it runs for a moment.

    None where that is not known: it does not answer within ten seconds, or is no Python by its
    name, such as a worker of one's own, which would be started by the question.
    """
    if not python.name.startswith(("python", "pypy")):
        return None
    try:
        # Not in the current folder, which a worker would not search either.
        ended = subprocess.run(
            [python, "-c", _PROGRAM, *packages],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            timeout=_LOOK_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if not ended.returncode:
        return []
    last = ended.stdout.decode(errors="replace").rstrip().rpartition("\n")[2]
    return last.removeprefix(_ANSWER).split() if last.startswith(_ANSWER) else None


def not_installed(packages: Sequence[str], python: Path) -> str:
    """Return the words for packages that an interpreter lacks."""
    are = "is" if len(packages) == 1 else "are"
    return f"{' and '.join(packages)} {are} not installed in {python}"
