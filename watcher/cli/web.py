"""`checkpoint-watcher web`: runs in a browser, or one of them in a file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from watcher.cli.runs import find_runs, run_folders
from watcher.cli.settings_help import examples
from watcher.config import ENVIRONMENT_PREFIX

DEFAULT_PORT = 8001


@click.command(
    epilog=examples(
        "checkpoint-watcher web models/ssd --open",
        "checkpoint-watcher web models/ssd --export report.html",
    )
)
@run_folders
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    metavar="PORT",
    help=f"Port to listen on, 0 for a free one [{DEFAULT_PORT}].",
)
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="HOST",
    help="Address to listen on; whoever reaches it can read the runs [127.0.0.1].",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the web browser.")
@click.option(
    "--datasette",
    type=click.Path(path_type=Path),
    metavar="PROGRAM",
    envvar=f"{ENVIRONMENT_PREFIX}DATASETTE",
    help="Datasette, or the interpreter that has it, if not in this environment.",
)
@click.option(
    "--export",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write a report of the one run into a file instead, - for standard output; needs no"
    " Datasette.",
)
def web(
    folders: tuple[Path, ...],
    state_dir: str | None,
    port: int,
    host: str,
    open_browser: bool,
    datasette: Path | None,
    export: Path | None,
) -> None:
    """Serve a web page of the runs in MODEL_DIRs until Ctrl-C, with Datasette.

    Reads the live databases and writes nothing; it works while the watchers run and after. Several
    MODEL_DIRs, or a folder that holds some, have a page each and an overview.
    """
    if export:
        _export(folders, state_dir, export)
        return
    from watcher.web.datasette_server import names_this_machine
    from watcher.web.plan import Plan, ServedRun, find_served, make_plan
    from watcher.web.serving import interpreter_of, listening, serve

    interpreter = interpreter_of(datasette) if datasette else Path(sys.executable)
    local = names_this_machine(host)
    if not local:
        click.echo(f"warning: whoever reaches {host} can read these runs: no password", err=True)

    known: tuple[ServedRun, ...] = ()

    def look() -> Plan:
        nonlocal known
        asked = find_runs(folders, state_dir)
        places = [(place.model_dir, place.state_dir) for place in asked.places]
        known = find_served(places, tolerant=asked.many, known=known)
        return make_plan(known)

    with listening(host, port) as sock:
        shown = f"[{host}]" if ":" in host else host
        origin = f"http://{shown}:{sock.getsockname()[1]}"

        def ready(plan: Plan) -> None:
            runs = "1 run" if len(plan.runs) == 1 else f"{len(plan.runs)} runs"
            click.echo(f"{runs} at {origin}{plan.start}")
            if open_browser:
                click.launch(origin + plan.start)

        serve(interpreter, sock, look, ready, local=local)


def _export(folders: tuple[Path, ...], state_dir: str | None, file: Path) -> None:
    from watcher.cli.runs import only_reader
    from watcher.web.export import export, rendered

    if len(folders) > 1:
        raise click.UsageError("--export is of one run, and several were given")
    to_screen = str(file) == "-"
    with only_reader(folders[0], state_dir) as reader:
        told, missing = rendered(reader) if to_screen else (file, export(reader, file))
    if missing:
        click.echo(f"warning: no curves in it: {missing}", err=True)
    click.echo(told)
