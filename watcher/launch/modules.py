"""Modules: whether COMMAND's interpreter has what COMMAND asks it for, before anything is started.

Only a Python of this machine is asked, never another program. It imports nothing of the trainer's,
and one that does not answer at once is not waited for.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from watcher.errors import ConfigError
from watcher.launch.command import PythonCommand, interpreter, python_command
from watcher.launch.kinds import kind_of

# An answer takes 0.05 s; the trainer waits for it.
_ANSWER_SECONDS = 1.0
_MARK = "checkpoint-watcher misses:"
# Of a name without dots nothing is imported.
_PROGRAM = (
    "import importlib.util as u, sys;"
    f"print('{_MARK}', *(n for n in sys.argv[1:] if u.find_spec(n) is None))"
)


def found_interpreter(command: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """Return COMMAND's Python by its absolute path, as PATH leads to it; None when it names none.

    A link is not resolved, since an environment is known by it. What is not found stays as it was
    typed.
    """
    typed = interpreter(command)
    if typed is None:
        return None
    python = python_command(command)
    path = {**environment, **(python.variables if python else {})}.get("PATH")
    found = shutil.which(typed, path=path)
    return str(Path(found).absolute()) if found else typed


def refuse_other_interpreter(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raise ConfigError when COMMAND's interpreter has no such module as COMMAND runs."""
    python = python_command(command)
    if python is None:
        return
    path = shutil.which(python.interpreter, path={**environment, **python.variables}.get("PATH"))
    names = needed_modules(python)
    missing = _missing(python, path, names, environment) if path and names else []
    if not path or not missing:
        return
    typed = python.interpreter
    has = f"has no module {' and none '.join(missing)}"
    which = f"{typed} ({path})" if typed != path else typed
    hint = (
        "name the training environment's interpreter: `checkpoint-watcher train ... --"
        f" /path/to/training/env/bin/python {'-m ' if python.is_module else ''}{python.program}"
        " ...`"
    )
    if _is_own(path):
        which += ", the watcher's own interpreter,"
        if typed != path:
            hint += "; of the watcher's environment only its one command belongs on PATH"
    raise ConfigError(f"the trainer's {which} {has}", hint=hint)


def needed_modules(python: PythonCommand) -> list[str]:
    """Return the packages without which a command fails at once. Pure."""
    first = [python.program.split(".")[0]] if python.is_module else []
    kind = kind_of(python.program, python.arguments)
    return [one for one in (*first, *(kind.packages if kind else ())) if one.isidentifier()]


def _missing(
    python: PythonCommand, path: str, names: Sequence[str], environment: Mapping[str, str]
) -> list[str]:
    """Return those that the interpreter does not find; none where it does not say so in time."""
    try:
        ended = subprocess.run(
            [path, *python.options, "-c", _PROGRAM, *names],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**environment, **python.variables},
            timeout=_ANSWER_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    last = (ended.stdout.splitlines() or [""])[-1]
    said = last.partition(_MARK)
    return said[2].split() if said[1] and ended.returncode == 0 else []


def _is_own(path: str) -> bool:
    """Compare folders and not files: environments share the file that their links lead to."""
    try:
        return Path(path).parent.samefile(Path(sys.prefix, "bin")) and os.access(path, os.X_OK)
    except OSError:
        return False
