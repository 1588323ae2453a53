"""What a user can type is documented, and what the README says exists."""

from __future__ import annotations

import json
import re

from click.testing import CliRunner
from watching import ROOT, Watcher

from watcher.cli import cli
from watcher.config import FILE_ONLY, Settings

README = (ROOT / "README.md").read_text()


def test_every_command_is_in_the_readme_and_has_a_help_text():
    for name in cli.list_commands(None):
        assert f"checkpoint-watcher {name}" in README, name
        shown = CliRunner().invoke(cli, [name, "--help"])
        assert shown.exit_code == 0 and "Usage:" in shown.output


def test_every_setting_is_a_flag_with_a_help_text_and_in_the_readme():
    shown = CliRunner().invoke(cli, ["run", "--help"]).output
    for name in set(Settings.__struct_fields__) - {"model_dir"} - FILE_ONLY:
        flag = f"--{name.replace('_', '-')}"
        assert re.search(rf"{flag}[ \n/]", shown), f"{flag} is not in --help"
        assert re.search(rf"`{flag}[ `]", README), f"{flag} is not in the README"


def test_every_flag_in_the_readme_exists():
    known = {f"--{name.replace('_', '-')}" for name in Settings.__struct_fields__}
    for name in cli.list_commands(None):
        known |= set(re.findall(r"--[a-z-]+", CliRunner().invoke(cli, [name, "--help"]).output))
    ours = [line for line in README.splitlines() if "pip install" not in line]
    assert set(re.findall(r"`(--[a-z][a-z-]+)", "\n".join(ours))) <= known


def test_every_test_that_the_readme_names_exists():
    named = set(re.findall(r"`(test_\w+)`", README))
    text = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 50
    assert named <= set(re.findall(r"^(?:def )?(test_\w+)", text, re.MULTILINE))


def test_the_views_have_the_columns_that_the_readme_promises(watcher: Watcher):
    watcher.run()
    table = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^`]+)`", README, re.MULTILINE))
    promised = {name: columns.split(", ") for name, columns in table.items()}
    promised["leaderboard"] = ["rank", *promised["best"]]
    promised["boards"] += promised["best"]
    views = watcher.query("SELECT name FROM sqlite_master WHERE type = 'view'")
    assert promised.keys() == {row["name"] for row in views}
    for view, columns in promised.items():
        present = [row["name"] for row in watcher.query(f"PRAGMA table_info({view})")]
        assert set(columns) <= set(present), view


def test_the_sentinel_in_the_readme_has_the_keys_of_a_real_one(watcher: Watcher):
    from fake_trainer import Manager, model_tensors

    manager = Manager(watcher.model_dir)
    for step in (100, 200):
        manager.save(step, model_tensors(1000, str(step)))
    watcher.run("--patience", 1, STUB_SCORES='{"ckpt-1": 0.5, "ckpt-2": 0.4}')
    shown = json.loads(re.search(r"```json\n(.*?)```", README, re.DOTALL)[1])
    real = watcher.stop_notice()
    state = watcher.query("SELECT state, stop_reason, message, patience_left FROM run_state")[0]
    assert tuple(state.values()) == ("stopped", real["reason"], real["message"], 0)
    assert shown.keys() == real.keys()
    assert shown["best"].keys() == real["best"].keys()
