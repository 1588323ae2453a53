"""Settings that are each valid and together cannot be meant are refused, or told at the start."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, cli

from watcher.config import (
    LastStart,
    LaunchSettings,
    Settings,
    doubts,
    launch_doubts,
    load,
    load_as,
    make_settings,
)
from watcher.config.policies import boards
from watcher.errors import ConfigError

REQUIRED = {"model_dir": "m", "pipeline_config": "p"}

EVERY_SCORE = "every score would end the run"
REFUSED = [
    ({"target": 0.3, "divergence": 0.4}, "target (0.3) is not better than divergence (0.4)"),
    ({"target": 0.4, "divergence": 0.4}, EVERY_SCORE),
    ({"target": 0.0, "divergence": 0.1}, "target (0)"),
    ({"target": 2, "divergence": 1, "metric": "loss", "mode": "min"}, "by mode min"),
    ({"target": 0.4, "divergence": 0.4, "mode": "min", "metric": "loss"}, EVERY_SCORE),
    (
        {"min_steps": 5000, "max_steps": 1000, "patience": 3},
        "min_steps (5000) is not below max_steps (1000): the run ends before patience (3) may stop",
    ),
    (
        {"min_steps": 9, "max_steps": 9, "patience": 3, "target": 0.5, "plateau_std": 0},
        "before patience (3), target (0.5) or plateau_std (0.0) may stop it",
    ),
    ({"metric": "loss", "mode": "max"}, "mode max takes the highest loss for the best"),
    ({"mode": "min"}, "mode min takes the lowest DetectionBoxes_Precision/mAP for the best"),
    ({"board": [{"metric": "loss"}], "mode": "max"}, "board best: mode max takes the highest loss"),
    ({"board": [{"metric": "loss"}, {"name": "b", "mode": "max"}]}, "board b: mode max takes"),
    ({"sentinel": "p"}, "sentinel ({cwd}/p) is pipeline_config"),
    ({"sentinel": "."}, "sentinel ({cwd}) is a folder"),
    ({"sentinel": "m"}, "sentinel ({cwd}/m) is the trainer's MODEL_DIR"),
    ({"sentinel": "m/best"}, "sentinel ({cwd}/m/best) is that of best_dir too"),
    ({"best_dir": "m"}, "best_dir ({cwd}/m) is the trainer's MODEL_DIR"),
    (
        {"state_dir": "m/best"},
        "best_dir ({cwd}/m/best) is the watcher's state folder, which state_dir sets",
    ),
    ({"kept_dir": "m/best"}, "best_dir ({cwd}/m/best) is that of kept_dir too"),
    ({"eval_dir": "m/watcher"}, "eval_dir ({cwd}/m/watcher) is the watcher's state folder"),
    (
        {"sentinel": "m/watcher/watcher.db"},
        "watcher.db) lies in the watcher's state folder {cwd}/m",
    ),
    ({"sentinel": "m/watcher/STOP"}, "STOP) lies in the watcher's state folder {cwd}/m/watcher"),
    ({"sentinel": "m/watcher/../watcher/lock"}, "lies in the watcher's state folder"),
    ({"sentinel": "m/best/STOP"}, "lies in best_dir {cwd}/m/best"),
    ({"sentinel": "k/STOP", "kept_dir": "k"}, "lies in kept_dir {cwd}/k"),
    ({"sentinel": "m/eval/STOP"}, "lies in eval_dir {cwd}/m/eval"),
    ({"sentinel": "m/best-averages/STOP"}, "lies in folder of the averages {cwd}/m/best-averages"),
    (
        {"sentinel": "m/best-fast/STOP", "board": [{}, {"name": "fast", "metric": "latency_ms"}]},
        "lies in folder of board fast {cwd}/m/best-fast",
    ),
    (
        {"sentinel": "m/train"},
        "sentinel ({cwd}/m/train) has the name of a trainer's folder, train/",
    ),
    *(
        ({"sentinel": f"m/{name}"}, f"/m/{name}) has the name of a trainer's file, {name}")
        for name in (
            *("checkpoint", "ckpt-3.index", "ckpt-3.data-00000-of-00001", "ckpt-3", "params.yaml"),
            *("events.out.tfevents.1.host.2.v2", "pipeline.config", "model.ckpt-7.meta"),
        )
    ),
    ({"best_dir": "m/watcher/pins"}, "best_dir ({cwd}/m/watcher/pins) lies in the watcher's state"),
    ({"best_dir": "s/pins", "state_dir": "s"}, "best_dir ({cwd}/s/pins) lies in the watcher's"),
    ({"kept_dir": "m/watcher/a/b"}, "kept_dir ({cwd}/m/watcher/a/b) lies in the watcher's state"),
    ({"eval_dir": "m/watcher/pins"}, "eval_dir ({cwd}/m/watcher/pins) lies in the watcher's"),
    (
        {"board": [{}, {"name": "fast", "metric": "latency_ms", "folder": "watcher/pins"}]},
        "folder of board fast ({cwd}/m/watcher/pins) lies in the watcher's state folder",
    ),
    ({"eval_dir": "m/best"}, "eval_dir ({cwd}/m/best) is that of best_dir too"),
]
TAKEN: list[dict[str, Any]] = [
    {},
    {"target": 0.9, "divergence": 0.1},
    {"target": 0.1, "divergence": 2.0, "metric": "loss", "mode": "min"},
    {"target": 0.1, "divergence": 2.0, "metric": "loss"},
    {"metric": "deployed/margin", "mode": "min"},
    {"metric": "2 * loss", "mode": "max"},
    {"min_steps": 100, "max_steps": 1000, "patience": 3},
    {"min_steps": 100, "divergence": 0.1},
    {"min_evaluations": 3, "target": 0.0},
    {"min_delta": "1%", "patience_steps": 10, "smoothing": "median:3"},
    {"min_delta": "0%"},
    {"min_delta": "200%", "patience": 3},
    {"top_k": 0},
    {"top_k": 0, "max_steps": 100, "divergence": 0.1},
    {"top_k": 1, "patience": 3, "keep_last": 2, "keep_every_steps": 100},
    {"patience_steps": 999, "max_steps": 1000},
    {"plateau_std": 0.0, "plateau_window": 9},
    {"trend_below": 0.0, "trend_window": 9, "min_steps": 100},
    {"trend_below": 0.001},
    {"average": "last-5", "average_promote": "better"},
    {"average": "last-5", "recompute_batch_norm": 64},
    {"listen": 0, "health_seconds": 5},
    {"notify_command": ["true"], "notify_seconds": 5},
    {"tensorboard": False, "visualizations": 0},
    {"target": 45, "metric": "mAP / latency_ms"},
    {"target": 2.5, "metric": "latency_ms", "mode": "min"},
    {"eval_cache_mib": 4096, "worker_memory_limit": "8GB"},
    {"eval_dir": "m"},
    {"sentinel": "m/STOP"},
    {"sentinel": "elsewhere/stop-training"},
    # As docs/how-to/bucket.md has it for a bucket that is mounted.
    {"state_dir": "s", "best_dir": "s/best", "kept_dir": "s/kept", "sentinel": "s/EARLY_STOP"},
    {"sentinel": "m/best/EARLY_STOP"},
    {"state_dir": "s", "best_dir": "s/best", "model_dir": "s/m", "sentinel": "s/m/EARLY_STOP"},
]
TOLD = [
    ({"replicates": 0, "ties_by": "noise"}, "ties_by (noise) cannot be told with replicates (0)"),
    ({"replicates": 39}, "replicates (39) are few"),
    ({"recompute_batch_norm": 64}, "recompute_batch_norm (64) has no effect without average"),
    ({"min_steps": 100}, "min_steps (100) has no effect without patience, patience_steps, target,"),
    ({"min_steps": 10, "max_steps": 5}, "min_steps (10) has no effect without"),
    ({"min_evaluations": 3, "max_hours": 2}, "min_evaluations (3) has no effect without"),
    ({"smoothing": "median:3"}, "smoothing (median:3) has no effect without"),
    (
        {"min_delta": "1%", "target": 0.5},
        "min_delta (1%) has no effect without patience or patience_steps",
    ),
    ({"plateau_window": 9, "patience": 3}, "plateau_window (9) has no effect without plateau_std"),
    ({"trend_window": 9, "patience": 3}, "trend_window (9) has no effect without trend_below"),
    ({"smoothing": "median:3", "trend_below": 0.1}, "smoothing (median:3) has no effect without"),
    ({"trend_below": 5}, "trend_below (5) is more than DetectionBoxes_Precision/mAP can be"),
    ({"tensorboard": False, "visualizations": 3}, "visualizations (3) has no effect without"),
    (
        {"tensorboard": False, "tensorboard_categories": True},
        "tensorboard_categories (true) has no effect without tensorboard",
    ),
    ({"tensorboard": False, "eval_dir": "e"}, "eval_dir (e) has no effect without tensorboard"),
    ({"health_seconds": 5}, "health_seconds (5.0) has no effect without listen"),
    ({"notify_seconds": 5}, "without notify or notify_command"),
    (
        {"top_k": 0, "patience": 3},
        "top_k (0) keeps no place for the best that patience (3) stops for",
    ),
    (
        {"board": [{}, {"name": "fast", "metric": "latency_ms", "mode": "min", "top_k": 0}]},
        "board fast: top_k (0) gives it no place",
    ),
    (
        {"patience_steps": 1000, "max_steps": 1000},
        "patience_steps (1000) cannot be used up before max_steps (1000)",
    ),
    (
        {"min_delta": "100%", "patience": 3, "metric": "loss", "mode": "min"},
        "min_delta (100%) with mode min asks for a score below 0",
    ),
    ({"target": 45}, "target (45) is more than DetectionBoxes_Precision/mAP can be, which is 1"),
    ({"divergence": 5, "metric": "AP[person]"}, "divergence (5) is more than AP[person] can be"),
    (
        {"eval_cache_mib": 4096, "worker_memory_limit": "4GB"},
        "eval_cache_mib (4096) is not below worker_memory_limit (4GB)",
    ),
    (
        {"board": [{}, {"name": "worst", "metric": "mAP", "mode": "min"}]},
        "board worst: mode min takes the lowest mAP for the best, of which more is better",
    ),
]


def given(values: dict[str, Any]) -> Settings:
    """What a start with these would take."""
    return load_as(Settings, {}, {}, None, {**REQUIRED, **values})


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_meant_is_refused_by_both_names_and_values(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        given(values)
    assert message.replace("{cwd}", str(Path.cwd())) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("values", TAKEN, ids=range(len(TAKEN)))
def test_what_can_be_meant_is_taken_without_a_word(values: dict[str, Any]) -> None:
    assert doubts(given(values)) == []


@pytest.mark.parametrize(("values", "message"), TOLD, ids=range(len(TOLD)))
def test_what_may_be_meant_is_taken_and_told(values: dict[str, Any], message: str) -> None:
    (doubt,) = doubts(given(values))
    assert message in doubt.message
    assert doubt.hint


def test_batch_norm_of_model_garden_is_not_computed_anew() -> None:
    values = {"model_dir": "m", "evaluator": "model-garden", "experiment": "retinanet_mobile_coco"}
    values["average"] = "top-3"
    assert load_as(Settings, {}, {}, None, values)
    with pytest.raises(ConfigError, match=r"recompute_batch_norm \(64\): that of Model Garden"):
        load_as(Settings, {}, {}, None, {**values, "recompute_batch_norm": 64})


def test_the_main_boards_mode_is_the_one_that_target_and_divergence_go_by() -> None:
    values = {"target": 0.1, "divergence": 2.0, "board": [{"metric": "loss", "mode": "min"}]}
    assert given(values).ranking.better == "min"
    with pytest.raises(ConfigError, match="by mode max"):
        given({**values, "board": [{"metric": "mAP"}]})


def test_the_mode_is_the_metrics_nature_unless_it_is_given() -> None:
    def mode(**values: Any) -> list[str]:
        made = given(values)
        return [board.policy.mode for board in boards(made.run, made.ranking)]

    assert mode() == ["max"] and mode(metric="loss") == ["min"]
    assert mode(metric="latency_ms") == mode(metric="'Loss/x'") == ["min"]
    assert mode(metric="mAP - loss") == mode(metric="deployed/f1") == ["max"]
    assert mode(metric="mAP - loss", mode="min") == ["min"]
    others = [{"name": "a", "metric": "mAP"}, {"name": "b", "metric": "loss"}, {"name": "c"}]
    assert mode(metric="loss", board=[{}, *others]) == ["min", "max", "min", "min"]
    assert mode(board=[{"metric": "loss"}, *others]) == ["min", "max", "min", "min"]
    unnatural = {"name": "d", "metric": "mAP / loss"}
    assert mode(metric="loss", board=[{}, unnatural]) == ["min", "max"]
    assert mode(metric="a/b", mode="min", board=[{}, unnatural]) == ["min", "min"]
    # What the first table sets is the first board's alone.
    assert mode(board=[{"metric": "loss", "mode": "min"}, unnatural]) == ["min", "max"]


def test_a_mode_against_the_metrics_nature_that_is_typed_is_taken_with_a_note(
    tmp_path: Path,
) -> None:
    typed = load(Settings, {**REQUIRED, "metric": "loss", "mode": "max"}, {}, None)
    (note,) = doubts(typed.settings)
    assert note.message.startswith("mode max takes the highest loss")
    # At the next start it is still what somebody typed.
    last = LastStart(typed.settings.to_show(), typed.given)
    assert load(Settings, {"model_dir": "m"}, {}, None, last=last).settings.ranking.better == "max"
    file = tmp_path / "settings.toml"
    file.write_text('metric = "mAP"\nmode = "max"\n')
    with pytest.raises(ConfigError, match="highest loss") as caught:
        load(Settings, {**REQUIRED, "metric": "loss"}, {}, file)
    assert "give --mode max by hand" in str(caught.value.hint)
    assert load(Settings, {**REQUIRED, "metric": "loss", "mode": "min"}, {}, file)


def test_loss_promotes_the_lowest_and_everything_says_so(watcher: Watcher) -> None:
    manager = Manager(watcher.model_dir)
    for number in range(3):
        manager.save(100 * number, model_tensors(1000, number))
    # The stub's loss is 1 less its mAP.
    scores = json.dumps({"ckpt-1": 0.2, "ckpt-2": 0.9, "ckpt-3": 0.4})
    flags = ("--metric", "loss", "--top-k", 1, "--patience", 1)
    assert watcher.run(*flags, STUB_SCORES=scores) == 0
    assert watcher.leaderboard() == ["ckpt-2"]
    told = json.loads(cli("status", watcher.model_dir, "--json").stdout)
    explained = json.loads(cli("explain", watcher.model_dir, "--json").stdout)
    board = json.loads((watcher.best_dir / "best.json").read_text())
    modes = [one["mode"] for one in (told, explained, board, watcher.stop_notice())]
    assert modes == ["min"] * 4
    assert "warning" not in watcher.log.read_text()
    assert " by loss (min)" in cli("leaderboard", watcher.model_dir).stdout
    what_if = cli("explain", watcher.model_dir, "--json", "--what-if", "metric=mAP")
    assert json.loads(what_if.stdout)["mode"] == "max"


def test_what_a_database_recorded_is_read_whatever_it_contradicts() -> None:
    values = {**REQUIRED, "target": 0.3, "divergence": 0.4}
    assert make_settings(values, dict.fromkeys(values, "the run's database")).stopping.target == 0.3


def test_a_time_limit_of_a_watcher_that_the_launcher_does_not_start_is_told() -> None:
    def said(**flags: object) -> list[str]:
        settings = load_as(LaunchSettings, {**REQUIRED, **flags}, {}, None)
        return [doubt.message for doubt in launch_doubts(settings)]

    assert said(drain_timeout=5) == ["drain_timeout (5.0) has no effect without watch"]
    assert said(drain_timeout=5, watch=True) == []


def test_run_refuses_or_tells_them_at_the_start_and_doctor_has_them(watcher: Watcher) -> None:
    assert watcher.run("--target", 0.3, "--divergence", 0.4) == 1
    assert "error: target (0.3) is not better than divergence (0.4)" in watcher.log.read_text()
    assert not watcher.database.exists()
    Manager(watcher.model_dir).save(100, model_tensors(1000, "a"))
    told = "top_k (0) keeps no place for the best that patience (3) stops for"
    assert watcher.run("--top-k", 0, "--patience", 3) == 0
    assert watcher.log.read_text().count(told) == 1
    found = json.loads(cli("doctor", watcher.model_dir, "--json", "--time-limit", 1).stdout)
    settings = [one for one in found["findings"] if one["check"] == "settings"]
    assert told in next(one["message"] for one in settings if one["severity"] == "warning")


def test_no_file_that_a_run_leaves_in_its_state_folder_can_be_the_sentinel(
    watcher: Watcher,
) -> None:
    manager = Manager(watcher.model_dir)
    manager.save(100, model_tensors(1000, 1))
    state = watcher.model_dir.parent / "state"
    words = ["--state-dir", state, "--patience", 1]
    watcher.run(*words)
    for file in [*state.iterdir()]:
        with pytest.raises(ConfigError, match="lies in the watcher's state folder"):
            given({"state_dir": str(state), "sentinel": str(file)})


def test_every_command_that_makes_settings_refuses_a_trainers_file_as_the_sentinel(
    watcher: Watcher,
) -> None:
    manager = Manager(watcher.model_dir)
    manager.save(100, model_tensors(1000, 1))
    state_file = watcher.model_dir / "checkpoint"
    before, options = state_file.read_bytes(), ["--sentinel", state_file, "--max-steps", 100]
    options += ["--pipeline-config", watcher.pipeline]
    for command in (
        ["run", watcher.model_dir, *options],
        ["doctor", watcher.model_dir, *options],
        ["train", "--model-dir", watcher.model_dir, *options, "--", "true"],
    ):
        ended = cli(*command)
        assert ended.returncode == 1, ended.stderr
        assert f"sentinel ({state_file}) has the name of a trainer's file" in ended.stderr
        assert "hint: the watcher writes and removes that file" in ended.stderr
    assert state_file.read_bytes() == before


def test_init_writes_no_sentinel_of_before_that_run_would_refuse(watcher: Watcher) -> None:
    Manager(watcher.model_dir).save(100, model_tensors(1000, 1))
    watcher.run("--max-steps", 1000)
    with contextlib.closing(sqlite3.connect(watcher.database)) as db, db:
        (settings,) = db.execute("SELECT settings FROM runs").fetchone()
        told = {**json.loads(settings), "sentinel": "checkpoint"}
        given_at = json.dumps({"sentinel": "--sentinel"})
        db.execute("UPDATE runs SET settings = ?, given = ?", [json.dumps(told), given_at])
    ended = cli("init", watcher.model_dir, "-o", "-", "--time-limit", 1)
    assert ended.returncode == 1, ended.stderr
    assert "has the name of a trainer's file" in ended.stderr
