"""How commands end: one error line and one hint for any bad input, a traceback only on request."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from watching import CLI, Watcher, cli, wait_until

from watcher.cli import cli as commands
from watcher.store import Store

FAULTY = (
    "import sys, watcher.cli.status as module\n"
    "def fail(*_): raise ZeroDivisionError('division by\\nzero')\n"
    "module.find_runs = fail\n"
    "from watcher.cli import main\n"
    "sys.argv = ['checkpoint-watcher', 'status', 'x', *sys.argv[1:]]\n"
    "main()\n"
)


def lines_of(ended: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Error and hint, which are all there is besides log lines."""
    assert "Traceback" not in ended.stderr
    error, hint = ended.stderr.splitlines()[-2:]
    assert error.startswith("error: ") and hint.startswith("hint: "), ended.stderr
    return error, hint


@pytest.fixture
def bad(tmp_path: Path) -> dict[str, Path]:
    """Things that are no MODEL_DIR, by what is wrong with them."""
    made = {name: tmp_path / name for name in ("file", "garbage", "foreign", "later", "empty")}
    made |= {"missing": tmp_path / "missing", "in-a-file": tmp_path / "file" / "run"}
    made["file"].write_text("")
    made["empty"].mkdir()
    for name in ("garbage", "foreign", "later"):
        (made[name] / "watcher").mkdir(parents=True)
    (made["garbage"] / "watcher" / "watcher.db").write_text("no database " * 100)
    with contextlib.closing(sqlite3.connect(made["foreign"] / "watcher" / "watcher.db")) as db:
        db.execute("CREATE TABLE runs (something)")
    later = made["later"] / "watcher" / "watcher.db"
    Store(later, run="r", model_dir=made["later"], now=0.0).close()
    with contextlib.closing(sqlite3.connect(later)) as db, db:
        db.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at)"
            " VALUES ('checkpoint-watcher', 'm999_later', '')"
        )
    return made


SAID = {
    "file": "file is not a folder",
    "missing": "missing does not exist",
    "in-a-file": "file is not a folder",
    "empty": "no database at",
    "garbage": "not a database",
    "foreign": "no such column: uuid",
}


MANY = """
import contextlib, io, json, sys
from watcher.cli import main
for words in json.load(sys.stdin):
    sys.argv, code = ["checkpoint-watcher", *words], None
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, err.getvalue()]))
"""


def ends(commands: list[list[object]]) -> list[str]:
    """The error lines of many commands that fail; one process, for they are many."""
    asked = json.dumps([list(map(str, words)) for words in commands])
    ended = subprocess.run(
        [sys.executable, "-c", MANY], input=asked, capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(answers) == len(commands)
    errors = []
    for words, (code, said) in zip(commands, answers, strict=True):
        assert code == 1, (words, code, said)
        error, hint = said.splitlines()
        assert error.startswith("error: ") and hint.startswith("hint: "), (words, said)
        errors.append(error)
    return errors


def test_every_command_says_what_is_wrong_with_its_folder(bad: dict[str, Path]):
    commands = [
        *("status", "best", "leaderboard", "history", "metrics", "explain", "resume"),
        *("compare a b", "keep ckpt-1", "requeue --all"),
    ]
    asked: list[list[object]] = []
    for words in commands:
        command, *others = words.split()
        asked += [[command, bad[name], *others] for name in SAID]
    for words, error, said in zip(
        asked, ends(asked), [*SAID.values()] * len(commands), strict=True
    ):
        assert said in error, (words, error)


def test_run_refuses_folders_and_databases_that_are_not_its_own(
    bad: dict[str, Path], watcher: Watcher
):
    said = {
        "file": "is not a folder",
        "missing": "does not exist",
        "garbage": "not a database",
        "foreign": "of another program",
        "later": "of a later version of checkpoint-watcher (it has m999_later)",
    }
    asked = [["run", bad[name], "--pipeline-config", watcher.pipeline] for name in said]
    for words, error, what in zip(asked, ends(asked), said.values(), strict=True):
        assert what in error, (words, error)
    with contextlib.closing(sqlite3.connect(bad["foreign"] / "watcher" / "watcher.db")) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("runs",)]


def test_rebuild_moves_no_database_aside_that_is_not_its_own(bad: dict[str, Path]):
    said = {"foreign": "of another program", "later": "of a later version of checkpoint-watcher"}
    before = {name: (bad[name] / "watcher" / "watcher.db").read_bytes() for name in said}
    errors = ends([["rebuild", bad[name]] for name in said])
    for error, name in zip(errors, said, strict=True):
        assert said[name] in error, error
        state = bad[name] / "watcher"
        assert (state / "watcher.db").read_bytes() == before[name]
        assert not [*state.glob("*.damaged-*")] and not [*state.glob("*.new*")]


def test_rebuild_waits_for_no_lock_and_moves_no_locked_database_aside(bad: dict[str, Path]):
    file = bad["foreign"] / "watcher" / "watcher.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        (error,) = ends([["rebuild", bad["foreign"]]])
    assert "locked" in error and file.exists()


def test_a_settings_file_is_refused_with_its_fault(tmp_path: Path):
    said = {
        b"top_k = = 3": "is not TOML",
        b"\xff\xfe\x00": "is not TOML",
        b"metric = {}": "metric ({}) is invalid",
        b"patience = 2020-01-01": "patience (2020-01-01) is invalid",
        b"board = 3": "board (3) is invalid",
        b"topk = 3": "topk in",
        b'run_name = ["a"]': 'run_name (["a"]) is invalid',
    }
    asked: list[list[object]] = []
    for number, content in enumerate(said):
        file = tmp_path / f"{number}.toml"
        file.write_bytes(b'pipeline_config = "p"\n' + content)
        asked += [["run", tmp_path, "--config", file]]
    asked += [["run", tmp_path, "--config", tmp_path]]
    expected = [*said.values(), "Is a directory"]
    for words, error, what in zip(asked, ends(asked), expected, strict=True):
        assert what in error, (words, error)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["metrics", ".", ""], "[CHECKPOINT]"),
        (["status", ""], "[MODEL_DIR]..."),
        (["best", ".", ""], "[MODEL_DIR]..."),
        (["leaderboard", ""], "[MODEL_DIR]..."),
        (["explain", ".", "--board", ""], "--board"),
        (["explain", ".", "--board="], "--board"),
        (["plot", ".", "--metric", "mAP", "--metric", ""], "--metric"),
        (["run", "", "--pipeline-config", "p"], "[MODEL_DIR]"),
        (["run", ".", "--tie-break", ""], "--tie-break"),
        (["init", ""], "MODEL_DIR"),
        (["train", "--state-dir", "", "--", "python"], "--state-dir"),
    ],
)
def test_an_empty_text_is_wrong_usage(words: list[str], named: str, tmp_path: Path):
    ended = CliRunner().invoke(commands, words)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert f"Usage: cli {words[0]} " in ended.stderr
    assert ended.stderr.endswith(f"'{named}': it is empty\n"), ended.stderr


def test_an_empty_word_of_the_trainers_command_is_its_own():
    for words in (["--", "python", ""], ["--", "python", "--flag="]):
        ended = CliRunner().invoke(commands, ["train", *words])
        assert "it is empty" not in ended.output and ended.exit_code == 1, ended.output
    units = ["install-units", ".", "--run", "a", "--trainer-flags", "", "--dry-run"]
    assert "it is empty" not in CliRunner().invoke(commands, units).output


def test_a_name_that_is_not_utf_8_is_refused_by_run_and_read_by_the_others(watcher: Watcher):
    watcher.run()
    odd = os.fsencode(watcher.model_dir) + b"\xff"
    watcher.model_dir.rename(os.fsdecode(odd))
    error, _ = lines_of(cli("run", os.fsdecode(odd), "--pipeline-config", watcher.pipeline))
    assert "expected a text in UTF-8" in error
    for words in (["history"], ["status"], ["status", "--json"]):
        ended = subprocess.run([*CLI, words[0], odd, *words[1:]], capture_output=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, b""), words


def faulty(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that meets a fault of its own."""
    return subprocess.run(
        [sys.executable, "-c", FAULTY, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


def test_a_fault_of_ours_is_one_line_with_its_traceback_in_a_file(tmp_path: Path):
    ended = faulty(TMPDIR=str(tmp_path))
    error, hint = lines_of(ended)
    assert ended.returncode == 70
    assert error.endswith("ZeroDivisionError: division by zero")
    (kept,) = tmp_path.iterdir()
    assert str(kept) in hint and "Traceback" in kept.read_text()


def test_debug_shows_the_traceback_wherever_it_is_asked_for():
    for arguments, environment in (
        (["--debug"], {}),
        ([], {"CHECKPOINT_WATCHER_DEBUG": "1"}),
    ):
        ended = faulty(*arguments, **environment)
        assert ended.returncode == 70
        assert "Traceback" in ended.stderr and "\nerror: a fault" in ended.stderr
    known = cli("--debug", "status", "/nowhere")
    assert known.returncode == 1
    assert "Traceback" in known.stderr and "\nerror: no database" in known.stderr


def test_ctrl_c_ends_a_command_quietly(watcher: Watcher, tmp_path: Path):
    slow = tmp_path / "python"
    slow.write_text('#!/bin/sh\ntouch "$0.started"\nexec sleep 60\n')
    slow.chmod(0o755)
    words = ["doctor", watcher.model_dir, "--pipeline-config", watcher.pipeline, "--python", slow]
    with subprocess.Popen([*CLI, *map(str, words)], stderr=subprocess.PIPE) as process:
        assert process.stderr
        wait_until(lambda: (tmp_path / "python.started").exists(), "doctor asks the environment")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read().strip() == b""


def test_output_that_nobody_takes_ends_a_command_without_a_traceback(watcher: Watcher):
    watcher.run()
    status = " ".join([*CLI, "status", str(watcher.model_dir), "--json"])
    for where, code, said in (
        (">&-", 0, ""),
        (">/dev/full", 1, "error: No space left on device"),
        ("| head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", None, ""),
        ("<&- 2>&-", 0, ""),
    ):
        ended = subprocess.run(
            ["bash", "-c", f"{status} {where}"], capture_output=True, text=True, timeout=60
        )
        assert code is None or ended.returncode == code, where
        assert ended.stderr.startswith(said) and "Traceback" not in ended.stderr, where
        assert said or not ended.stderr, ended.stderr


def test_the_daemon_ends_with_a_line_when_it_meets_a_fault(watcher: Watcher, tmp_path: Path):
    program = (
        "import sys, watcher.runtime.loop as module\n"
        "def fail(*_): raise IndexError('list index')\n"
        "module.Daemon._look = fail\n"
        "from watcher.cli import main\n"
        "main()\n"
    )
    words = watcher.command()[len(CLI) :]
    ended = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        timeout=60,
    )
    error, _ = lines_of(ended)
    assert ended.returncode == 70 and error.endswith("IndexError: list index")
    assert "list index" in watcher.status()["ended"]
