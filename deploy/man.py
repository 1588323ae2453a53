"""Man pages from the help texts, with GNU help2man: `make man`."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from watcher import __version__
from watcher.cli import PROGRAM, cli

COMMANDS = ("checkpoint-watcher ", 'eval "$(', "CKPT=$(")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", type=Path, help="gets checkpoint-watcher.1 and one for each command"
    )
    parser.add_argument("commands", nargs="*", help="only these, and not all")
    given = parser.parse_args()
    folder, names = given.folder, given.commands or ["", *cli.names]
    help2man = shutil.which("help2man")
    if help2man is None:
        sys.exit("help2man is missing: apt install help2man")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        page = "-".join(filter(None, (PROGRAM, name)))
        write(help2man, name, folder / f"{page}.1")
    print(f"wrote {len(names)} pages, to be read with: man -l {folder / PROGRAM}.1")


def write(help2man: str, name: str, page: Path) -> None:
    """Run help2man on a program that prints the help text of one command."""
    command = cli.get_command(None, name) if name else cli
    assert command and command.help
    summary = " ".join(command.help.partition("\n\n")[0].split()).removesuffix(".")
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch, page.stem)
        help_text = subprocess.run(
            [sys.executable, "-m", "watcher", *name.split(), "--help"],
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        text = Path(scratch, "help")
        text.write_text(arranged(help_text))
        program.write_text(f"#!/bin/sh\nexec cat '{text}'\n")
        program.chmod(0o755)
        also = "" if name else "\n".join(f".BR {PROGRAM}-{one} (1)," for one in cli.names)
        include = Path(scratch, "include")
        see = also.rstrip(",") or f".BR {PROGRAM} (1)"
        include.write_text(f"[see also]\n{see}\n")
        subprocess.run(
            [
                *(help2man, "--no-info", "--no-discard-stderr", f"--name={summary}"),
                *(f"--version-string={__version__}", f"--include={include}"),
                *(f"--source={PROGRAM} {__version__}", f"--output={page}", str(program)),
            ],
            check=True,
        )


def arranged(text: str) -> str:
    """Arrange a help text as help2man reads it: prose at the margin, commands behind $ and >."""
    head, options, rest = text.partition("\nOptions:\n")
    head = re.sub(r"^  ", "", head, flags=re.MULTILINE)
    rest = re.sub(r"^  Examples:", "Examples:", rest, flags=re.MULTILINE)
    lines, goes_on = [], False
    for line in (head + options + rest).splitlines():
        words = line.strip()
        if goes_on:
            shown = f"  > {words.removeprefix('> ')}"
        elif words.startswith(COMMANDS) and not line.startswith("Usage"):
            shown = f"  $ {words}"
            if lines[-1].strip() and not lines[-1].startswith(("  $", "  >")):
                lines.append("")
        else:
            shown = line
        goes_on = words.endswith("\\")
        lines.append(shown)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
