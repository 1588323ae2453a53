"""`rebuild`, of a run with several boards and of what was kept whatever its score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, cli

pytestmark = pytest.mark.slow

BOARDS = """
top_k = 1
keep_last = 1
[[board]]
[[board]]
name = "small"
metric = "Loss/total_loss"
mode = "min"
top_k = 2
"""


def trained(watcher: Watcher, saves: int) -> Manager:
    """Save so many checkpoints, and return what saves more."""
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, saves + 1):
        manager.save(100 * number, model_tensors(1000, number))
    return manager


def lost(watcher: Watcher) -> None:
    """Lose the database, and the trainer's own files with it."""
    files = [*watcher.database.parent.glob("watcher.db*"), *watcher.model_dir.glob("ckpt-*")]
    for file in files:
        file.unlink()


def everything_placed(watcher: Watcher) -> dict[str, dict[str, int]]:
    """File to inode, by folder."""
    folders = (watcher.best_dir, watcher.model_dir / "best-small", watcher.model_dir / "kept")
    return {
        folder.name: {file.name: file.stat().st_ino for file in folder.glob("ckpt-*")}
        for folder in folders
    }


def boards(watcher: Watcher) -> list[dict[str, object]]:
    return watcher.query("SELECT board, rank, checkpoint, score, path FROM boards ORDER BY 1, 2")


def test_boards_and_what_is_kept_by_hand_come_back_with_their_scores(
    watcher: Watcher, tmp_path: Path
):
    trained(watcher, 5)
    settings = tmp_path / "watcher.toml"
    settings.write_text(BOARDS)
    assert watcher.run("--config", settings) == 0
    assert cli("keep", watcher.model_dir, "ckpt-3").returncode == 0
    assert watcher.run("--config", settings) == 0
    shown, files = boards(watcher), everything_placed(watcher)
    assert len(shown) == 5 and {"ckpt-3.index", "ckpt-5.index"} < files["kept"].keys()
    kept = json.loads((watcher.model_dir / "kept" / "kept.json").read_text())["checkpoints"]
    assert [one["kept"] for one in kept] == ["one of the last 1", "kept by hand"]
    lost(watcher)

    rebuilt = cli("rebuild", watcher.model_dir)
    assert rebuilt.stdout.splitlines()[-1] == (
        f"next: start `checkpoint-watcher run {watcher.model_dir}` again with the settings of the"
        " run, which the new database does not hold"
    )
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert f"kept, from {watcher.model_dir / 'kept'}: ckpt-5, ckpt-3\n" in rebuilt.stdout
    assert "pending, from the pins: none" in rebuilt.stdout
    assert boards(watcher) == shown
    asked = watcher.evaluations()
    watcher.log.unlink()
    assert watcher.run("--config", settings) == 0
    assert watcher.evaluations() == asked, "nothing is measured again"
    assert boards(watcher) == shown and everything_placed(watcher) == files
    assert "not ours" not in watcher.log.read_text()
    # What the policy keeps is not kept by hand from now on.
    assert cli("keep", watcher.model_dir, "ckpt-5", "--undo").returncode == 1
    assert cli("keep", watcher.model_dir, "ckpt-3", "--undo").returncode == 0
    assert watcher.run("--config", settings) == 0
    assert [name for name in everything_placed(watcher)["kept"] if "ckpt-3" in name] == []


@pytest.mark.parametrize("left", ["best/best.json", "watcher/pins/ckpt-1"])
def test_who_reads_a_lost_database_is_told_how_it_is_made_anew(tmp_path: Path, left: str):
    (trace := tmp_path / left).parent.mkdir(parents=True)
    trace.touch()
    for words in (["status"], ["best"], ["keep", "last"]):
        told = cli(words[0], tmp_path, *words[1:])
        assert told.returncode == 1 and f"hint: {trace} is that of a run" in told.stderr
        assert f"`checkpoint-watcher rebuild {tmp_path}` makes a new database" in told.stderr
    trace.unlink()
    assert "rebuild" not in cli("status", tmp_path).stderr


def test_a_lost_database_elsewhere_is_made_anew_there(tmp_path: Path):
    (state := tmp_path / "state" / "pins" / "ckpt-1").mkdir(parents=True)
    told = cli("status", tmp_path, "--state-dir", state.parent.parent)
    command = f"checkpoint-watcher rebuild MODEL_DIR --state-dir {state.parent.parent}"
    assert f"`{command}` makes a new database" in told.stderr


def test_what_is_kept_without_a_score_is_tried_again_and_stays_kept(watcher: Watcher):
    trained(watcher, 3)
    assert watcher.run("--top-k", 1, STUB_NAN="ckpt-2") == 0
    assert cli("keep", watcher.model_dir, "ckpt-2").returncode == 0
    assert watcher.run("--top-k", 1) == 0
    assert watcher.states()["ckpt-2"] == "failed"
    lost(watcher)
    rebuilt = cli("rebuild", watcher.model_dir)
    assert "ckpt-2" in rebuilt.stdout, rebuilt.stderr
    assert watcher.states() == {"ckpt-2": "pending", "ckpt-3": "scored"}
    assert watcher.run("--top-k", 1, STUB_NAN="ckpt-2") == 0
    assert watcher.states() == {"ckpt-2": "failed", "ckpt-3": "scored"}
    assert {"ckpt-2.index"} < everything_placed(watcher)["kept"].keys()


def test_a_board_by_a_metric_of_a_category_is_measured_anew_and_keeps_its_files_meanwhile(
    watcher: Watcher, tmp_path: Path
):
    """`best.json` has no metrics of categories."""
    manager = trained(watcher, 3)
    settings = tmp_path / "watcher.toml"
    settings.write_text(
        BOARDS.replace("Loss/total_loss", "AP[rectangle]").replace("keep_last", "#")
    )
    assert watcher.run("--config", settings) == 0
    shown, files = boards(watcher), everything_placed(watcher)
    assert len(shown) == 3
    lost(watcher)
    assert cli("rebuild", watcher.model_dir).returncode == 0
    assert boards(watcher) == shown
    asked = len(watcher.evaluations())
    manager.save(400, model_tensors(1000, 4))
    assert watcher.run("--config", settings) == 0
    assert sorted(watcher.evaluations()[asked:]) == ["ckpt-1", "ckpt-2", "ckpt-4"]
    assert boards(watcher)[1:] == shown[1:]
    assert everything_placed(watcher)["best-small"] == files["best-small"]


def test_a_persons_copy_of_best_is_no_board(watcher: Watcher):
    manager = trained(watcher, 3)
    assert watcher.run("--top-k", 1) == 0
    shutil.copytree(watcher.best_dir, watcher.model_dir / "best-backup")
    manager.save(400, model_tensors(1000, 4))
    assert watcher.run("--top-k", 1) == 0
    shown = boards(watcher)
    assert [row["checkpoint"] for row in shown] == ["ckpt-4"]
    lost(watcher)
    assert cli("rebuild", watcher.model_dir).returncode == 0
    assert boards(watcher) == shown
    assert watcher.run("--top-k", 1) == 0
    assert boards(watcher) == shown
    assert (watcher.model_dir / "best-backup" / "ckpt-3.index").exists()


def test_the_best_that_are_left_of_a_run_stop_nothing(watcher: Watcher):
    """They are alike by choice, as those of a training that stands still."""
    scores = [0.4, 0.5, 0.41, 0.501, 0.42, 0.502, 0.43, 0.503]
    numbered = {f"ckpt-{number}": score for number, score in enumerate(scores, 1)}
    said = {"STUB_SCORES": json.dumps(numbered)}
    manager = trained(watcher, 8)
    flags = ["--top-k", 4, "--plateau-std", 0.005, "--plateau-window", 4]
    assert watcher.run(*flags, **said) == 0
    lost(watcher)
    assert cli("rebuild", watcher.model_dir).returncode == 0
    assert watcher.run(*flags, **said) == 0
    assert not watcher.sentinel.exists()
    for number in range(9, 13):
        manager.save(100 * number, model_tensors(1000, number))
    numbered |= dict.fromkeys([f"ckpt-{number}" for number in range(9, 13)], 0.45)
    assert watcher.run(*flags, STUB_SCORES=json.dumps(numbered)) == 0
    assert watcher.stop_notice()["reason"] == "plateau"


def test_scores_of_the_evaluation_before_are_measured_anew(watcher: Watcher, tmp_path: Path):
    trained(watcher, 3)
    settings = tmp_path / "watcher.toml"
    settings.write_text(BOARDS.replace("keep_last", "#").replace("min", "max"))
    assert watcher.run("--config", settings) == 0
    shown = boards(watcher)
    small = watcher.model_dir / "best-small" / "best.json"
    said = json.loads(small.read_text())
    small.write_text(json.dumps({**said, "fingerprint": "e" * 64}))
    lost(watcher)
    assert cli("rebuild", watcher.model_dir).returncode == 0
    asked = len(watcher.evaluations())
    assert watcher.run("--config", settings) == 0
    again = [row["checkpoint"] for row in shown if row["board"] == "small"]
    assert sorted(watcher.evaluations()[asked:]) == sorted(again)
    assert boards(watcher) == shown
