"""`checkpoint-watcher agent`: evaluates on this host for a watcher on another one."""

from __future__ import annotations

import sys

import click


@click.command(short_help="Evaluate on this host for a watcher on another one.")
def agent() -> None:
    """Evaluate on this host for a watcher on another one.

    Started by that watcher through ssh, srun or kubectl exec, as `--device HOST/gpu:1` or a
    [[device]] of its file says; there is nothing to start by hand. It takes the lock of the device
    here, starts the evaluation with the training environment's interpreter, and ends it when the
    line to the watcher ends.
    """
    from watcher.agent.program import main

    sys.exit(main())
