"""A MODEL_DIR that was moved or copied, and a rebuilt one, are the run that they are now."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from watching import CLI, Watcher, cli, wait_until

from watcher.control.copied import refuse_other_run
from watcher.errors import ConfigError
from watcher.store import Store
from watcher.store.relocation import find_model_dir


def done(watcher: Watcher, *flags: object) -> Path:
    """Run on five checkpoints, of which the last two are promoted; returns the MODEL_DIR."""
    manager = Manager(watcher.model_dir, max_to_keep=None)
    for number in range(1, 6):
        manager.save(100 * number, model_tensors(4000, number))
    assert watcher.run("--top-k", 2, *flags) == 0
    return watcher.model_dir


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.name != "lock"}


def query(model_dir: Path, sql: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(model_dir / "watcher" / "watcher.db")) as db:
        return db.execute(sql).fetchall()


def said(*arguments: object) -> str:
    ended = cli(*arguments)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


def test_a_copy_is_a_run_of_its_own_and_the_original_stays_as_it_is(
    watcher: Watcher, tmp_path: Path
):
    model_dir = done(watcher)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", model_dir, copy], check=True)
    before, rows = files(model_dir), query(model_dir, "SELECT * FROM checkpoints")
    assert said("best", copy, "--path") == f"{copy}/best/ckpt-5\n"
    assert [row["path"] for row in json.loads(said("leaderboard", copy, "--json"))] == [
        f"{copy}/best/ckpt-5",
        f"{copy}/best/ckpt-4",
    ]
    assert str(model_dir) not in said("status", copy, "--json")
    assert "ckpt-1 (step 100) is kept" in said("keep", copy, "ckpt-1")
    assert (copy / "kept" / "ckpt-1.index").is_file()
    assert files(model_dir) == before
    assert query(model_dir, "SELECT * FROM checkpoints") == rows
    assert said("best", model_dir, "--path") == f"{model_dir}/best/ckpt-5\n"
    assert query(copy, "SELECT path FROM best") == [(f"{copy}/best/ckpt-5",)]


def test_after_a_move_the_commands_find_the_files_where_they_are(watcher: Watcher, tmp_path: Path):
    inside = watcher.model_dir / "mine"
    done(watcher, "--kept-dir", inside, "--keep-last", 1)
    moved = watcher.model_dir.rename(tmp_path / "moved")
    assert said("best", moved, "--path") == f"{moved}/best/ckpt-5\n"
    settings = json.loads(said("status", moved, "--json"))
    assert str(watcher.model_dir) not in json.dumps(settings)
    assert "is kept" in said("keep", moved, "ckpt-2")
    assert {"ckpt-2.index", "ckpt-5.index"} <= files(moved / "mine")
    assert not (moved / "kept").exists() and not watcher.model_dir.exists()
    (tmp_path / "link").symlink_to(moved)
    assert said("best", tmp_path / "link", "--path") == f"{moved}/best/ckpt-5\n"


def test_a_start_brings_recorded_paths_up_to_date_before_anything_is_promoted(
    watcher: Watcher, tmp_path: Path
):
    old = done(watcher)
    promoted = "SELECT count(*) FROM events WHERE kind = 'promoted'"
    times = query(old, promoted)
    watcher.model_dir = old.rename(tmp_path / "moved")
    watcher.database = watcher.model_dir / "watcher" / "watcher.db"
    # Another evaluation, under which all are to be measured anew first: what is promoted stays.
    watcher.start("--top-k", 2, STUB_SECONDS=600, STUB_FINGERPRINT="other")
    path = f"{watcher.model_dir}/best/ckpt-5"
    wait_until(lambda: watcher.query("SELECT path FROM best") == [{"path": path}], "it is the new")
    assert query(watcher.model_dir, promoted) == times


def test_a_copy_does_not_write_into_a_folder_that_is_still_the_originals(
    watcher: Watcher, tmp_path: Path
):
    elsewhere = tmp_path / "elsewhere"
    model_dir = done(watcher, "--best-dir", elsewhere)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", model_dir, copy], check=True)
    before = files(elsewhere)
    problem = f"error: {copy}/watcher is a copy of {model_dir}/watcher,"
    problem += f" and {elsewhere} is that one's\n"
    hint = "hint: start `checkpoint-watcher run` on the copy with another --best-dir\n"
    refused = cli("keep", copy, "ckpt-1")
    assert (refused.returncode, refused.stderr) == (1, problem + hint)
    watcher.model_dir = copy
    assert watcher.run("--best-dir", elsewhere) == 1
    assert watcher.log.read_text().endswith(problem + hint)
    assert said("best", copy, "--path") == f"{elsewhere}/ckpt-5\n"
    assert files(elsewhere) == before and not (copy / "kept").exists()
    shutil.rmtree(model_dir)  # now it is no copy, but the run
    assert "is kept" in said("keep", copy, "ckpt-1")
    assert files(elsewhere) == before and (copy / "kept" / "ckpt-1.index").is_file()


def test_settings_hold_in_another_folder_and_a_state_folder_may_move_by_itself(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    done(watcher, "--kept-dir", "mine", "--state-dir", "state")
    monkeypatch.chdir("/")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", tmp_path / "state", copy], check=True)
    refused = cli("keep", watcher.model_dir, "ckpt-2", "--state-dir", copy)
    assert refused.returncode == 1 and f"{copy} is a copy of {tmp_path}/state" in refused.stderr
    shutil.rmtree(tmp_path / "state")
    assert "is kept" in said("keep", watcher.model_dir, "ckpt-2", "--state-dir", copy)
    assert (tmp_path / "mine" / "ckpt-2.index").is_file()


def test_a_state_folder_of_another_run_that_is_there_is_refused_and_neither_run_changes(
    watcher: Watcher, tmp_path: Path
):
    cats, state = done(watcher, "--state-dir", tmp_path / "state"), tmp_path / "state"
    before = {path: path.read_bytes() for path in (cats / "best").iterdir()}
    watcher.model_dir = tmp_path / "dogs"
    watcher.model_dir.mkdir()
    Manager(watcher.model_dir, max_to_keep=None).save(100, model_tensors(4000, "dog"))
    assert watcher.run("--state-dir", state) == 1
    told = f"state_dir ({state}) is that of the run of {cats}"
    assert told in watcher.log.read_text() and "--state-dir" in watcher.log.read_text()
    for command in (["best"], ["status"], ["keep", "ckpt-1"]):
        name, *words = command
        refused = cli(name, watcher.model_dir, *words, "--state-dir", state)
        assert refused.returncode == 1 and told in refused.stderr, command
    assert not (watcher.model_dir / "best").exists()
    assert {path: path.read_bytes() for path in (cats / "best").iterdir()} == before
    # It was moved, where what it was is gone.
    cats.rename(tmp_path / "moved")
    shutil.rmtree(watcher.model_dir)
    (tmp_path / "moved").rename(watcher.model_dir)
    assert watcher.run("--state-dir", state, "--top-k", 2) == 0
    assert said("best", watcher.model_dir, "--state-dir", state, "--path").endswith("ckpt-5\n")


def test_a_state_folder_is_of_one_run_in_a_bucket(tmp_path: Path):
    with Store(tmp_path / "watcher.db", run="run", model_dir=tmp_path, now=0.0) as store:
        store.ledger.set_settings({"model_dir": "s3://bucket/run"}, {}, "run")
    refuse_other_run("s3://bucket/run/", tmp_path, tmp_path)
    refuse_other_run(str(tmp_path), tmp_path, tmp_path)
    for other in ("s3://bucket/other", "gs://bucket/run", str(tmp_path.parent), "gs:/"):
        with pytest.raises(ConfigError, match="is that of the run of s3://bucket/run"):
            refuse_other_run(other, Path(other).absolute(), tmp_path)


def test_a_state_dir_that_is_forgotten_at_the_next_start_is_what_the_error_speaks_of(
    watcher: Watcher, tmp_path: Path
):
    done(watcher, "--state-dir", tmp_path / "state")
    assert watcher.run() == 1
    assert "give the --state-dir that the run was started with" in watcher.log.read_text()


def test_only_a_state_folder_that_lay_inside_tells_where_the_run_is_now(tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "watcher").mkdir(parents=True)
    (there / "watcher").mkdir(parents=True)
    recorded = {"model_dir": str(here), "settings": '{"state_dir": null}'}
    assert find_model_dir(there / "watcher", recorded) == there
    assert find_model_dir(here / "watcher", recorded) == here
    assert find_model_dir(tmp_path / "state", recorded) == here
    (tmp_path / "link").symlink_to(here)
    assert find_model_dir(tmp_path / "link" / "watcher", recorded) == here
    outside = {**recorded, "settings": json.dumps({"state_dir": str(tmp_path / "x" / "watcher")})}
    assert find_model_dir(there / "watcher", outside) == here
    nested = {**recorded, "settings": json.dumps({"state_dir": str(here / "a" / "b")})}
    assert find_model_dir(there / "a" / "b", nested) == there
    relative = {**recorded, "settings": '{"state_dir": "a/b"}'}
    assert find_model_dir(there / "a" / "b", relative) == there
    assert find_model_dir(tmp_path / "a" / ".." / "there" / "watcher", recorded) == there


def test_a_rebuilt_database_takes_orders_and_nothing_leaves_before_the_next_start(
    watcher: Watcher,
):
    model_dir = done(watcher, "--metric", "loss", "--mode", "min", "--patience", 1)
    for file in watcher.database.parent.glob("watcher.db*"):
        file.unlink()
    assert cli("rebuild", model_dir).returncode == 0
    leaders, pins = watcher.leaderboard(), files(model_dir / "watcher" / "pins")
    for order in (("keep", "ckpt-1"), ("keep", leaders[1]), ("requeue", "--all"), ("resume",)):
        ended = cli(order[0], model_dir, *order[1:])
        if order == ("keep", "ckpt-1"):  # only best.json and the pins are remembered
            assert "ckpt-1 is no checkpoint of this run" in ended.stderr
            continue
        assert ended.returncode == 0, ended
        assert "at the next start of `checkpoint-watcher run`" in ended.stderr
    assert watcher.leaderboard() == leaders
    assert files(model_dir / "watcher" / "pins") == pins
    explained = cli("explain", model_dir)
    assert "it was rebuilt" in explained.stderr
    assert watcher.run("--metric", "loss", "--mode", "min", "--top-k", 1) == 0
    kept = [row["checkpoint"] for row in watcher.query("SELECT * FROM boards WHERE board = 'kept'")]
    assert kept == [leaders[1]]
    assert cli("keep", model_dir, leaders[0]).stderr == ""


def test_a_folder_that_cannot_be_written_is_told_with_a_hint(watcher: Watcher):
    model_dir = done(watcher)
    mount = f'mount --bind {model_dir} /mnt && mount -o remount,ro,bind /mnt && exec "$@"'
    prefix = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], check=False).returncode:
        pytest.skip("mounting in a user namespace is not allowed here")
    for order in (("keep", "ckpt-1"), ("requeue", "--all"), ("resume",)):
        command = [*prefix, *CLI, order[0], "/mnt", *order[1:]]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (
            1,
            "error: cannot write into /mnt/watcher: Read-only file system\n"
            "hint: ask as the user that the watcher runs as, where the folder can be written\n",
        )
