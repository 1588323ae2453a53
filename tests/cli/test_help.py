"""Help texts: they fit the terminal, name every command, and their examples are ones that parse."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from watching import ROOT

from watcher.cli import cli

COMMANDS = cli.list_commands(None)


def shown(*words: str, width: int = 80) -> str:
    """A help text as a terminal of that width shows it."""
    # click leaves two columns free.
    ended = CliRunner().invoke(cli, [*words, "--help"], terminal_width=width - 2)
    assert ended.exit_code == 0
    return ended.output


@pytest.mark.parametrize("width", [80, 100])
def test_help_fits_the_terminal_and_says_each_thing_whole(width: int):
    for name in ([], *([name] for name in COMMANDS)):
        text = shown(*name, width=width)
        assert max(map(len, text.splitlines())) <= width, name
        assert "..." not in re.sub(r"[A-Z_\]]\.\.\.", "", text), name


def test_the_main_help_names_every_command_once_in_its_group():
    listed = re.findall(r"^  ([a-z][a-z-]+)  +[A-Z]", shown(), re.MULTILINE)
    assert listed == COMMANDS


def test_the_settings_are_shown_in_groups_after_the_command_s_own_options():
    text = shown("run")
    heads = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert heads[0] == "Options" and "When training should end" in heads and len(heads) >= 7
    ending = text.split("When training should end:")[1].split("\n\n")[0]
    assert "--patience N" in ending and "--top-k" not in ending
    assert text.index("--config") < text.index("--pipeline-config") < text.index("--metric")


def test_every_example_is_a_command_line_that_parses():
    found, parent = 0, click.Context(cli, **cli.context_settings)
    for name in COMMANDS:
        command = cli.get_command(None, name)
        assert command
        text = (command.epilog or "").replace("\\\n", " ")
        for line in re.findall(r"checkpoint-watcher ([^)\n]+)", text):
            told, *words = shlex.split(line)
            assert told == name
            command.make_context(name, words, parent=parent)
            found += 1
    assert found > 20


@pytest.mark.slow
def test_man_pages_have_all_of_a_help_text_and_its_commands_as_they_are(tmp_path: Path):
    for program in ("help2man", "man"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here: apt install help2man man-db")
    words = [sys.executable, ROOT / "deploy" / "man.py", tmp_path, "run", "train"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    pages = {}
    for name in ("run", "train"):
        page = tmp_path / f"checkpoint-watcher-{name}.1"
        read = subprocess.run(
            ["man", "--warnings", "-l", page],
            env={**os.environ, "MANWIDTH": "80"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert read.returncode == 0 and read.stderr == ""
        pages[name] = re.sub("(.)\b\\1", r"\1", read.stdout)
    for flag in re.findall(r"^  (--[a-z-]+)", shown("run"), re.MULTILINE):
        assert re.search(rf"^ +{flag}\b", pages["run"], re.MULTILINE), flag
    assert "When training should end" in pages["run"]
    assert "$ checkpoint-watcher run --config ssd.toml --top-k 5\n" in pages["run"]
    assert "> python -m object_detection.model_main_tf2 \\\n" in pages["train"]
