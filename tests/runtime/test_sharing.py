"""Who may read a run: nobody else, or the members of a group. Tested as another user."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from privileges import OPEN_TO_ALL
from watching import Watcher, wait_until

pytestmark = pytest.mark.slow

GROUP, NOBODY = 54321, 65534

# Another user's process: imports all as we, who may read the code; then becomes that user.
OTHER_USER = """
import contextlib, io, json, os, sqlite3, sys
from pathlib import Path
model_dir, groups, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
from watcher.cli import main
from watcher.errors import WatcherError
from watcher.runtime.sharing import Sharing

def ask(*arguments):
    sys.argv = ["checkpoint-watcher", *arguments]
    out, error, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return [code, out.getvalue(), error.getvalue()]

def look():
    said = {command: ask(command, model_dir) for command in ("status", "best", "history")}
    try:
        uri = f"file:{model_dir}/watcher/watcher.db?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as db:
            said["sqlite"] = db.execute("SELECT checkpoint FROM best").fetchall()
    except sqlite3.Error as error:
        said["sqlite"] = str(error)
    with contextlib.suppress(OSError):
        said["best.json"] = Path(model_dir, "best", "best.json").read_text()
    return said

look()
os.setgroups(groups)
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
said = look()
try:
    folder.joinpath("best").mkdir()
    Sharing("54322", folder, folder / "best").begin()
except WatcherError as error:
    said["not a member"] = [error.message, error.hint]
print(json.dumps(said))
"""


@pytest.fixture
def shared() -> Iterator[Watcher]:
    """A run in a folder that every user can reach; tmp_path is closed to others."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to read as another user")
    folder = Path(tempfile.mkdtemp(prefix="sharing-", dir=OPEN_TO_ALL))
    folder.chmod(0o755)
    run = Watcher(folder)
    run.prefix = ["sh", "-c", 'umask 0077; exec "$@"', "sh"]
    manager = Manager(run.model_dir, max_to_keep=None)
    for number in (1, 2):
        manager.save(100 * number, model_tensors(4000, number))
    yield run
    run.end()
    shutil.rmtree(folder)


def as_other_user(watcher: Watcher, *groups: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=OPEN_TO_ALL) as own:
        os.chown(own, NOBODY, NOBODY)
        command = [sys.executable, "-c", OTHER_USER, watcher.model_dir, json.dumps(groups), own]
        done = subprocess.run([str(part) for part in command], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def assert_reads_all(watcher: Watcher) -> dict[str, Any]:
    said = as_other_user(watcher, GROUP)
    for command in ("status", "best", "history"):
        code, out, error = said[command]
        assert (code, error) == (0, ""), (command, error)
        assert "ckpt-2" in out
    assert said["sqlite"] == [["ckpt-2"]]
    assert '"checkpoint": "ckpt-2"' in said["best.json"]
    return said


def board(watcher: Watcher) -> list[str]:
    return watcher.leaderboard() if watcher.states() else []


def modes(watcher: Watcher) -> dict[str, tuple[int, int]]:
    state = watcher.database.parent
    found = [state, watcher.best_dir, *state.glob("watcher.db*")]
    status = {path.name: path.stat() for path in found}
    return {name: (s.st_gid, stat.S_IMODE(s.st_mode)) for name, s in status.items()}


def test_a_member_of_the_group_reads_while_it_runs_after_a_kill_and_after_the_end(
    shared: Watcher,
):
    daemon = shared.start("--group", GROUP)
    wait_until(
        lambda: shared.best_dir.exists() and shared.leaderboard() == ["ckpt-2", "ckpt-1"], ""
    )
    wait_until(lambda: modes(shared)["best"] == (GROUP, 0o2755), "best/ is shared")
    database = {f"watcher.db{suffix}": (GROUP, 0o640) for suffix in ("", "-wal", "-shm")}
    wait_until(lambda: modes(shared).items() >= database.items(), "the database is shared")
    assert modes(shared)["watcher"] == (GROUP, 0o2750)
    said = assert_reads_all(shared)
    message, hint = said["not a member"]
    assert message.startswith("group (54322) cannot be given") and "member of the group" in hint
    if shutil.which("sqlite3") and shutil.which("setpriv"):
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={GROUP}"]
        query = ["sqlite3", str(shared.database), "SELECT checkpoint FROM best"]
        assert subprocess.check_output([*user, *query], text=True) == "ckpt-2\n"
    daemon.kill()
    daemon.wait()
    assert_reads_all(shared)
    # The owner looks, and SQLite tidies up behind the last who had it open.
    with contextlib.closing(sqlite3.connect(shared.database)) as db:
        assert db.execute("SELECT count(*) FROM best").fetchone() == (1,)
    assert not [*shared.database.parent.glob("watcher.db-*")]
    said = as_other_user(shared, GROUP)
    assert "ckpt-2" in said["best"][1], said
    assert shared.run("--group", GROUP) == 0
    assert_reads_all(shared)
    names = {file.name for file in shared.database.parent.glob("watcher.db-*")}
    assert names == {"watcher.db-wal", "watcher.db-shm"}, "a reader need not create them"
    stranger = as_other_user(shared)
    assert stranger["status"][0] == 1 and "Permission denied" in stranger["status"][2]
    assert stranger["status"][2].count("\n") == 2, "an error and a hint"
    assert stranger["sqlite"] == "unable to open database file"


def test_without_a_group_the_database_is_the_owners_alone(shared: Watcher):
    daemon = shared.start()
    wait_until(lambda: len(board(shared)) == 2, "it works")
    found = modes(shared)
    assert found["watcher"][1] == 0o700
    assert {found[name][1] for name in found if name.startswith("watcher.db")} == {0o600}
    said = as_other_user(shared, GROUP)
    assert said["sqlite"] == "unable to open database file"
    assert daemon.poll() is None


def test_an_unknown_group_is_an_error_and_a_hint(watcher: Watcher):
    assert watcher.run("--group", "no-such-group") == 1
    assert watcher.log.read_text() == (
        "error: group (no-such-group) does not exist\n"
        "hint: `getent group` lists those there are; a number is taken as it is\n"
    )
    assert not watcher.database.parent.exists()
