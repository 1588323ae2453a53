"""Inputs: what a run is refused for before a worker is started."""

from __future__ import annotations

import os
from pathlib import Path

from watcher.config.evaluator import OdApiSettings
from watcher.config.run import RunSettings
from watcher.config.settings import CarrierSettings, EvaluatorSettings
from watcher.decision.metric import is_taken
from watcher.errors import ConfigError
from watcher.evaluation.packages import lacking, not_installed
from watcher.evaluation.snapshot import require_readable
from watcher.evaluation.workers import require_launcher
from watcher.launch.kinds import evaluated_by


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


def refuse_before_waiting(
    run: RunSettings, evaluator: EvaluatorSettings, carrier: CarrierSettings
) -> None:
    """Refuse what would end the run once the trainer has written what is waited for.

    Starts the interpreter for a moment. Of a file in MODEL_DIR nothing is said, it may come with
    that; nor of another host's interpreter.

    Raises:
        ConfigError: a file, a launcher or a package is not there.
    """
    inputs = evaluator.inputs(run.model_path)
    require_readable(
        one for one in inputs if not Path(one.path).absolute().is_relative_to(run.model_path)
    )
    for table in carrier.devices.there:
        require_launcher(table)
    if carrier.devices.here and _search_path_is_absolute():
        python = Path(carrier.interpreter())
        missing = lacking(python, evaluated_by(run.evaluator).evaluates_with)
        if missing:
            raise ConfigError(
                not_installed(missing, python),
                hint="give --python the interpreter of the environment that trains",
            )


def _search_path_is_absolute() -> bool:
    """Tell whether an interpreter finds the same packages wherever it is started."""
    folders = (os.environ.get("PYTHONPATH") or "/").split(":")
    return all(Path(one).is_absolute() for one in folders)


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
