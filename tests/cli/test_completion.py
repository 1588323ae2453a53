"""Completion in real shells: what TAB offers, how soon, and that it says nothing else."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, cli

pytestmark = pytest.mark.slow

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Watcher:
    """A run of three checkpoints that are all evaluated; nobody may change it."""
    watcher = Watcher(tmp_path_factory.mktemp("run"))
    manager = Manager(watcher.model_dir)
    for step in (100, 200, 300):
        manager.save(step, model_tensors(1000, str(step)))
    assert watcher.run() == 0
    return watcher


def shell(name: str) -> str:
    """The path of a shell; the test is skipped where there is none."""
    return shutil.which(name) or pytest.skip(f"no {name} here: apt install zsh fish")


def bash(*words: object, folder: Path | None = None) -> tuple[list[str], str]:
    """What bash has on offer for the last of these words, and what was said on the terminal."""
    program = (
        'source <(checkpoint-watcher completion bash); COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
        '_checkpoint_watcher_completion checkpoint-watcher; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    ended = subprocess.run(
        [shell("bash"), "--norc", "-c", program, "bash", "checkpoint-watcher", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PATH": PATH},
        timeout=60,
    )
    # Outside of a completion bash cannot be told to complete folders, and says so.
    said = [line for line in ended.stderr.splitlines() if "compopt" not in line]
    return ended.stdout.split(), "\n".join(said)


def test_bash_completes_commands_options_values_and_what_the_database_holds(run: Watcher):
    here = run.model_dir
    for words, offered in (
        (["comp"], ["compare", "completion"]),
        (["run", "--wait"], ["--wait-for-model-dir"]),
        (["run", "--mode", ""], ["max", "min"]),
        (["run", here, "--metric", "mAP5"], ["mAP50"]),
        (["run", here, "--metric", "Loss/"], ["Loss/total_loss"]),
        (["plot", here, "--metric", "mAP7"], ["mAP75"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["compare", here, ""], ["best", "last", "ckpt-3", "ckpt-2", "ckpt-1"]),
        (["compare", here, "ckpt-3", "ckpt"], ["ckpt-2", "ckpt-1"]),
        (["keep", here, "ckpt-3", "ckpt-1", ""], ["best", "last", "ckpt-2"]),
        (["requeue", "$HERE", "ckpt-2"], ["ckpt-2"]),
        (["explain", here, "--board", ""], ["best"]),
        (["metrics", here, "b"], ["best"]),
    ):
        os.environ["HERE"] = str(here)
        assert bash(*words) == (offered, ""), words


def test_beside_a_settings_file_checkpoints_are_offered_without_model_dir(
    run: Watcher, tmp_path: Path
):
    (tmp_path / "checkpoint-watcher.toml").write_text(f'model_dir = "{run.model_dir}"\n')
    every = ["best", "last", "ckpt-3", "ckpt-2", "ckpt-1"]
    for words, offered in (
        (["compare", ""], every),
        (["compare", "best", "ckpt"], every[2:]),
        (["keep", "ckpt-3", "ckpt-1", ""], ["best", "last", "ckpt-2"]),
        (["metrics", "b"], ["best"]),
        (["explain", "--board", ""], ["best"]),
    ):
        assert bash(*words, folder=tmp_path) == (offered, ""), words


def test_completion_says_nothing_where_there_is_nothing_to_offer(run: Watcher, tmp_path: Path):
    assert bash("compare", tmp_path / "none", "") == ([], "")
    assert bash("status", "--no-such-flag=", "x") == ([], "")
    model_dir = tmp_path / "model_dir"
    database = model_dir / "watcher" / "watcher.db"
    database.parent.mkdir(parents=True)
    shutil.copy(run.database, database)
    with contextlib.closing(sqlite3.connect(database)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert bash("compare", model_dir, "")[1] == ""
        assert time.monotonic() - began < 60
    database.write_text("no database " * 100)
    assert bash("compare", model_dir, "") == ([], "")


def test_fish_completes_with_descriptions(run: Watcher, tmp_path: Path):
    script = tmp_path / "script.fish"
    script.write_text(cli("completion", "fish").stdout)
    program = f"source {script}; complete -C 'checkpoint-watcher compare {run.model_dir} '"
    ended = subprocess.run(
        [shell("fish"), "--no-config", "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": PATH, "HOME": str(tmp_path)},
        timeout=60,
    )
    offered = dict(line.split("\t") for line in ended.stdout.splitlines())
    assert set(offered) == {"best", "last", "ckpt-3", "ckpt-2", "ckpt-1"}
    assert offered["ckpt-2"].startswith("step 200: scored 0.")
    assert ended.stderr == ""


def screen_after(process: subprocess.Popen[bytes], terminal: int, awaited: str) -> str:
    """What a terminal shows once a text is on it; fails when that does not come."""
    screen, deadline = b"", time.monotonic() + 30
    while awaited.encode() not in screen:
        assert time.monotonic() < deadline and process.poll() is None, screen.decode()
        if select.select([terminal], [], [], 0.2)[0]:
            screen += os.read(terminal, 4096)
    return screen.decode(errors="replace")


@pytest.mark.parametrize(
    ("name", "flags", "begin"),
    [
        ("bash", ["--norc", "--noprofile", "-i"], ""),
        ("zsh", ["-f", "-i"], "autoload -U compinit; compinit -u; "),
        ("fish", ["--no-config", "-i"], ""),
    ],
)
def test_tab_in_an_interactive_shell_types_the_rest(
    run: Watcher, name: str, flags: list[str], begin: str
):
    load = f"checkpoint-watcher completion {name} > script; {begin}source ./script"
    variables = {
        "PATH": PATH,
        "HOME": str(run.model_dir.parent),
        "TERM": "xterm",
        "LANG": "C.UTF-8",
    }
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", shell(name), *flags],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=run.model_dir.parent,
        env=variables,
    )
    os.close(theirs)
    try:
        os.write(ours, f"{load}; echo it is loa'de'd\n".encode())
        screen_after(process, ours, "it is loaded")
        # A folder, one of two words, and an option: none of these runs unless TAB typed it whole.
        os.write(ours, b"checkpoint-watcher metrics model_d\t la\t --js\t\n")
        screen_after(process, ours, '"categories": {')
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_tab_takes_less_than_a_third_of_a_second(run: Watcher):
    words = f"checkpoint-watcher compare {run.model_dir} "
    variables = {"COMP_WORDS": words, "COMP_CWORD": "3", "PATH": PATH}
    variables["_CHECKPOINT_WATCHER_COMPLETE"] = "bash_complete"
    program = "import resource, subprocess, sys;"
    program += "print(subprocess.run(['checkpoint-watcher'], capture_output=True).stdout.decode());"
    program += "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
    program += "print(used.ru_utime + used.ru_stime)"
    ended = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=variables
        ).stdout.split()
        for _ in range(3)
    ]
    assert all(offered[:2] == ["plain,best", "plain,last"] for offered in ended)
    # Of the processor: others may be at work here too.
    assert min(float(offered[-1]) for offered in ended) < 0.33
