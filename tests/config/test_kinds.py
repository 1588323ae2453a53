"""Which evaluator settings are for: its name tells, or what only it has, or what MODEL_DIR has."""

from __future__ import annotations

from pathlib import Path

import pytest

from watcher.config import LastStart, Settings, load, load_settings, make_settings
from watcher.config.evaluator import ModelGardenSettings, OdApiSettings
from watcher.errors import ConfigError

DETECTION = """
task:
  model: {num_classes: 3, detection_generator: {max_num_detections: 100}}
trainer: {best_checkpoint_eval_metric: '', best_checkpoint_metric_comp: higher}
"""


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A folder in which Model Garden's trainer has begun."""
    (tmp_path / "params.yaml").write_text(DETECTION)
    return tmp_path


def refused(flags: dict[str, object]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags, {}, None)
    return caught.value


def test_a_folder_with_params_yaml_is_of_model_garden_and_asks_for_the_experiment(model_dir: Path):
    loaded = load_settings({"model_dir": str(model_dir), "experiment": "mine"}, {}, None)
    assert isinstance(loaded.evaluator, ModelGardenSettings)
    assert loaded.run.evaluator == "model-garden" and loaded.run.eval_path == model_dir
    error = refused({"model_dir": str(model_dir)})
    assert error.message == "experiment is not set" and "--experiment NAME" in error.hint


def test_what_only_one_kind_has_tells_which_is_meant(model_dir: Path):
    given = {"model_dir": str(model_dir), "pipeline_config": "p"}
    assert isinstance(load_settings(given, {}, None).evaluator, OdApiSettings)
    given = {"model_dir": "elsewhere", "experiment": "mine", "whole_eval_set": "true"}
    assert load_settings(given, {}, None).value("whole_eval_set") is True


def test_a_setting_of_the_other_kind_is_refused_by_name_value_and_origin():
    both = {"model_dir": "m", "evaluator": "model-garden", "experiment": "x", "sample_1_of_n": "2"}
    error = refused(both)
    assert error.message == "sample_1_of_n (2) is not a setting of evaluator model-garden"
    assert "it was set by --sample-1-of-n" in error.hint
    error = refused({"model_dir": "m", "evaluator": "garden"})
    assert error.message == "evaluator (garden) is invalid: expected one of od-api, model-garden"


def test_another_kind_than_at_the_last_start_takes_nothing_of_that_one(model_dir: Path):
    before = {"pipeline_config": "p", "top_k": 5}
    last = LastStart(before, {"pipeline_config": "--pipeline-config", "top_k": "--top-k"})
    loaded = load(Settings, {"model_dir": str(model_dir), "experiment": "x"}, {}, None, last=last)
    assert loaded.inherited == {"top_k": 5}
    assert isinstance(loaded.settings.evaluator, ModelGardenSettings)
    still = load(Settings, {"model_dir": str(model_dir)}, {}, None, last=last)
    assert isinstance(still.settings.evaluator, OdApiSettings), "the run's own kind goes on"


@pytest.mark.parametrize(
    ("said", "metric", "mode"),
    [
        ("", "AP", None),
        ("trainer: {best_checkpoint_eval_metric: AP50}", "AP50", "max"),
        (
            "trainer: {best_checkpoint_eval_metric: val, best_checkpoint_metric_comp: lower}",
            "val",
            "min",
        ),
        ("task: {model: {detection_generator: null, decoder: {}, head: {}}}", "AP", None),
    ],
)
def test_a_run_of_model_garden_ranks_by_what_its_trainer_would(
    model_dir: Path, said: str, metric: str, mode: str | None
):
    more = model_dir / "more.yaml"
    more.write_text(said)
    files = [str(model_dir / "params.yaml"), str(more)]
    given = {"model_dir": str(model_dir), "experiment": "x", "config_file": files}
    ranking = load_settings(given, {}, None).ranking
    assert (ranking.metric, ranking.mode) == (metric, mode)
    mine = load_settings({**given, "metric": "AP75", "mode": "max"}, {}, None).ranking
    assert (mine.metric, mine.mode) == ("AP75", "max")


@pytest.mark.parametrize(
    ("model", "metric"),
    [
        ("{num_classes: 2, decoder: {type: fpn}, head: {level: 3}}", "mean_iou"),
        ("{num_classes: 5, backbone: {type: resnet}}", "accuracy"),
        ("[", "DetectionBoxes_Precision/mAP"),
    ],
)
def test_the_task_tells_what_counts_where_no_metric_is_named(
    tmp_path: Path, model: str, metric: str
):
    (tmp_path / "params.yaml").write_text(f"task:\n  model: {model}\n")
    given = {"model_dir": str(tmp_path), "experiment": "x"}
    assert load_settings(given, {}, None).ranking.metric == metric


def test_the_files_of_a_run_are_named_as_they_lie_whereever_it_is_read(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(model_dir)
    Path("mine.py").write_text("")
    settings = load_settings(
        {
            "model_dir": ".",
            "experiment": "x",
            "config_file": ["params.yaml"],
            "garden_import": ["mine.py", "installed.module"],
            "params_override": ["task.validation_data.global_batch_size=8"],
        },
        {},
        None,
    )
    shown = settings.to_show()
    assert shown["config_file"] == [str(model_dir / "params.yaml")]
    assert shown["garden_import"] == [str(model_dir / "mine.py"), "installed.module"]
    assert shown["params_override"] == ["task.validation_data.global_batch_size=8"]
    copies = [(one.setting, one.copy) for one in settings.evaluator.inputs(model_dir)]
    assert copies == [("config_file", "params-0.yaml"), ("garden_import", "import-0.py")]


def test_recorded_settings_without_a_required_one_are_refused_as_a_whole():
    with pytest.raises(ConfigError, match="missing required field `pipeline_config`"):
        make_settings({"model_dir": "m", "patience": 3}, {})
