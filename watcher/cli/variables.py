"""Environment variables that look like ours and that nothing reads: told, since they do nothing."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

import click

from watcher.cli.failures import DEBUG_VARIABLE
from watcher.config.rules import ENVIRONMENT_PREFIX

# Beside the settings: options of single commands, and what our tests are steered with.
_OTHERS = ("ONLY_GIVEN", "DATASETTE", "OD_PYTHON", "EXHAUSTIVE", "TORTURE_SECONDS")
# Kubernetes tells each container of a service named checkpoint-watcher in these.
_OF_SERVICES = re.compile(r"SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?")
# The processes that a command starts have its environment, and need not say it again.
_TOLD = "_CHECKPOINT_WATCHER_VARIABLES_TOLD"


def warn_of_unknown() -> None:
    """Say on standard error which variables with our prefix are not known, once for all processes.

    No error: a variable may be there for a newer version.
    """
    given = [name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX)]
    if not given or _TOLD in os.environ:
        return
    if told := list(_unknown(given)):
        os.environ[_TOLD] = "1"
    for line in told:
        click.echo(f"warning: {line}", err=True)


def known() -> frozenset[str]:
    """Return the names of the variables that are read."""
    from watcher.config import FILE_ONLY, LaunchSettings, names

    settings = (name.upper() for name in names(LaunchSettings) if name not in FILE_ONLY)
    return frozenset({DEBUG_VARIABLE, *(ENVIRONMENT_PREFIX + one for one in (*settings, *_OTHERS))})


def _unknown(given: Iterable[str]) -> Iterable[str]:
    every = sorted(known())
    for name in sorted(set(given) - set(every)):
        own = name.removeprefix(ENVIRONMENT_PREFIX)
        if _OF_SERVICES.fullmatch(own):
            continue
        # Without what all of them begin with, which would make any two alike.
        wanted = [one.removeprefix(ENVIRONMENT_PREFIX) for one in every]
        close = difflib.get_close_matches(own, wanted, n=1)
        near = f": did you mean {ENVIRONMENT_PREFIX}{close[0]}?" if close else ""
        yield f"{name} in the environment is not a setting, and does nothing{near}"
