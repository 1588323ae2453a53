"""Settings come from flags, environment and file, and errors name field, value and origin."""

from __future__ import annotations

import math
from pathlib import Path

import click
import pytest

from watcher.cli.options import settings_options
from watcher.config import LaunchSettings, Settings, load_as, load_settings
from watcher.config.policies import boards
from watcher.errors import ConfigError

REQUIRED = {"model_dir": "m", "pipeline_config": "p"}


@pytest.mark.parametrize("text", ["loss:up", "mAP:Min", "", "loss:"])
def test_a_tie_break_without_max_or_min_is_told_what_is_expected(text: str):
    with pytest.raises(
        ConfigError, match=r"^tie_break \(.*\) is invalid: .*max or.* ?min"
    ) as caught:
        load_settings({**REQUIRED, "tie_break": [text]}, {}, None)
    assert "--tie-break" in (caught.value.hint or "")


def test_a_flag_overrides_the_environment_which_overrides_the_file(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('top_k = 1\npatience = 1\nmetric = "a"\n')
    environment = {"CHECKPOINT_WATCHER_TOP_K": "2", "CHECKPOINT_WATCHER_PATIENCE": "2"}
    settings = load_settings({**REQUIRED, "top_k": "3"}, environment, file)
    assert (settings.ranking.top_k, settings.stopping.patience, settings.ranking.metric) == (
        3,
        2,
        "a",
    )


def test_everything_may_come_from_the_file(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('model_dir = "m"\npipeline_config = "p"\n')
    assert load_settings({}, {}, file) == Settings.of(model_dir="m", pipeline_config="p")


@pytest.mark.parametrize(
    ("flag", "value", "rule"),
    [
        ("top_k", "-2", "top_k (-2) is invalid: expected a whole number, -1 or more"),
        ("top_k", "many", "top_k (many) is invalid: expected a whole number"),
        ("patience", "0", "patience (0) is invalid: expected a whole number, 1 or more"),
        ("patience", "soon", "patience (soon) is invalid: expected a whole number or none"),
        ("max_hours", "0", "max_hours (0) is invalid: expected a number, more than 0"),
        ("tensorboard", "maybe", "tensorboard (maybe) is invalid: expected true or false"),
        ("model_dir", "", "model_dir () is invalid: expected a text that is not empty"),
        ("tie_break", 3, "tie_break (3) is invalid: expected a list, not a whole number"),
        ("min_delta", "nan", "min_delta (nan) is invalid: expected a number >= 0"),
        ("target", "nan", "target (nan) is invalid: expected a finite number"),
        ("divergence", "inf", "divergence (inf) is invalid: expected a finite number"),
        ("trend_below", "nan", "trend_below (nan) is invalid: expected a finite number"),
        ("stall_timeout", "nan", "stall_timeout (nan) is invalid: expected a number"),
        ("poll_seconds", "inf", "poll_seconds (inf) is invalid: expected a finite number"),
        ("poll_seconds", "1e20", "poll_seconds (1e20) is invalid: expected a number, 31536000 (a"),
        ("exit_when_idle", "1e20", "exit_when_idle (1e20) is invalid: expected a number, 31536000"),
        (
            "veto",
            [{"metric": "mAP", "drop": math.inf}],
            'veto ([{metric = "mAP", drop = inf}]) is',
        ),
        ("average", "best-3", "average (best-3) is invalid: expected top-K or last-K with K >= 2"),
        ("trend_window", "2", "trend_window (2) is invalid: expected a whole number, 3 or more"),
        ("mode", "best", "mode (best) is invalid: expected one of max, min"),
        ("device", "gpu", "device (gpu) is invalid: expected cpu, auto, gpu:N or a GPU's UUID"),
        *(
            ("eval_batch_size", value, f"{rule} expected a whole number, 1 or more, or auto")
            for value in ("many", "0", "2.5", "")
            for rule in (f"eval_batch_size ({value}) is invalid:",)
        ),
        ("rescan_seconds", "11", "rescan_seconds (11) is invalid: expected a number, 10 at most"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule_and_its_origin(flag: str, value: object, rule: str):
    with pytest.raises(ConfigError) as caught:
        load_settings({**REQUIRED, flag: value}, {}, None)
    assert caught.value.message.startswith(rule)
    assert f"--{flag.replace('_', '-')}" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["drain_timeout", "stop_grace_seconds", "restart_seconds"])
@pytest.mark.parametrize("value", ["nan", "inf", "1e20"])
def test_train_takes_no_time_that_it_cannot_wait_for(name: str, value: str):
    with pytest.raises(ConfigError, match=rf"{name} \({value}\) is invalid: expected a"):
        load_as(LaunchSettings, {**REQUIRED, name: value}, {}, None)


def test_a_batch_size_is_a_number_or_auto_which_is_the_default():
    given = [{}, {"eval_batch_size": "auto"}, {"eval_batch_size": "8"}, {"eval_batch_size": 1}]
    loaded = [load_settings({**REQUIRED, **one}, {}, None).evaluator for one in given]
    assert [getattr(one, "eval_batch_size", None) for one in loaded] == ["auto", "auto", 8, 1]


def test_a_value_that_may_hold_a_password_is_named_and_not_shown(tmp_path: Path):
    file = tmp_path / "run.toml"
    for name in ("notify", "notify_command"):
        file.write_text(f'{name} = "mailto://user:secret@example.org"\n')
        with pytest.raises(ConfigError) as caught:
            load_settings(REQUIRED, {}, file)
        assert caught.value.message == f"{name} is invalid: expected a list"
        assert "secret" not in (caught.value.hint or "")


def test_an_unknown_key_is_named_with_the_one_that_was_meant(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text("topk = 1\n")
    with pytest.raises(ConfigError, match=r"topk in .*run\.toml is not a setting") as caught:
        load_settings(REQUIRED, {}, file)
    assert caught.value.hint == "did you mean top_k?"
    file.write_text("quux = 1\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(REQUIRED, {}, file)
    assert "run --help` lists" in (caught.value.hint or "") and len(caught.value.hint or "") < 80


def test_a_file_that_is_not_toml_is_an_error(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text("top_k : 1")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_settings(REQUIRED, {}, file)


def test_a_missing_model_dir_or_pipeline_config_is_an_error():
    with pytest.raises(ConfigError, match="model_dir is not set"):
        load_settings({}, {}, None)
    with pytest.raises(ConfigError, match="pipeline_config is not set"):
        load_settings({"model_dir": "m"}, {}, None)


def test_an_eval_input_of_digits_is_an_index():
    assert load_settings({**REQUIRED, "eval_input": "1"}, {}, None).evaluator.eval_input == 1
    assert load_settings({**REQUIRED, "eval_input": "val"}, {}, None).evaluator.eval_input == "val"


def test_the_folders_default_to_model_dir_and_can_be_moved():
    settings = load_settings({**REQUIRED, "model_dir": "/runs/a"}, {}, None)
    assert settings.run.state_path == Path("/runs/a/watcher")
    assert settings.run.best_path == Path("/runs/a/best")
    assert settings.run.sentinel_path == Path("/runs/a/EARLY_STOP")
    moved = load_settings({**REQUIRED, "state_dir": "/s", "best_dir": "/b"}, {}, None)
    assert (moved.run.state_path, moved.run.best_path) == (Path("/s"), Path("/b"))


def test_a_list_comes_from_a_repeated_flag_an_array_or_one_value(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('metric_plugin = ["a.py:f", "b"]\n')
    variable = "CHECKPOINT_WATCHER_METRIC_PLUGIN"

    def plugins(flags: dict[str, object], environment: dict[str, str]) -> tuple[str, ...]:
        return load_settings({**REQUIRED, **flags}, environment, file).evaluator.metric_plugin

    assert plugins({}, {}) == ("a.py:f", "b")
    assert plugins({}, {variable: "c.py:g"}) == ("c.py:g",)
    assert plugins({}, {variable: '["c.py:g", "d"]'}) == ("c.py:g", "d")
    assert plugins({}, {variable: ""}) == ()
    assert plugins({"metric_plugin": ("e", "f")}, {variable: "c.py:g"}) == ("e", "f")


def test_a_list_that_is_no_array_is_an_error(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('metric_plugin = "a.py:f"\n')
    with pytest.raises(ConfigError, match=r"metric_plugin \(a.py:f\) is invalid: expected a list"):
        load_settings(REQUIRED, {}, file)
    with pytest.raises(ConfigError, match=r"metric_plugin \(\[a\) is invalid: expected a list"):
        load_settings(REQUIRED, {"CHECKPOINT_WATCHER_METRIC_PLUGIN": "[a"}, None)


def test_a_list_flag_may_be_given_several_times_and_is_none_when_it_is_not():
    seen: list[object] = []

    @click.command()
    @settings_options
    def command(**flags: object) -> None:
        seen.append(flags["metric_plugin"])

    for arguments in ([], ["--metric-plugin", "a", "--metric-plugin", "b"]):
        command.main(arguments, standalone_mode=False)
    assert seen == [None, ("a", "b")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[board]]\ntop_k = -3", "board[0].top_k is invalid: expected a whole number, -1 or more"),
        ('[[board]]\nmode = "up"', "board[0].mode is invalid: expected one of max, min"),
        ('[[board]]\nnam = "x"', "it has a key nam (did you mean name?), and may have name"),
        ('[[board]]\nveto = [{metric = "mAP", dorp = 1}]', "a key dorp (did you mean drop?)"),
        ("[[board]]\n[[board]]", "board[1].name (best) is taken, or was not given"),
        ('[[board]]\nveto = ["mAP"]', "veto of board best is invalid: expected METRIC:DROP"),
        ('[[board]]\n[[board]]\nname = "x"\nfolder = "best"', "best) is that of best_dir too"),
        (
            '[[board]]\n[[board]]\nname = "x"\nfolder = "."',
            "board x ({model_dir}) is the trainer's",
        ),
        ('[[board]]\n[[board]]\nname = "x"\nfolder = "best-averages"', "is that of the averages"),
        (
            'best_dir = "{model_dir}/best-averages"',
            "averages) is that of the averages too",
        ),
        (
            '[[board]]\nfolder = "."',
            "folder of board best ({model_dir}) is",
        ),
        ('best_dir = "{model_dir}"', "best_dir ({model_dir}) is the trainer's MODEL_DIR"),
        ('kept_dir = "{model_dir}/watcher"', "is the watcher's state folder"),
        ('metric = "mAP -"', "is not an expression"),
        ('smoothing = "ema:2"', "smoothing (ema:2) is invalid: expected none, ema:W"),
    ],
)
def test_what_ranking_cannot_use_is_named_before_anything_is_written(tmp_path, text, words):
    file = tmp_path / "watcher.toml"
    file.write_text(text.replace("{model_dir}", str(tmp_path)))
    with pytest.raises(ConfigError) as caught:
        load_settings({**REQUIRED, "model_dir": str(tmp_path)}, {}, file)
    assert words.replace("{model_dir}", str(tmp_path)) in caught.value.message


def test_values_stand_in_an_error_as_a_settings_file_has_them(tmp_path: Path):
    file = tmp_path / "watcher.toml"
    for text in ("top_k (true)", 'metric (["mAP"])', "patience ({a = [1, false]})"):
        file.write_text(text.replace(" (", " = ")[:-1])
        with pytest.raises(ConfigError) as caught:
            load_settings(REQUIRED, {}, file)
        assert caught.value.message.startswith(f"{text} is invalid: ")


def test_a_text_of_a_file_where_a_list_belongs_is_answered_with_the_list(tmp_path: Path):
    def hint(text: str, variables: dict[str, str] | None = None) -> str:
        file.write_text(text)
        with pytest.raises(ConfigError, match="is invalid: expected a list") as caught:
            load_settings(REQUIRED, variables or {}, file)
        return str(caught.value.hint)

    file = tmp_path / "watcher.toml"
    assert hint('veto = "mAP"') == f'it was set by {file}; write veto = ["mAP"]'
    assert hint('[[board]]\nveto = "mAP"').endswith('; write veto = ["..."]')
    assert hint('notify = "secret"').endswith('; write notify = ["..."]')
    assert "--help" in hint("", {"CHECKPOINT_WATCHER_VETO": "[mAP]"})


def test_a_flag_has_its_say_over_the_first_board_and_the_others_follow_the_first(tmp_path):
    file = tmp_path / "watcher.toml"
    file.write_text('[[board]]\nmetric = "loss"\nmode = "min"\ntop_k = 5\n[[board]]\nname = "b"\n')
    settings = load_settings({**REQUIRED, "metric": "mAP", "mode": "max"}, {}, file)
    first, second = boards(settings.run, settings.ranking)
    assert (first.metric.text, first.policy.mode, first.policy.top_k) == ("mAP", "max", 5)
    assert (second.metric.text, second.policy.mode, second.policy.top_k) == ("mAP", "max", 5)
    assert (settings.ranking.metric, settings.ranking.top_k) == ("mAP", 5)
    assert second.folder == settings.run.model_path / "best-b"
