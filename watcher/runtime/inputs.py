"""Inputs: what a run is refused for before a worker is started."""

from __future__ import annotations

import os
from pathlib import Path

from watcher.config.evaluator import OdApiSettings
from watcher.config.settings import CarrierSettings, EvaluatorSettings
from watcher.decision.metric import is_taken
from watcher.errors import ConfigError


def check_inputs(evaluator: EvaluatorSettings, carrier: CarrierSettings) -> str:
    """Refuse what can be refused without the worker; returns the interpreter's full path."""
    if isinstance(evaluator, OdApiSettings):
        _check_od_api(evaluator)
    interpreter, folder = carrier.interpreter(), carrier.working_path
    if not folder.is_dir() or not os.access(folder, os.X_OK):
        raise ConfigError(
            f"working_directory ({carrier.working_directory}) is not a folder, or not for us",
            hint="give the folder that the trainer is started in",
        )
    return interpreter


def _check_od_api(evaluator: OdApiSettings) -> None:
    if not Path(evaluator.pipeline_config).is_file():
        given = evaluator.pipeline_config
        wrong = f"({given}) does not exist or is not a file" if given else "is not set"
        raise ConfigError(
            f"pipeline_config {wrong}",
            hint="give the file that model_main_tf2 got as --pipeline_config_path",
        )
    for plugin in evaluator.metric_plugin:
        if is_taken(name := plugin.rpartition(":")[2]):
            raise ConfigError(
                f"metric_plugin ({plugin}) names its metric {name}, which --metric understands"
                " otherwise",
                hint="a metric is named after its function or entry point: rename that",
            )
