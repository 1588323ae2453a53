"""How `train` begins and ends: the wrong interpreter, a trainer that fails, the last lines."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from folder_source import source_of
from launching import Launch, python
from pages import page
from watching import cli, wait_until

from watcher.config import LaunchSettings
from watcher.errors import StoreError
from watcher.launch.command import PythonCommand, python_command
from watcher.launch.companion import Companion
from watcher.launch.ending import Ending, Summary, Unsaved, how, last_lines
from watcher.launch.launcher import Launcher
from watcher.launch.modules import needed_modules
from watcher.promotion.promote import BOARD_FILE, BoardFile, write_board
from watcher.store import Store
from watcher.store.reading import open_reader
from watcher.types import Leader, ScoredCheckpoint

pytestmark = pytest.mark.slow

OD_TRAINER = ["-m", "object_detection.model_main_tf2", "--model_dir", "m"]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    run = Launch(tmp_path)
    yield run
    run.end()


def said(launch: Launch) -> list[str]:
    return launch.said().splitlines()


# -- the interpreter


def test_the_watchers_own_python_is_refused_as_it_was_typed_before_anything_starts(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(launch.folder)
    own = Path(sys.executable).parent
    path = f"{own}{os.pathsep}{os.environ['PATH']}"
    watching = ["train", "--watch", "--pipeline-config", launch.pipeline, "--", "python"]
    ended = cli(*watching, *OD_TRAINER, PATH=path)
    error, hint = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert error == (
        f"error: the trainer's python ({own}/python), the watcher's own interpreter,"
        " has no module object_detection and none tensorflow"
    )
    assert "-- /path/to/training/env/bin/python -m object_detection.model_main_tf2" in hint
    assert "only its one command belongs on PATH" in hint
    assert not (launch.folder / "m").exists()


def test_what_is_installed_is_one_command_and_python_is_left_alone(tmp_path: Path):
    install = page("how-to/install")
    typed = "\n".join(re.findall(r"^```\n(.*?)^```$", install, re.MULTILINE | re.DOTALL))
    assert "PATH" not in typed and "activate" not in typed and "ln -s ~/watcher-env/bin/" in typed
    own = Path(sys.executable).parent
    (tmp_path / "checkpoint-watcher").symlink_to(own / "checkpoint-watcher")
    script = "checkpoint-watcher --version && command -v python3"
    path = f"{tmp_path}:/usr/bin:/bin"
    ran = subprocess.run(["sh", "-c", script], env={"PATH": path}, capture_output=True, text=True)
    version, *found = ran.stdout.splitlines()
    assert version.startswith("checkpoint-watcher") and not any(str(own) in one for one in found)


def test_an_interpreter_that_has_the_modules_is_taken_and_imports_none_beforehand(launch: Launch):
    site = launch.folder / "site"
    for name in ("tensorflow", "object_detection"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(f"print('imports {name}')\n")
    (site / "object_detection" / "model_main_tf2.py").write_text("print('trains')\n")
    command = ["env", f"PYTHONPATH={site}", sys.executable, "-u", *OD_TRAINER]
    assert launch.run(trainer=command) == 0
    assert launch.out.read_text().split("\n") == ["imports object_detection", "trains", ""]


def test_an_interpreter_that_does_not_answer_delays_the_trainer_by_a_second(launch: Launch):
    slow = launch.folder / "python"
    slow.write_text('#!/bin/sh\ncase "$*" in *find_spec*) exec sleep 60;; esac\nexit 5\n')
    slow.chmod(0o755)
    began = time.monotonic()
    assert launch.run(trainer=[str(slow), *OD_TRAINER]) == 5
    assert time.monotonic() - began < 50, "and not by a minute"


def test_a_container_in_front_of_the_trainer_is_not_asked(launch: Launch):
    asked = launch.folder / "docker"
    asked.write_text(f'#!/bin/sh\necho "$*" >> {launch.folder}/calls\n')
    asked.chmod(0o755)
    assert launch.run(trainer=[str(asked), "run", "image", "python", *OD_TRAINER]) == 0
    calls = (launch.folder / "calls").read_text().splitlines()
    assert calls == ["run image python " + " ".join(OD_TRAINER)]


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["python", *OD_TRAINER], ["object_detection", "tensorflow"]),
        (["python", "-u", "-m", "od_api_today", *OD_TRAINER], ["object_detection", "tensorflow"]),
        (["python3.9", "-u", "-W", "ignore", "models/model_main_tf2.py"], ["tensorflow"]),
        (["env", "A=b c", "nice", "-n", "5", "python", "-m", "my.train"], ["my"]),
        (["python", "train.py", "-m", "other"], []),
        (["python", "-c", "pass"], None),
        (["python", "-m"], None),
        (["env", "-i", "python", *OD_TRAINER], None),
        (["sh", "-c", "python train.py"], None),
        (["srun", "python", *OD_TRAINER], None),
    ],
)
def test_what_a_command_needs_is_told_by_its_words(words: list[str], needed: list[str] | None):
    known = python_command(words)
    assert (None if known is None else needed_modules(known)) == needed


def test_options_and_variables_are_kept_for_the_question():
    asked = python_command(
        ["env", "PYTHONPATH=/a=b", "/e/bin/python", "-X", "dev", "-u", "-m", "t"]
    )
    variables = {"PYTHONPATH": "/a=b"}
    assert asked == PythonCommand("/e/bin/python", ("-X", "dev", "-u"), variables, "t", True)


# -- the end


def test_no_watcher_is_started_after_a_trainer_that_fails_at_once(launch: Launch):
    assert launch.run(*launch.watching(), trainer=["false"]) == 1
    (line,) = said(launch)
    assert re.match(r"the trainer ended with code 1 after \d+(\.\d)? s", line)
    assert line.endswith("before any new checkpoint: no watcher goes on without it")
    assert not launch.database.exists()


def test_a_watcher_ends_with_a_trainer_that_fails_before_a_checkpoint(launch: Launch):
    wait = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
    trainer = python(f"{wait}sys.exit(3)", launch.database)
    assert launch.run(*launch.watching(), trainer=trainer) == 3
    (line,) = said(launch)
    assert "ended with code 3" in line and "no watcher goes on without it" in line


def test_a_trainer_that_a_signal_killed_is_named_last(launch: Launch):
    dying = ["sh", "-c", '"$@"; kill -9 $$', "sh", *launch.saving("--saves", 2, "--interval", 0)]
    assert launch.run(*launch.watching(), trainer=dying) == 137
    killed, best, again = said(launch)[-3:]
    assert killed.startswith("the trainer was ended by SIGKILL after")
    assert killed.endswith("often the kernel's out-of-memory killer, see `dmesg`")
    assert best.startswith("the best is ckpt-2 (step ")
    assert again == "the same command again trains on from there"
    assert launch.run(trainer=python("import os; os.kill(os.getpid(), 11)")) == 139
    assert said(launch)[-1].startswith("the trainer was ended by SIGSEGV after")


def test_a_signal_that_a_shell_passed_on_as_a_code_is_named_too():
    said = how(Ending(128 + signal.SIGKILL, early=False, progressed=True, seconds=4000))
    assert said.startswith("the trainer ended with code 137 after 67 minutes, as for SIGKILL:")
    assert "dmesg" not in how(Ending(200, early=False, progressed=True, seconds=1))


def test_a_run_that_trains_to_its_end_names_the_best_and_how_it_is_exported(launch: Launch):
    command = launch.saving("--saves", 3, "--interval", 0)
    assert launch.run(*launch.watching(), trainer=command, STUB_SCORES='{"ckpt-2": 9}') == 0
    assert "device=cpu reason='by default'" in launch.err.read_text()
    how_it_ended, best, export = said(launch)[-3:]
    assert how_it_ended.startswith("the trainer ended with code 0 after ")
    assert best == f"the best is ckpt-2 (step 100, score 9): {launch.model_dir}/best/ckpt-2"
    assert export.startswith(f"to export it: {command[0]} -m object_detection.exporter_main_v2 ")
    assert f"--trained_checkpoint_dir {launch.model_dir}/best " in export


def test_the_best_is_named_where_it_lies_when_its_name_was_given_twice(tmp_path: Path):
    row = ScoredCheckpoint(1, 1, "ckpt-2", 200, "f" * 64, 0.5, "")
    board = BoardFile(run="r", run_uuid="u", metric="m", mode="max", checkpoints=())
    (tmp_path / "best").mkdir()
    write_board(tmp_path / "best", BOARD_FILE, board, [Leader(1, row, "ckpt-2-ffffffff")], {})
    over = Summary(
        ending=Ending(0, early=False, progressed=True, seconds=9),
        asked=None,
        fruitless=False,
        watched=True,
        watcher_lasts=True,
        gave_up=None,
        unsaved=Unsaved(),
        saved=True,
        trained=True,
        code=0,
        stopped_by=None,
    )
    _, best = last_lines(over, LaunchSettings.of(model_dir=str(tmp_path)), ["train"])
    where = f"{tmp_path}/best/ckpt-2-ffffffff"
    assert best == f"the best is ckpt-2-ffffffff (step 200, score 0.5): {where}"


def test_a_training_that_was_ended_names_the_best_and_what_waits(launch: Launch):
    trainer = ["sh", "-c", '"$@"; sleep 60', "sh", *launch.saving("--saves", 3, "--interval", 3)]
    waits = {"STUB_WAIT": "ckpt-3", "STUB_WAIT_FOR": launch.folder / "never"}
    process = launch.start(*launch.watching(), trainer=trainer, **waits)
    launch.saved(3)

    def settled() -> bool:
        with contextlib.suppress(StoreError), open_reader(launch.database.parent) as reader:
            states = reader.states()
            return states.get("leased") == 1 and states.get("scored", 0) > 0
        return False

    wait_until(settled, "one is scored, and one in work")
    process.terminate()
    assert process.wait(timeout=60) == 143
    best, waiting = said(launch)[-2:]
    assert best.startswith("the best is ckpt-2 (step ")
    assert waiting.startswith("1 checkpoint waits to be evaluated: ")
    assert waiting.endswith("the same command again trains on from there, and evaluates them")


# -- what a start that failed leaves


def test_a_start_that_fails_leaves_no_folder_that_it_made(launch: Launch):
    launch.model_dir = launch.folder / "runs" / "one"
    for trainer in (["no-such-program"], ["false"]):
        assert launch.run(*launch.watching(), trainer=trainer) == 1
        assert not (launch.folder / "runs").exists()


def test_a_watcher_without_a_checkpoint_leaves_nothing_after_a_trainer_that_fails(launch: Launch):
    wait = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
    ready = launch.model_dir / "watcher" / "worker.lock"
    assert launch.run(*launch.watching(), trainer=python(f"{wait}sys.exit(3)", ready)) == 3
    assert not launch.model_dir.exists()


@pytest.mark.parametrize("made", ["train/events", "watcher/notes", "watcher/pins/mine"])
def test_what_somebody_wrote_into_a_new_model_dir_stays(launch: Launch, made: str):
    wait = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
    write = "import pathlib\np = pathlib.Path(sys.argv[2])\np.parent.mkdir(exist_ok=True)\n"
    write += "p.write_text('mine')\nsys.exit(3)"
    trainer = python(wait + write, launch.database, launch.model_dir / made)
    assert launch.run(*launch.watching(), trainer=trainer) == 3
    assert (launch.model_dir / made).read_text() == "mine"
    assert launch.database.exists() == made.startswith("watcher")


def test_folders_and_databases_of_before_stay_though_they_are_empty(launch: Launch):
    launch.model_dir.mkdir()
    assert launch.run(trainer=["false"]) == 1
    assert list(launch.model_dir.iterdir()) == []
    launch.identify()
    assert launch.run(*launch.watching(), trainer=["false"]) == 1
    assert launch.database.exists()


def test_a_trainer_that_was_left_behind_keeps_its_folder(launch: Launch):
    # It holds the lock of model_dir, which the launcher's child has passed on.
    behind = ["sh", "-c", f"{sys.executable} -c 'import time; time.sleep(60)' & echo $!; exit 1"]
    assert launch.run(trainer=behind) == 1
    assert launch.model_dir.is_dir()
    os.kill(int(launch.out.read_text()), signal.SIGKILL)


def test_that_the_watcher_is_started_again_is_told_when_it_is():
    said: list[str] = []
    companion = Companion(["false"], said.append)
    wait_until(lambda: companion.tend(0.0) or companion.pid is None, "the watcher ended")
    companion.tend(0.0)
    companion.stop()  # the trainer ended as well
    assert said == ["the watcher ended with code 1"]


def test_the_end_of_the_trainers_log_is_repeated_where_the_trainer_failed(launch: Launch):
    log = launch.folder / "trainer.log"
    program = "print('epoch', flush=True); raise ValueError('no such label map')"
    assert launch.run("--trainer-log", log, trainer=python(program)) == 1
    assert said(launch)[-1] == f"{log} ends: ValueError: no such label map"
    assert launch.run("--trainer-log", log, trainer=["true"]) == 0
    assert said(launch) == []


def test_a_watcher_that_its_settings_keep_from_working_is_started_once_and_told_twice(
    launch: Launch,
):
    starts = launch.folder / "starts"
    trainer = [
        "sh",
        "-c",
        '"$@"; while kill -0 $PPID && ! grep -q "cannot work" "$0"; do sleep 0.1; done',
    ]
    trainer = [*trainer, str(launch.err), *launch.saving("--saves", 2, "--interval", 0)]
    watching = launch.watching("--metric", "mAP5O")
    assert launch.run(*watching, trainer=trainer, STUB_STARTS=starts) == 1
    told, ended, again, *_ = said(launch)
    why = "the watcher cannot work with these settings: metric (mAP5O) is not reported by this"
    assert told == f"{why} evaluation; the training goes on without it"
    assert ended.startswith("the trainer ended with code 0")
    assert again == f"not all is evaluated: {why} evaluation"
    assert len(starts.read_text().splitlines()) == 1


def test_why_a_watcher_was_given_up_long_ago_is_repeated_at_the_end(launch: Launch):
    launch.identify()
    store = Store(launch.database, run="run", model_dir=launch.model_dir, now=1.0)
    store.ledger.record_end("pipeline.config says 5 classes", 1.0)
    store.close()
    lines: list[str] = []
    told = launch.folder / "told"

    def say(line: str) -> None:
        lines.append(line)
        told.touch()

    settings = LaunchSettings.of(model_dir=str(launch.model_dir))
    wait = 'while ! [ -e "$0" ]; do sleep 0.05; done; exec "$@"'
    trainer = ["sh", "-c", wait, str(told), *launch.saving("--saves", 4, "--interval", 0.3)]
    refused = ["sh", "-c", "exit 2"]
    source = source_of(launch.model_dir)
    launcher = Launcher(settings, trainer, source, watcher_command=refused, say=say)
    assert launcher.run() == 1
    assert lines[0].startswith("the watcher ended with code 2; the training goes on")
    why = "not all is evaluated: the watcher ended with code 2: pipeline.config says 5 classes"
    assert lines[1].startswith("the trainer ended with code 0") and lines[2:] == [why]
