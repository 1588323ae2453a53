"""What a user can type is documented, and what the pages say exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import BESIDE, DOCS, README, anchors, everything, page, without_code
from watching import ROOT, Watcher

from watcher.cli import cli
from watcher.config import FILE_ONLY, Settings, names

PAGES = [README, *DOCS, *BESIDE]
OF_A_RUN = {"watcher.db", "worker.log", "lock", "pins/", "snapshot/", "notified.json"}
OF_A_RUN |= {"published.json", "EARLY_STOP.remote"}


def test_the_readme_is_read_in_three_minutes():
    text = README.read_text()
    assert text.count("\n") <= 150 and len(text.encode()) <= 8192
    # What it is, before anything else; and what can be relied on.
    first = [" ".join(one.split("\n\n")[1].split()) for one in (text, page("index"))]
    assert first[0] == first[1] and "never stops by itself" in first[0]
    assert re.findall(r"^(\d)\. \*\*", text, re.MULTILINE) == ["1", "2", "3", "4"]


def test_every_command_is_documented_and_has_a_help_text():
    listed = re.findall(r"^### ([a-z-]+)$", page("reference/commands"), re.MULTILINE)
    assert listed == cli.list_commands(None)
    by_hand = everything().replace(page("reference/commands"), "")
    for name in listed:
        assert f"checkpoint-watcher {name}" in by_hand, name
        shown = CliRunner().invoke(cli, [name, "--help"])
        assert shown.exit_code == 0 and "Usage:" in shown.output


def test_every_setting_is_a_flag_with_a_help_text_and_documented():
    table = page("reference/settings")
    shown = CliRunner().invoke(cli, ["run", "--help"]).output
    for name in set(names(Settings)) - {"model_dir"} - FILE_ONLY:
        flag = f"--{name.replace('_', '-')}"
        assert re.search(rf"{flag}[ \n/]", shown), f"{flag} is not in --help"
        assert re.search(rf"^\| `{flag}[ `]", table, re.MULTILINE), f"{flag} is not in the table"


def test_every_flag_that_is_named_exists():
    known = {f"--{name.replace('_', '-')}" for name in names(Settings)}
    for name in cli.list_commands(None):
        known |= set(re.findall(r"--[a-z-]+", CliRunner().invoke(cli, [name, "--help"]).output))
    others = {"--no-deps", "--checkpoint_every_n", "--model_dir"}
    assert set(re.findall(r"`(--[a-z][a-z-_]+)", everything())) - others <= known


def test_every_test_that_a_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", everything()))
    text = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 50
    assert named <= set(re.findall(r"^(?:def )?(test_\w+)", text, re.MULTILINE))


def test_the_views_have_the_columns_that_are_promised(watcher: Watcher):
    watcher.run()
    rows = r"^\| `(\w+)` \| [^|]+ \| `([^`]+)`"
    table = dict(re.findall(rows, page("reference/database"), re.MULTILINE))
    promised = {name: columns.split(", ") for name, columns in table.items()}
    promised["leaderboard"] = ["rank", *promised["best"]]
    promised["boards"] += promised["best"][: promised["best"].index("generation") + 1]
    views = watcher.query("SELECT name FROM sqlite_master WHERE type = 'view'")
    # `checkpoints` was a table: what it is now is as internal as that.
    assert promised.keys() | {"checkpoints"} == {row["name"] for row in views}
    for view, columns in promised.items():
        present = [row["name"] for row in watcher.query(f"PRAGMA table_info({view})")]
        assert set(columns) <= set(present), view


def test_the_sentinel_that_is_shown_has_the_keys_of_a_real_one(watcher: Watcher):
    from fake_trainer import Manager, model_tensors

    manager = Manager(watcher.model_dir)
    for step in (100, 200):
        manager.save(step, model_tensors(1000, str(step)))
    watcher.run("--patience", 1, STUB_SCORES='{"ckpt-1": 0.5, "ckpt-2": 0.4}')
    shown = json.loads(re.search(r"```json\n(.*?)```", page("reference/files"), re.DOTALL)[1])
    real = watcher.stop_notice()
    state = watcher.query("SELECT state, stop_reason, message, patience_left FROM run_state")[0]
    assert tuple(state.values()) == ("stopped", real["reason"], real["message"], 0)
    assert shown.keys() == real.keys()
    assert shown["best"].keys() == real["best"].keys()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere_and_pictures_are_there(path: Path):
    text = without_code(path.read_text())
    for about, file in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text):
        assert about and (path.parent / file).stat().st_size > 1000, file
    for target in re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text()), target


def test_every_page_is_in_the_index_and_in_the_navigation_of_the_site():
    index = page("index")
    navigation = (ROOT / "zensical.toml").read_text()
    for path in DOCS:
        name = str(path.relative_to(ROOT / "docs"))
        assert f'"{name}"' in navigation, name
        assert name == "index.md" or f"({name})" in index, name


def test_every_file_and_folder_of_the_code_that_a_page_names_exists():
    places = "watcher|evaluators|deploy|tests|systemd"
    for path in PAGES:
        for name in re.findall(rf"`((?:{places})/[\w./@*-]*)`", path.read_text()):
            # `watcher/` is also a folder of each run.
            of_a_run = name.removeprefix("watcher/") in OF_A_RUN
            assert of_a_run or list(ROOT.glob(name.rstrip("/"))), (path, name)
