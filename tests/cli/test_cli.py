"""The command line: bad input ends in one error line and one hint, reading needs no TensorFlow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from watching import CLI, ROOT, STUB, Watcher, cli, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def run_here(watcher: Watcher):
    """Run the daemon with other arguments; returns the finished process."""

    def run(*flags: object, model_dir: object = None, **environment: str):
        arguments = ["run", model_dir or watcher.model_dir, "--exit-when-idle", 0.2]
        defaults = {"--pipeline-config": watcher.pipeline, "--python": STUB}
        for flag, value in defaults.items():
            if flag not in flags:
                arguments += [flag, value]
        return cli(*arguments, *flags, **environment)

    return run


def assert_one_clear_error(ended: subprocess.CompletedProcess[str], *words: str) -> None:
    """One line says what, one says what next; no traceback, and exit code 1."""
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    error, hint = ended.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: ") and hint.startswith("hint: ")
    assert len(re.findall(r"^error: ", ended.stderr, re.MULTILINE)) == 1
    for word in words:
        assert word in error + hint


def test_a_missing_model_dir_is_refused(run_here, tmp_path: Path):
    missing = tmp_path / "none"
    assert_one_clear_error(run_here(model_dir=missing), str(missing), "--wait-for-model-dir")


def test_a_model_dir_whose_parent_is_missing_is_not_waited_for(run_here, tmp_path: Path):
    ended = run_here("--wait-for-model-dir", model_dir=tmp_path / "a" / "b")
    assert_one_clear_error(ended, "does not exist either")


def test_a_missing_model_dir_is_waited_for_when_asked(watcher: Watcher):
    watcher.model_dir.rmdir()
    near = watcher.model_dir.with_name("modle_dir")
    near.mkdir()
    daemon = watcher.start("--wait-for-model-dir", "--exit-when-idle", "1")
    waits = f"waiting for {watcher.model_dir}, which does not exist yet: did you mean {near}?\n"
    wait_until(lambda: watcher.log.read_text() == waits, "it says what it waits for")
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.wait(1.5)
    assert watcher.log.read_text() == waits
    Manager(watcher.model_dir).save(100, model_tensors(1000, "a"))
    assert daemon.wait(60) == 0
    assert watcher.states() == {"ckpt-1": "scored"}


def test_a_missing_pipeline_config_is_refused(run_here):
    ended = run_here("--pipeline-config", "nowhere.config")
    assert_one_clear_error(ended, "pipeline_config (nowhere.config)")


def test_a_missing_interpreter_is_refused(run_here):
    assert_one_clear_error(run_here("--python", "/no/python"), "python (/no/python)")


def test_an_unknown_metric_is_refused_with_the_names_there_are(run_here):
    ended = run_here("--metric", "mAP@0.5")
    assert_one_clear_error(ended, "metric (mAP@0.5)", "DetectionBoxes_Precision/mAP", "Loss/total")


def test_what_the_worker_refuses_is_told_in_its_words(run_here):
    ended = run_here(STUB_REFUSE="label map nowhere.pbtxt does not exist")
    assert_one_clear_error(ended, "label map nowhere.pbtxt does not exist", "look there")


def test_a_worker_that_always_dies_at_the_start_is_an_error_with_its_last_words(
    run_here, watcher: Watcher
):
    ended = run_here("--retry-seconds", 0.05, STUB_DIE="1")
    assert_one_clear_error(ended, "3 attempts", "libcuda.so.1")
    assert f"is in {watcher.database.parent / 'worker.log'}\n" in ended.stderr


def test_a_state_folder_that_cannot_be_made_is_refused(run_here, tmp_path: Path):
    (tmp_path / "file").write_text("")
    ended = run_here("--state-dir", tmp_path / "file" / "state")
    assert_one_clear_error(ended, "cannot create", "--state-dir")


def test_a_database_that_is_none_is_refused(run_here, watcher: Watcher):
    watcher.database.parent.mkdir()
    watcher.database.write_text("no database " * 100)
    assert_one_clear_error(run_here(), "not a database")


def test_a_wrong_value_and_an_unknown_flag_are_refused(run_here):
    assert_one_clear_error(run_here("--top-k", "few"), "top_k (few)")
    ended = run_here("--topk", "1")
    assert ended.returncode == 2
    assert "--top-k" in ended.stderr


def test_what_is_misspelled_is_offered_the_likeliest_first():
    ended = cli("rum", "models/ssd")
    assert ended.returncode == 2
    assert ended.stderr.endswith("No such command 'rum'. Did you mean 'run' or 'resume'?\n")
    assert cli("xyzzy").stderr.endswith("No such command 'xyzzy'.\n")
    ended = cli("run", "--pipline-config", "x")
    assert ended.stderr.endswith("Did you mean '--pipeline-config' or '--config'?\n")


def test_what_the_worker_notes_at_its_start_is_said_once_and_is_no_warning(watcher: Watcher):
    manager = Manager(watcher.model_dir)
    for step in (100, 200):
        manager.save(step, model_tensors(1000, str(step)))
    once = watcher.model_dir.parent / "once"
    once.mkdir()
    flags = ("--log-format", "json", "--max-attempts", 3)
    faults = {"STUB_CRASH": "ckpt-1", "STUB_ONCE": str(once)}
    watcher.run(*flags, STUB_NOTES='["there is a faster way"]', **faults)
    lines = [json.loads(line) for line in watcher.log.read_text().splitlines() if line[:1] == "{"]
    assert sum(line["event"] == "worker ready" for line in lines) == 2
    assert [line["level"] for line in lines if line["event"] == "there is a faster way"] == ["info"]


def test_best_before_anything_is_promoted_says_so(run_here, watcher: Watcher):
    run_here()
    assert_one_clear_error(cli("best", watcher.model_dir), "promoted yet")


def test_reading_where_no_watcher_ever_ran_says_so(tmp_path: Path):
    for command in ("status", "best", "history"):
        assert_one_clear_error(cli(command, tmp_path), "no database")


def test_status_best_and_history_show_the_run(watcher: Watcher):
    manager = Manager(watcher.model_dir)
    for step in (100, 200):
        manager.save(step, model_tensors(1000, str(step)))
    watcher.run("--patience", 1, STUB_SCORES='{"ckpt-1": 0.5, "ckpt-2": 0.25}')
    wide = {"COLUMNS": "200"}
    shown = cli("status", watcher.model_dir, **wide).stdout
    assert "ckpt-1" in shown and "0.5000" in shown and "2 scored" in shown
    assert "0.2500" in cli("history", watcher.model_dir, **wide).stdout
    path = cli("best", watcher.model_dir, "--path").stdout
    assert path == f"{watcher.best_dir / 'ckpt-1'}\n"
    best = json.loads(cli("best", watcher.model_dir, "--json").stdout)
    assert (best["checkpoint"], best["score"]) == ("ckpt-1", 0.5)
    history = json.loads(cli("history", watcher.model_dir, "--json").stdout)
    assert [row["state"] for row in history] == ["scored", "scored"]
    status = json.loads(cli("status", watcher.model_dir, "--json").stdout)
    assert status["states"] == {"scored": 2} and status["best"] == best


def test_the_settings_may_all_come_from_a_file(watcher: Watcher, tmp_path: Path):
    Manager(watcher.model_dir).save(100, model_tensors(1000, "a"))
    file = tmp_path / "run.toml"
    file.write_text(
        f'model_dir = "{watcher.model_dir}"\npipeline_config = "{watcher.pipeline}"\n'
        f'python = "{STUB}"\nexit_when_idle = 0.2\nrun_name = "from-a-file"\n'
    )
    assert cli("run", "--config", file).returncode == 0
    assert watcher.query("SELECT run FROM best") == [{"run": "from-a-file"}]


def test_json_logs_are_an_object_a_line(watcher: Watcher):
    Manager(watcher.model_dir).save(100, model_tensors(1000, "a"))
    watcher.run("--log-format", "json")
    lines = [json.loads(line) for line in watcher.log.read_text().splitlines()]
    assert {"found", "scored", "best"} <= {line["event"] for line in lines}


def test_the_daemon_never_imports_tensorflow_the_evaluators_or_numpy():
    check = (
        "import sys, watcher.cli, watcher.cli.run, watcher.runtime.app\n"
        "banned = {'tensorflow', 'object_detection', 'evaluators', 'numpy'}\n"
        "sys.exit(str(banned & set(sys.modules)) if banned & set(sys.modules) else 0)"
    )
    command = [sys.executable, "-c", check]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_closed_pipe_is_no_traceback(watcher: Watcher):
    Manager(watcher.model_dir).save(100, model_tensors(1000, "a"))
    watcher.run()
    reader, writer = os.pipe()
    os.close(reader)
    for words in ("history", "leaderboard", "status", "status --json", "best", "explain", "run -h"):
        command = [*CLI, *words.split(), str(watcher.model_dir)]
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
        assert (ended.returncode, ended.stderr) == (0, ""), words
    os.close(writer)


@pytest.mark.parametrize("command", ["init", "doctor"])
@pytest.mark.parametrize("seconds", ["inf", "nan", "1e20", "0", "86401"])
def test_a_time_limit_is_more_than_nothing_and_a_day_at_most(
    command: str, seconds: str, tmp_path: Path
):
    ended = cli(command, tmp_path, "--time-limit", seconds)
    assert ended.returncode == 2, ended.stderr
    assert "Invalid value for '--time-limit'" in ended.stderr
