"""What the last start was given counts where nothing else is; a change is told before it acts."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from watching import STUB, Watcher, cli, wait_until

from watcher.config import LastStart, Settings, differences, load
from watcher.errors import ConfigError

REQUIRED = {"model_dir": "m", "pipeline_config": "p"}
SCORES = {"ckpt-1": 0.5, "ckpt-2": 0.6, "ckpt-3": 0.4, "ckpt-4": 0.3, "ckpt-5": 0.2}
ONCE = ("--exit-when-idle", 0.2)


def started(file: Path | None = None, **flags: Any) -> LastStart:
    """What is recorded of a start with these."""
    loaded = load(Settings, {**REQUIRED, **flags}, {}, file)
    return LastStart(loaded.settings.to_show(), loaded.given)


def after(last: LastStart, file: Path | None = None, **flags: Any) -> Settings:
    """What a start with these goes by, after another one."""
    return load(Settings, {"model_dir": "m", **flags}, {}, file, last=last).settings


@pytest.fixture
def ended(watcher: Watcher) -> Watcher:
    """A run of five checkpoints that was stopped early, with flags of its own."""
    manager = Manager(watcher.model_dir, max_to_keep=9)
    for number in range(1, 6):
        manager.save(100 * number, model_tensors(1000, str(number)))
    flags = ("--patience", 3, "--top-k", 2, "--run-name", "kitty")
    assert watcher.run(*flags, STUB_SCORES=json.dumps(SCORES)) == 0
    assert watcher.sentinel.exists() and watcher.leaderboard() == ["ckpt-2", "ckpt-1"]
    return watcher


def again(watcher: Watcher, *flags: object, cwd: Path | None = None) -> str:
    """Start it anew with no more than these flags, and return its log."""
    ran = cli("run", *flags, *ONCE, cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr + ran.stdout


def name_of(watcher: Watcher) -> str:
    return str(watcher.query("SELECT name FROM runs")[0]["name"])


def test_a_start_without_the_earlier_flags_leaves_the_run_as_it_is(ended: Watcher):
    before = ended.sentinel.read_bytes(), ended.best_files(), ended.query("SELECT * FROM best")
    told = again(ended, ended.model_dir)
    after_it = ended.sentinel.read_bytes(), ended.best_files(), ended.query("SELECT * FROM best")
    assert after_it == before
    assert name_of(ended) == "kitty"
    assert "as at the last start" in told and "patience 3" in told and "top_k 2" in told
    assert "settings differ" not in told


def test_a_device_is_said_to_be_set_only_where_somebody_set_it(ended: Watcher):
    def reason(*flags: object) -> str:
        told = again(ended, ended.model_dir, *flags)
        return told.partition("device=cpu reason='")[2].partition("'")[0]

    assert reason() == "by default"
    checked = cli("doctor", ended.model_dir, "--python", "/bin/false").stdout
    assert "evaluates on the CPU: by default" in checked
    assert reason("--device", "cpu") == "as set"
    assert reason() == "as at the last start"


def test_what_a_start_changes_is_told_before_a_stop_is_withdrawn_or_a_place_is_lost(
    ended: Watcher,
):
    told = again(ended, ended.model_dir, "--patience", "none", "--top-k", 1, "--run-name", "cat")
    line = next(line for line in told.splitlines() if "settings differ from the last start" in line)
    for change in ("patience 3 -> none", "top_k 2 -> 1", "run_name kitty -> cat"):
        assert change in line
    assert told.index(line) < told.index("early stop withdrawn")
    assert not ended.sentinel.exists() and ended.leaderboard() == ["ckpt-2"]
    assert name_of(ended) == "cat"
    kinds = [row["kind"] for row in ended.query("SELECT kind FROM events ORDER BY id")]
    assert kinds.index("settings") < kinds.index("stop_withdrawn")
    assert "settings differ" not in again(ended, ended.model_dir), "and these count from now on"


def test_a_stop_stands_until_what_is_promoted_is_measured_anew_and_its_end_is_foretold(
    ended: Watcher, tmp_path: Path
):
    before, go = ended.sentinel.read_bytes(), tmp_path / "go"
    wait = {"STUB_WAIT": "*", "STUB_WAIT_FOR": go}
    scores = {"STUB_SCORES": json.dumps(SCORES), "STUB_FINGERPRINT": "b" * 64}
    daemon = ended.start("--exit-when-idle", 0.2, **wait, **scores)
    wait_until(lambda: len(ended.evaluations()) == 6, "one is measured anew")
    said = "the early stop was decided by another evaluation: it stands until the checkpoints"
    wait_until(lambda: said in ended.log.read_text(), "it is told")
    assert ended.sentinel.read_bytes() == before
    shown = json.loads(cli("status", ended.model_dir, "--json").stdout)
    assert "no improvement" in shown["status"]["stop"]
    explained = "stand as the one before decided, until what waits is measured anew"
    assert explained in cli("explain", ended.model_dir).stderr
    go.touch()
    # Two scores of the new evaluation cannot use up a patience of three.
    wait_until(lambda: not ended.sentinel.exists(), "the new scores decide")
    wait_until(lambda: "early stop withdrawn" in ended.log.read_text(), "that is told, too")
    told = ended.log.read_text()
    assert told.index(said) < told.index("early stop withdrawn") and told.count(said) == 1
    assert "the evaluation changed, and its scores do not say stop" in told
    (event,) = ended.query("SELECT message FROM events WHERE kind = 'stop_withdrawn'")
    assert event["message"] == "the evaluation changed, and its scores do not say stop: go on"
    assert cli("explain", ended.model_dir).stderr == ""
    assert daemon.wait(60) == 0
    # Each evaluation has its own verdict: with the scores of before the stop is there again.
    assert ended.run(STUB_SCORES=json.dumps(SCORES)) == 0
    assert json.loads(ended.sentinel.read_bytes())["message"] == json.loads(before)["message"]


def test_a_stop_that_the_new_scores_give_too_was_there_all_the_time(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=9)
    for number in range(1, 6):
        manager.save(100 * number, model_tensors(1000, str(number)))
    scores = {"STUB_SCORES": json.dumps(SCORES)}
    assert watcher.run("--patience", 3, "--top-k", 9, **scores) == 0
    written = watcher.sentinel.stat()
    assert watcher.run("--patience", 3, STUB_FINGERPRINT="b" * 64, **scores) == 0
    assert len(watcher.evaluations()) == 10
    after_it = watcher.sentinel.stat()
    assert (after_it.st_ino, after_it.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert not watcher.query("SELECT 1 FROM events WHERE kind = 'stop_withdrawn'")


def test_a_stop_stands_where_nothing_can_be_measured_anew_and_resume_ends_it_all_the_same(
    ended: Watcher,
):
    before, other = ended.sentinel.read_bytes(), {"STUB_FINGERPRINT": "b" * 64}
    with contextlib.closing(sqlite3.connect(ended.database)) as db, db:  # as of an earlier version
        db.execute("UPDATE runs SET stopping = json_remove(stopping, '$.fingerprint')")
        db.execute("UPDATE runs SET settings = json_set(settings, '$.top_k', 3)")
    assert ended.run("--top-k", 2, STUB_REJECT="*", **other) == 1
    assert ended.sentinel.read_bytes() == before
    assert cli("resume", ended.model_dir).returncode == 0
    assert not ended.sentinel.exists()
    ended.run(STUB_REJECT="*", **other)
    assert not ended.sentinel.exists()


def test_what_is_kept_is_logged_once_whatever_its_score(watcher: Watcher):
    Manager(watcher.model_dir).save(100, model_tensors(1000, "1"))
    assert watcher.run("--keep-last", 1) == 0
    assert watcher.run(STUB_FINGERPRINT="b" * 64) == 0
    Manager(watcher.model_dir).save(200, model_tensors(1000, "2"))
    assert watcher.run(STUB_FINGERPRINT="b" * 64) == 0
    lines = [line.split() for line in watcher.log.read_text().splitlines()]
    kept = [line[line.index("kept") + 1 :] for line in lines if "kept" in line]
    # The first stays until the second, which waits, is evaluated.
    assert kept == [["checkpoints=ckpt-1", "of=1"], ["checkpoints=ckpt-2", "of=2"]]


def test_only_given_takes_nothing_from_the_last_start(ended: Watcher):
    told = again(
        ended,
        *(ended.model_dir, "--only-given"),
        *("--pipeline-config", ended.pipeline, "--python", STUB),
    )
    assert "patience 3 -> none, " in told and "as at the last start" not in told
    assert name_of(ended) == "model_dir" and not ended.sentinel.exists()


def test_a_start_that_is_refused_changes_neither_the_name_nor_what_counts(ended: Watcher):
    refused = cli("run", ended.model_dir, *ONCE, "--metric", "mAPP", "--run-name", "other")
    assert refused.returncode == 1 and "did you mean mAP?" in refused.stderr
    assert name_of(ended) == "kitty"
    assert "settings differ" not in again(ended, ended.model_dir)


def test_a_settings_file_in_the_folder_is_taken_by_every_command_and_said_to_be(
    ended: Watcher, tmp_path: Path
):
    desk = tmp_path / "desk"
    desk.mkdir()
    file = desk / "checkpoint-watcher.toml"
    file.write_text(f'model_dir = "{ended.model_dir}"\ntop_k = 1\n')
    told = again(ended, cwd=desk)
    assert told.startswith("settings from ./checkpoint-watcher.toml\n")
    assert "top_k 2 -> 1" in told and "patience" in told
    for command in ("status", "best", "leaderboard", "history", "explain", "resume"):
        ran = cli(command, cwd=desk)
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr.startswith(f"MODEL_DIR from ./{file.name}: {ended.model_dir}\n")
    doctor = cli("doctor", "--json", "--time-limit", 1, cwd=desk)
    assert doctor.stderr.startswith("settings from ./") and json.loads(doctor.stdout)
    # The launcher and the watcher that it starts take the same file, and say it once.
    trained = cli("train", "--watch", "--", "true", cwd=desk)
    assert trained.stderr.count("settings from ./") == 1, trained.stderr


def test_a_settings_file_in_the_folder_that_is_of_another_model_dir_is_not_taken(
    ended: Watcher, tmp_path: Path
):
    desk = tmp_path / "desk"
    desk.mkdir()
    (desk / "checkpoint-watcher.toml").write_text('model_dir = "/elsewhere"\ntop_k = 1\n')
    said = again(ended, ended.model_dir, cwd=desk)
    assert "settings from" not in said
    assert "./checkpoint-watcher.toml is not taken: it is of MODEL_DIR /elsewhere" in said
    assert ended.leaderboard() == ["ckpt-2", "ckpt-1"]
    units = cli(
        *("install-units", ended.model_dir, "--run", "cats", "--dry-run", "--user", "root"),
        *("--pipeline-config", ended.pipeline, "--python", STUB),
        cwd=desk,
    )
    assert units.returncode == 0, units.stderr
    assert "elsewhere" not in units.stdout and "--only-given" in units.stdout


@pytest.mark.slow
def test_without_a_settings_file_the_missing_model_dir_is_named(tmp_path: Path):
    for command in ("status", "explain"):
        ran = cli(command, cwd=tmp_path)
        assert ran.returncode == 2 and "Missing argument 'MODEL_DIR'" in ran.stderr


def test_what_was_taken_out_of_the_file_has_its_default_again_and_earlier_flags_count_on(
    tmp_path: Path,
):
    file = tmp_path / "settings.toml"
    file.write_text('pipeline_config = "p"\npatience = 4\nkeep_last = 2\n')
    first = started(file, top_k="5")
    assert after(first, file).stopping.patience == 4
    file.write_text('pipeline_config = "p"\nkeep_last = 2\n')
    second = after(first, file)
    assert (second.stopping.patience, second.retention.keep_last, second.ranking.top_k) == (
        None,
        2,
        5,
    )
    file.write_text('pipeline_config = "p"\ntop_k = 1\n')
    assert after(first, file).ranking.top_k == 1, "what the file says goes before an earlier flag"


def test_without_a_file_all_of_the_last_start_counts_that_from_a_file_too(tmp_path: Path):
    file = tmp_path / "settings.toml"
    file.write_text('pipeline_config = "p"\npatience = 4\n[[board]]\ntop_k = 7\n')
    first = started(file, min_delta="1%")
    now = after(first)
    assert (
        now.stopping.patience,
        now.ranking.top_k,
        now.stopping.min_delta,
        now.ranking.board[0].top_k,
    ) == (4, 7, "1%", 7)
    assert now.evaluator.pipeline_config == str(Path("p").absolute())
    assert after(first, patience="9").stopping.patience == 9
    third = LastStart(now.to_show(), load(Settings, REQUIRED, {}, None, last=first).given)
    assert after(third).stopping.patience == 4, "and of the one before that"


@pytest.mark.parametrize(
    ("given", "taken_back"),
    [
        ({"patience": "3"}, {"patience": "none"}),
        ({"tie_break": ["mAP75"]}, {"tie_break": ("none",)}),
        ({"run_name": "kitty"}, {"run_name": "none"}),
        ({"max_pinned_bytes": "1GB"}, {"max_pinned_bytes": "none"}),
        ({"mode": "min", "metric": "a/b"}, {"mode": "none"}),
    ],
)
def test_none_takes_back_what_is_not_set_by_default(given: dict, taken_back: dict):
    (name,) = taken_back
    last = started(**given)
    assert after(last).value(name) not in (None, ())
    assert after(last, **taken_back).value(name) in (None, ())
    again_later = load(Settings, {**REQUIRED, **taken_back}, {}, None, last=last)
    assert name not in again_later.given


def test_what_is_said_in_terms_of_a_metric_goes_with_it():
    last = started(metric="mAP", target="0.9", min_delta="0.01", patience="3", mode="max")
    same = after(last, metric="DetectionBoxes_Precision/mAP")
    assert (same.stopping.target, same.stopping.min_delta, same.stopping.patience) == (
        0.9,
        "0.01",
        3,
    )
    other = after(last, metric="loss")
    assert (
        other.stopping.target,
        other.stopping.min_delta,
        other.stopping.patience,
        other.ranking.better,
    ) == (None, 0, 3, "min")
    assert differences(last.settings, other.to_show()) == [
        *("metric mAP -> loss", "mode max -> min"),
        *("min_delta 0.01 -> 0", "target 0.9 -> none"),
    ]


def test_what_belongs_to_one_invocation_is_not_remembered_and_what_holds_passwords_is_named():
    flags = {"exit_when_idle": "5", "listen": "0", "log_format": "json", "notify": ["ntfy://a:b@c"]}
    last = started(**flags, device="cpu", nice="5")
    assert "ntfy" not in json.dumps(dict(last.settings))
    loaded = load(Settings, {"model_dir": "m"}, {}, None, last=last)
    assert set(loaded.inherited) == {"pipeline_config", "device", "nice"}
    assert loaded.forgotten == ("notify",)
    given_again = {"model_dir": "m", "notify": ["ntfy://a:b@c"]}
    assert load(Settings, given_again, {}, None, last=last).forgotten == ()


def test_relative_files_of_the_last_start_are_found_from_another_folder():
    last = started(python="env/bin/python", metric_plugin=["deployed.py:f", "house"])
    assert last.settings["python"] == str(Path("env/bin/python").absolute())
    assert last.settings["metric_plugin"] == [f"{Path('deployed.py').absolute()}:f", "house"]
    assert started(python="python3").settings["python"] == "python3"


def test_of_an_earlier_version_all_that_was_no_default_counts_unless_a_file_is_in_use(
    tmp_path: Path,
):
    recorded = {**started(patience="3").settings, "mode": "max"}
    last = LastStart(recorded, None)
    assert after(last).stopping.patience == 3
    assert after(last, metric="loss").ranking.better == "min"
    file = tmp_path / "settings.toml"
    file.write_text('pipeline_config = "p"\n')
    assert after(last, file).stopping.patience is None


def test_a_wrong_value_of_the_last_start_says_where_it_is_from():
    last = LastStart({**started().settings, "patience": "x"}, {"patience": "--patience"})
    with pytest.raises(ConfigError) as caught:
        after(last, pipeline_config="p")
    assert "it was set by --patience at the last start" in str(caught.value.hint)
