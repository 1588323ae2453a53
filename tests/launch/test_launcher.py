"""`checkpoint-watcher train`: real launchers, trainers and signals, and a stub evaluator."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Launch, children, kill_group, leftovers, python, trainer_of
from watching import alive, cli, wait_until

pytestmark = pytest.mark.slow

SAY_WHEN_READY = "print('ready', flush=True)\n"
IGNORES_SIGTERM = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\n"


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    run = Launch(tmp_path)
    yield run
    run.end()


def ready(launch: Launch) -> None:
    wait_until(lambda: "ready" in launch.out.read_text(), "the trainer is ready")


# -- the trainer is unmodified


def test_output_environment_and_exit_code_are_the_trainers_own(launch: Launch):
    program = (
        "import os, sys; os.write(1, b'\\xff\\0loss'); os.write(2, os.environb[b'MARK']);"
        " print(len(os.listdir('/proc/self/fd')), os.getpgrp() == os.getpid()); sys.exit(7)"
    )
    assert launch.run(trainer=python(program), MARK="mark") == 7
    # stdin, stdout, stderr, the lock of model_dir, and the folder that is being listed
    assert launch.out.read_bytes() == b"\xff\0loss5 True\n"
    assert launch.err.read_bytes().partition(b"20")[0] == b"mark"
    assert launch.err.read_text().count("\n") == 1
    assert re.fullmatch(r"the trainer ended with code 7 after \d+(\.\d)? s.*", launch.said())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_trainer_that_a_signal_ends_gives_128_and_the_signal(launch: Launch, number: int):
    assert launch.run(trainer=python(f"import os; os.kill(os.getpid(), {number})")) == 128 + number


def test_its_output_goes_to_a_file_when_asked(launch: Launch):
    log = launch.folder / "trainer.log"
    trainer = python("import sys; print('out', flush=True); print('err', file=sys.stderr)")
    assert launch.run("--trainer-log", log, trainer=trainer) == 0
    assert launch.run("--trainer-log", log, trainer=trainer) == 0
    assert log.read_text() == "out\nerr\n" * 2
    assert launch.out.read_text() + launch.err.read_text() == ""


def test_model_dir_is_read_from_the_trainers_command(launch: Launch):
    trainer = python("pass", f"--model_dir={launch.folder / 'other'}")
    ended = cli("train", "--", *trainer)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (launch.folder / "other").is_dir()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--", "python"], "model_dir is not set"),
        (["--model-dir", "m", "--", "no-such-program"], "cannot start no-such-program: No such"),
        (["--model-dir", "gs://bucket/m", "--", "true"], "is not a folder of this machine"),
        (["--model-dir", "m", "--patience", "3", "--", "true"], "--patience is a setting of the"),
        (["--model-dir", "m", "--watch", "--", "true"], "pipeline_config is not set"),
        (["--model-dir", "m", "--restarts", "-1", "--", "true"], "restarts (-1) is invalid"),
    ],
)
def test_wrong_usage_gives_one_error_and_one_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
):
    monkeypatch.chdir(tmp_path)
    ended = cli("train", *arguments)
    lines = ended.stderr.splitlines()
    assert ended.returncode == 1 and len(lines) == 2
    assert lines[0].startswith("error: ") and error in lines[0]
    assert lines[1].startswith("hint: ")


# -- the early stop


@pytest.mark.parametrize("pause", [0.0, 0.03, 0.3])
def test_an_early_stop_never_cuts_a_save_and_gives_code_0(launch: Launch, pause: float):
    run = launch.identify()
    interval = max(0.01, pause / 5)
    trainer = launch.saving("--saves", 10_000, "--interval", interval, "--index-pause", pause)
    launcher = launch.start(trainer=[*trainer, "--max-to-keep", "0"])
    launch.saved(4)
    launch.say_stop(run)
    assert launcher.wait(timeout=60) == 0
    assert leftovers(launch) == []
    first, *_, last = launch.said().splitlines()
    assert first == "early stop, the trainer ends now: no improvement"
    assert last.startswith(f"to train on: `checkpoint-watcher resume {launch.model_dir}`")


def test_what_an_earlier_trainer_left_half_saved_is_not_waited_for(launch: Launch):
    run = launch.identify()
    for dying in ("temp", "data", "index"):
        subprocess.run(launch.saving("--saves", 1, "--die-at", dying), stderr=subprocess.DEVNULL)
    (launch.model_dir / "ckpt-9_temp").mkdir()
    launcher = launch.start(trainer=python(f"{SAY_WHEN_READY}import time; time.sleep(60)"))
    ready(launch)
    launch.say_stop(run)
    assert launcher.wait(timeout=60) == 0


def test_a_save_that_never_goes_on_is_given_up(launch: Launch):
    run = launch.identify()
    ended = launch.folder / "ended"
    # It notes when it is ended.
    hang = """
import pathlib, signal, sys, time
def leave(*_): pathlib.Path(sys.argv[2]).touch(); sys.exit()
signal.signal(15, leave)
(pathlib.Path(sys.argv[1]) / "ckpt-3_temp").mkdir(parents=True)
time.sleep(600)
"""
    trainer = python(hang, launch.model_dir, ended)
    launcher = launch.start("--grace-seconds", 1, trainer=trainer)
    wait_until((launch.model_dir / "ckpt-3_temp").exists, "the save has begun")
    launch.say_stop(run)
    assert launcher.wait(timeout=60) == 0
    assert ended.stat().st_mtime - launch.sentinel.stat().st_mtime > 0.8


SAVES_WHEN_TOLD = """
import os, sys, time
from pathlib import Path
from fake_trainer import Manager, model_tensors
manager = Manager(Path(sys.argv[1]))
for step in (100, 200): manager.save(step, model_tensors(1000, step))
while not os.path.exists(sys.argv[2]): time.sleep(0.02)
manager.save(300, model_tensors(1000, 300), index_pause=0.5)
time.sleep(600)
"""


def test_stop_at_checkpoint_lets_it_save_once_more(launch: Launch):
    run, goes_on = launch.identify(), launch.folder / "go"
    launcher = launch.start(
        "--stop-at-checkpoint", trainer=python(SAVES_WHEN_TOLD, launch.model_dir, goes_on)
    )
    state = launch.model_dir / "checkpoint"
    wait_until(lambda: state.exists() and "ckpt-2" in state.read_text(), "it has saved twice")
    launch.say_stop(run)
    wait_until(lambda: "at its next checkpoint" in launch.said(), "the launcher has seen it")
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.wait(timeout=1)
    goes_on.touch()
    assert launcher.wait(timeout=60) == 0
    assert len(list(launch.model_dir.glob("*.index"))) == 3
    assert leftovers(launch) == []


def test_a_stop_that_is_withdrawn_while_it_waits_lets_the_training_go_on(launch: Launch):
    run = launch.identify()
    goes_on = launch.folder / "go"
    wait = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
    launcher = launch.start("--stop-at-checkpoint", trainer=python(SAY_WHEN_READY + wait, goes_on))
    ready(launch)
    launch.say_stop(run)
    wait_until(lambda: "at its next checkpoint" in launch.said(), "the launcher has seen it")
    launch.sentinel.unlink()
    wait_until(lambda: "withdrawn" in launch.said(), "the launcher has seen that it is gone")
    goes_on.touch()
    assert launcher.wait(timeout=60) == 0


def test_a_group_that_ignores_sigterm_is_killed_after_the_grace(launch: Launch):
    run = launch.identify()
    child = f"{IGNORES_SIGTERM}print('ready', flush=True)\ntime.sleep(60)"
    parent = f"{IGNORES_SIGTERM}import subprocess, sys\n"
    parent += f"print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)\ntime.sleep(60)"
    launcher = launch.start("--stop-grace-seconds", 0.5, trainer=[sys.executable, "-uc", parent])
    ready(launch)
    launch.say_stop(run)
    assert launcher.wait(timeout=60) == 0
    pid = next(int(word) for word in launch.out.read_text().split() if word.isdigit())
    assert not alive(pid)
    assert "is killed" in launch.said()


def test_a_trainer_that_uses_the_grace_has_it(launch: Launch):
    run = launch.identify()
    program = (
        "import signal, sys, time\n"
        "def leave(*_): time.sleep(1); print('saved', flush=True); sys.exit(3)\n"
        f"signal.signal(15, leave)\n{SAY_WHEN_READY}time.sleep(60)"
    )
    launcher = launch.start(trainer=python(program))
    ready(launch)
    launch.say_stop(run)
    assert launcher.wait(timeout=60) == 0
    assert "saved" in launch.out.read_text()


# -- which sentinel counts


def test_a_sentinel_of_another_run_is_told_and_ignored(launch: Launch):
    launch.identify()
    launch.say_stop("another run")
    assert launch.run(trainer=python("import time; time.sleep(1.2); print('done')")) == 0
    assert launch.out.read_text() == "done\n"
    assert launch.said() == f"{launch.sentinel} is ignored: it is of another run"


def test_without_a_database_only_a_sentinel_that_comes_later_counts(launch: Launch):
    launch.say_stop("somebody")
    launcher = launch.start(trainer=python(f"{SAY_WHEN_READY}import time; time.sleep(60)"))
    ready(launch)
    wait_until(lambda: "it was there before" in launch.said(), "the old one is ignored")
    launch.say_stop("somebody")
    assert launcher.wait(timeout=60) == 0


def test_a_file_that_is_not_the_watchers_stops_nothing(launch: Launch):
    launch.identify()
    told = 'while kill -0 $PPID && ! grep -q "it is not the watcher" "$1"; do sleep 0.1; done'
    trainer = ["sh", "-c", f'touch "$0"; {told}; exit 4', str(launch.sentinel), str(launch.err)]
    assert launch.run(trainer=trainer) == 4
    assert "it is not the watcher's" in launch.said()


def test_a_run_that_was_stopped_is_not_trained_on_and_that_is_success(launch: Launch):
    launch.say_stop(launch.identify())
    assert launch.run(trainer=python("print('training')")) == 0
    assert launch.out.read_text() == ""
    error, hint = launch.said().splitlines()
    assert error == "training is over, nothing is started: no improvement"
    assert "--patience" in hint


# -- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_reaches_the_trainer_and_its_code_comes_back(launch: Launch, number: int):
    program = (
        "import signal, sys, time\n"
        f"signal.signal({number}, lambda *_: sys.exit(40))\n{SAY_WHEN_READY}time.sleep(60)"
    )
    launcher = launch.start("--restarts", 5, trainer=python(program))
    ready(launch)
    launcher.send_signal(number)
    assert launcher.wait(timeout=60) == 40  # which is no crash after such a signal


def test_sigterm_ends_a_plain_trainer_at_once_with_143(launch: Launch):
    launcher = launch.start(trainer=python(f"{SAY_WHEN_READY}import time; time.sleep(60)"))
    ready(launch)
    launcher.terminate()
    assert launcher.wait(timeout=60) == 128 + signal.SIGTERM


def test_other_signals_pass_through_and_training_goes_on(launch: Launch):
    program = (
        "import signal, time\ngot = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: got.append(print('usr1', flush=True)))\n"
        f"{SAY_WHEN_READY}\nwhile not got: time.sleep(0.02)\nprint('on')"
    )
    launcher = launch.start(trainer=python(program))
    ready(launch)
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.wait(timeout=60) == 0
    assert launch.out.read_text().split() == ["ready", "usr1", "on"]


def test_what_nohup_ignores_stays_ignored(launch: Launch):
    program = "import signal, time\nprint(signal.getsignal(1).name, flush=True)\n"
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        launcher = launch.start(trainer=python(f"{program}{SAY_WHEN_READY}time.sleep(60)"))
    finally:
        signal.signal(signal.SIGHUP, old)
    ready(launch)
    launcher.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.wait(timeout=0.5)
    launcher.terminate()
    assert launcher.wait(timeout=60) == 143
    assert "SIG_IGN" in launch.out.read_text()


def test_a_killed_launcher_leaves_the_trainer_at_work_and_a_second_one_is_refused(launch: Launch):
    launcher = launch.start(trainer=python(f"{SAY_WHEN_READY}import time; time.sleep(60)"))
    ready(launch)
    trainer = trainer_of(launcher.pid)
    launcher.kill()
    launcher.wait()
    try:
        assert alive(trainer)
        second = cli("train", "--model-dir", launch.model_dir, "--", "true")
        assert second.returncode == 3
        assert "is at work in" in second.stderr and "hint: " in second.stderr
    finally:
        kill_group(trainer)
    wait_until(lambda: not alive(trainer), "the trainer is gone")
    assert launch.run(trainer=["true"]) == 0


# -- restarts

CRASHES = """
import os, sys
runs = sys.argv[1]
with open(runs, "a") as file: file.write("x")
if os.path.getsize(runs) <= int(sys.argv[2]): os.kill(os.getpid(), int(sys.argv[3]))
print("done")
"""


def test_a_crashed_trainer_is_started_again_and_goes_on(launch: Launch):
    trainer = python(CRASHES, launch.folder / "runs", 2, int(signal.SIGSEGV))
    assert launch.run("--restarts", 2, trainer=trainer) == 0
    assert launch.out.read_text() == "done\n"
    assert launch.said().splitlines() == [
        "the trainer was ended by SIGSEGV; it is started again in 0.1 s (1 of 2)",
        "the trainer was ended by SIGSEGV; it is started again in 0.2 s (2 of 2)",
    ]


def test_after_the_last_restart_the_code_is_the_trainers(launch: Launch):
    trainer = python(CRASHES, launch.folder / "runs", 9, int(signal.SIGKILL))
    assert launch.run("--restarts", 1, trainer=trainer) == 137
    assert (launch.folder / "runs").read_text() == "xx"
    assert "no restarts are left" in launch.said()


def test_a_new_checkpoint_begins_the_count_of_restarts_anew(launch: Launch):
    trainer = launch.saving("--saves", 2, "--interval", 0, "--die-at", "data")
    with_limit = ["sh", "-c", f'"$@"; [ $(ls {launch.model_dir}/*.index | wc -l) -ge 4 ]', "sh"]
    assert launch.run("--restarts", 1, trainer=[*with_limit, *trainer]) == 0
    assert launch.said().count("(1 of 1)") == 3


def test_a_trainer_that_somebody_ended_is_not_started_again(launch: Launch):
    trainer = python(CRASHES, launch.folder / "runs", 9, int(signal.SIGTERM))
    assert launch.run("--restarts", 5, trainer=trainer) == 143
    assert (launch.folder / "runs").read_text() == "x"


def test_a_signal_or_an_early_stop_while_it_waits_to_restart_ends_it(launch: Launch):
    run = launch.identify()
    launcher = launch.start("--restarts", 5, "--restart-seconds", 60, trainer=["false"])
    wait_until(lambda: "started again" in launch.said(), "it waits")
    launcher.terminate()
    assert launcher.wait(timeout=60) == 143
    launcher = launch.start("--restarts", 5, "--restart-seconds", 1.5, trainer=["false"])
    wait_until(lambda: "started again" in launch.said(), "it waits")
    launch.say_stop(run)
    assert launcher.wait(timeout=60) == 0
    assert "early stop, there is no restart" in launch.said()


# -- the watcher beside it


def watcher_pid(launch: Launch) -> int:
    def find() -> int:
        command = str(launch.model_dir).encode()
        for pid in children(launch.last.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"run" in words and command in words:
                return pid
        return 0

    return int(wait_until(find, "the watcher runs"))


def states(launch: Launch) -> dict[str, str]:
    shown = cli("history", launch.model_dir, "--json")
    return {row["checkpoint"]: row["state"] for row in json.loads(shown.stdout)}


def test_one_command_trains_watches_stops_early_and_finishes_the_queue(launch: Launch):
    scores = {"ckpt-2": 0.5, "ckpt-3": 0.4, "ckpt-4": 0.3}
    code = launch.run(
        *launch.watching("--patience", 2),
        trainer=launch.saving("--saves", 1000, "--interval", 0.5, "--max-to-keep", 0),
        STUB_SCORES=json.dumps(scores),
        STUB_SECONDS=0.02,
    )
    assert code == 0
    ended = states(launch)
    assert ended.pop("ckpt-1") == "untrained"
    assert set(ended.values()) == {"scored"}
    assert ended.keys() == {path.stem for path in launch.model_dir.glob("*.index")} - {"ckpt-1"}
    assert len(ended) < 100
    best = cli("best", launch.model_dir, "--path").stdout.strip()
    assert best == str(launch.model_dir / "best" / "ckpt-2")
    stopped, named, export, resume = launch.said().splitlines()[-4:]
    assert stopped == f"stopped early: {json.loads(launch.sentinel.read_text())['message']}"
    assert named == f"the best is ckpt-2 (step 100, score 0.5): {best}"
    assert export.startswith(f"to export it: {sys.executable} -m object_detection.exporter_main_v2")
    assert resume.startswith(f"to train on: `checkpoint-watcher resume {launch.model_dir}`")
    # The same again trains nothing; with other settings the watcher takes the stop back.
    again = python("print('training')")
    assert launch.run(*launch.watching("--patience", 2), trainer=again) == 0
    assert launch.out.read_text() == ""
    assert launch.run(*launch.watching("--patience", 900), trainer=again) == 0
    assert launch.out.read_text() == "training\n"


def test_a_watcher_that_dies_is_started_again_and_the_trainer_knows_nothing(launch: Launch):
    goes_on = launch.folder / "go"
    lasts = '"$@" && while ! [ -e "$0" ]; do sleep 0.05; done'
    saving = launch.saving("--saves", 12, "--interval", 0.3)
    launcher = launch.start(*launch.watching(), trainer=["sh", "-c", lasts, str(goes_on), *saving])
    launch.saved(1)
    first = watcher_pid(launch)
    os.kill(first, signal.SIGKILL)
    again = "the watcher was ended by SIGKILL; it is started again, after 1 s"
    wait_until(lambda: again in launch.said(), "it is started again")
    goes_on.touch()
    assert launcher.wait(timeout=60) == 0
    assert launch.out.read_text().count("step") == 12
    assert states(launch)["ckpt-12"] == "scored"


def test_a_trainers_failure_is_the_code_also_after_the_queue_was_finished(launch: Launch):
    file = launch.folder / "run.toml"
    flags = f'pipeline_config = "{launch.pipeline}"\npython = "{launch.stub}"\ntop_k = 1\n'
    file.write_text(f"{flags}restarts = 0\nwatch = true\n")  # `run` passes these two over
    failing = ["sh", "-c", '"$@"; exit 9', "sh", *launch.saving("--saves", 3, "--interval", 0)]
    assert launch.run("--config", file, trainer=failing) == 9
    assert states(launch) == {"ckpt-1": "untrained", "ckpt-2": "scored", "ckpt-3": "scored"}


def test_a_watcher_beside_another_one_leaves_the_work_to_it(launch: Launch):
    flags = ["--pipeline-config", launch.pipeline, "--python", launch.stub]
    launch.model_dir.mkdir()
    other = launch.adopt([*launch.cli, "run", str(launch.model_dir), *map(str, flags)])
    wait_until(launch.database.exists, "the other one is there")
    assert launch.run(*launch.watching(), trainer=launch.saving("--saves", 3)) == 0
    assert "the watcher ended with code 3; the training goes on" in launch.said()
    assert other.poll() is None


def test_a_queue_that_is_not_finished_in_time_is_a_failure(launch: Launch):
    trainer = launch.saving("--saves", 3, "--interval", 0)
    flags = launch.watching("--drain-timeout", 1)
    assert launch.run(*flags, trainer=trainer, STUB_SECONDS=600) == 1
    assert "is not through after 1 s" in launch.said()


def test_what_the_watcher_can_never_do_holds_up_no_end_and_is_a_failure(launch: Launch):
    trainer = launch.saving("--saves", 2, "--interval", 0)
    (launch.model_dir / "best").parent.mkdir()
    (launch.model_dir / "best").touch()
    assert launch.run(*launch.watching("--grace-seconds", 0.5), trainer=trainer) == 1
    assert "the watcher ended with work left that it could not do" in launch.said()
    assert "the run ends with work left: " in launch.err.read_text()


def test_a_signal_while_the_queue_is_finished_ends_it_and_the_queue_is_kept(launch: Launch):
    trainer = launch.saving("--saves", 3, "--interval", 0)
    launcher = launch.start(*launch.watching(), trainer=trainer, STUB_SECONDS=600)
    wait_until(lambda: "the watcher finishes" in launch.said(), "the trainer is through")
    wait_until(lambda: "worker ready" in launch.err.read_text(), "the watcher is at work")
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=60) == 130
    assert states(launch)["ckpt-2"] == "pending"


def test_run_finishes_what_is_left_after_sigusr1(launch: Launch):
    subprocess.run(launch.saving("--saves", 3, "--interval", 0), stdout=subprocess.DEVNULL)
    flags = ["--pipeline-config", launch.pipeline, "--python", launch.stub]
    watcher = launch.adopt([*launch.cli, "run", str(launch.model_dir), *map(str, flags)])
    wait_until(launch.database.exists, "it runs")
    watcher.send_signal(signal.SIGUSR1)
    assert watcher.wait(timeout=60) == 0
    assert states(launch) == {"ckpt-1": "untrained", "ckpt-2": "scored", "ckpt-3": "scored"}
