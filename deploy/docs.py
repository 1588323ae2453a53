"""The generated parts of docs/: settings, commands, and the map of the code. `make docs`.

Each stands in its page between two comments, `<!-- begin NAME -->` and `<!-- end NAME -->`; what is
around them is written by hand.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from watcher.cli import cli
from watcher.cli.settings_help import SettingOption
from watcher.config import (
    FILE_ONLY,
    LaunchSettings,
    Setting,
    Settings,
    describe,
    names,
)

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs"


def settings() -> str:
    """Return a table for each group of settings, in their order; the launcher's own are last."""
    ours = [one for one in describe(Settings) if one.name not in FILE_ONLY]
    launcher = [one for one in describe(LaunchSettings) if one.name not in names(Settings)]
    groups: dict[str, list[Setting]] = {}
    for setting in (*ours, *launcher):
        groups.setdefault(setting.group, []).append(setting)
    return "\n\n".join(
        f"## {title}\n\n{_table(('setting', 'default', ''), map(_setting_row, rows))}"
        for title, rows in groups.items()
    )


def _setting_row(setting: Setting) -> tuple[str, str, str]:
    flag = f"--{setting.name.replace('_', '-')}"
    about, said, default = setting.about.partition(" Default: ")
    if said:
        shown = default.removesuffix(".")
    elif setting.kind == "switch":
        shown = "on" if setting.default else "off"
    elif setting.default in (None, (), ""):
        shown = "none" if setting.name != "model_dir" else "must be given"
    else:
        shown = f"`{_plain(setting.default)}`"
    if setting.name == "pipeline_config":
        shown = "must be given"
    if setting.kind == "switch":
        first = f"`{flag}`, `--no-{flag[2:]}`"
    else:
        first = _code(f"{flag} {setting.metavar or ''}".strip())
    several = " Can be given several times." if setting.kind == "list" else ""
    return first, shown, about + several


def _code(text: str) -> str:
    """Return it as code, in pieces where it has bars, which no two readers of tables take alike."""
    pieces = re.sub(r" \[([^\[\]]*\|[^\[\]]*)\]", r" \1", text).replace(" / ", "|").split("|")
    return ", ".join(f"`{piece}`" for piece in pieces)


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def commands() -> str:
    """Return a section for each command, in the groups and the order of the main help text."""
    parts = []
    for title, listed in cli.groups.items():  # type: ignore[attr-defined]
        parts.append(f"## {title}")
        parts += [_command(name) for name in listed]
    return "\n\n".join(parts)


def _command(name: str) -> str:
    command = cli.get_command(click.Context(cli), name)
    assert command and command.help
    context = click.Context(command, info_name=f"checkpoint-watcher {name}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"### {name}", _verbatim(usage), *_prose(inspect.cleandoc(command.help))]
    groups = list(_options(command, context))
    own = [row for group, row in groups if group is None or group in _launcher_groups()]
    parts.append(_table(("option", ""), own))
    if len(own) < len(groups):
        parts.append("And all [settings](settings.md) of `run`.")
    if command.epilog:
        shown = command.epilog.partition("Examples:\n")[2]
        parts.append(_verbatim(shown))
    return "\n\n".join(parts)


def _launcher_groups() -> set[str]:
    own = set(names(LaunchSettings)) - set(names(Settings))
    return {one.group for one in describe(LaunchSettings) if one.name in own}


def _options(
    command: click.Command, context: click.Context
) -> Iterator[tuple[str | None, tuple[str, str]]]:
    """Yield each option with the group of the settings that it is in, but for what all have."""
    for parameter in command.get_params(context):
        if not isinstance(parameter, click.Option) or {"--help", "--debug"} & {*parameter.opts}:
            continue
        if record := parameter.get_help_record(context):
            group = parameter.group if isinstance(parameter, SettingOption) else None
            yield group, (_code(record[0]), _brackets(record[1]))


def _brackets(about: str) -> str:
    """Shorten what click adds of defaults and ranges."""
    return re.sub(r" \[x[<>]=?0\]|(?<=\d)\.0(?=\])", "", re.sub(r"  +", " ", about))


def _prose(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; what click leaves as it is becomes a block of code."""
    for paragraph in re.split(r"\n\n+", text):
        if paragraph.startswith("\b\n"):
            yield _verbatim(paragraph[2:])
        else:
            yield _escaped(" ".join(paragraph.split()))


def _verbatim(text: str) -> str:
    return f"```text\n{textwrap.dedent(text).rstrip()}\n```"


def house() -> str:
    """Return a table of the folders of both sides, by the first sentence of their docstrings."""
    rows = []
    for package in ("watcher", "evaluators"):
        for init in sorted((ROOT / package).rglob("__init__.py")):
            folder = init.parent.relative_to(ROOT)
            rows.append((f"`{folder}/`", _first_sentence(init)))
    alone = (path for path in (ROOT / "watcher").glob("*.py") if not path.name.startswith("__"))
    files = [(f"`watcher/{path.name}`", _first_sentence(path)) for path in sorted(alone)]
    return f"{_table(('folder', ''), rows)}\n\n{_table(('file', ''), files)}"


def _first_sentence(path: Path) -> str:
    """Return it without the name that many of them begin with."""
    about = ast.get_docstring(ast.parse(path.read_text())) or ""
    head, colon, rest = " ".join(about.partition("\n\n")[0].split()).partition(": ")
    name = path.parent.name if path.stem == "__init__" else path.stem
    if colon and head.lower() == name:
        return rest[0].upper() + rest[1:]
    return f"{head}{colon}{rest}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    body = [line(cell if cell[:1] == "`" else _escaped(cell) for cell in row) for row in rows]
    return "\n".join([line(head), "|" + "---|" * len(head), *body])


def _escaped(text: str) -> str:
    """Keep Markdown from reading stars and brackets of a help text as its own."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if n % 2 else re.sub(r"([*<\[])", r"\\\1", part) for n, part in enumerate(parts)
    )


GENERATED = {
    "reference/settings.md": ("settings", settings),
    "reference/commands.md": ("commands", commands),
    "contributing.md": ("house", house),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say which pages are stale")
    check = parser.parse_args().check
    stale = []
    for name, (part, generate) in GENERATED.items():
        page = PAGES / name
        text = page.read_text()
        marks = f"<!-- begin {part} -->", f"<!-- end {part} -->"
        head, begin, rest = text.partition(marks[0])
        _, end, tail = rest.partition(marks[1])
        if not (begin and end):
            sys.exit(f"{page} has no {' and '.join(marks)}")
        made = f"{head}{begin}\n\n{generate()}\n\n{end}{tail}"
        if made != text:
            stale.append(f"docs/{name}")
            if not check:
                page.write_text(made)
    if stale and check:
        sys.exit(f"stale: {', '.join(stale)}; `python deploy/docs.py` writes them anew")
    print(f"written: {', '.join(stale)}" if stale else "docs/ is as the code says")


if __name__ == "__main__":
    main()
