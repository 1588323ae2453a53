"""`checkpoint-watcher completion`: the script by which a shell completes what is typed."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "checkpoint-watcher"
COMPLETE_VARIABLE = "_CHECKPOINT_WATCHER_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script by which bash, zsh or fish completes commands, options and checkpoints.

    \b
    bash, 4.4 or newer:
      checkpoint-watcher completion bash \\
          > ~/.local/share/bash-completion/completions/checkpoint-watcher
    or, without the package bash-completion, in ~/.bashrc:
      eval "$(checkpoint-watcher completion bash)"

    \b
    zsh, into a folder of $fpath, before compinit in ~/.zshrc:
      checkpoint-watcher completion zsh > ~/.zfunc/_checkpoint-watcher
    or, after compinit:
      eval "$(checkpoint-watcher completion zsh)"

    \b
    fish:
      checkpoint-watcher completion fish \\
          > ~/.config/fish/completions/checkpoint-watcher.fish

    Names of checkpoints, metrics and boards come from the database of the MODEL_DIR that is typed.
    The script calls checkpoint-watcher, which has to be found by its name.
    """
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(context.find_root().command, {}, PROGRAM, COMPLETE_VARIABLE).source())
