"""Preflight: what the worker would refuse, as far as evaluations of the run tell it at once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from watcher.config import Settings
from watcher.config.policies import boards, require_metrics
from watcher.evaluation.snapshot import unchanged_since
from watcher.store.rows import Rows

# What else may change which metrics there are, beside what the configuration holds.
_MEASURING = ("evaluator", "pipeline_config", "python", "working_directory", "eval_input")
_OF_MODEL_GARDEN = ("experiment", "config_file", "params_override", "garden_import")


def refuse_unmeasured(settings: Settings, rows: Rows, before: Mapping[str, Any]) -> None:
    """Refuse a metric that no evaluation of this run reports, without starting a worker.

    Says nothing where the evaluation may have others than were recorded: with metric plugins, and
    after a change of what measures. Categories are left to the worker too, which reads the label
    map anew.

    Args:
        settings: The start's.
        rows: What the run recorded.
        before: The settings of the last start that came up.

    Raises:
        ConfigError: a board reads a metric that is not reported.
    """
    names, evaluated_at = rows.measured_lately()
    present = settings.to_show()
    if not names or settings.value("metric_plugin"):
        return
    if any(before.get(n) != present.get(n) for n in (*_MEASURING, *_OF_MODEL_GARDEN)):
        return
    run = settings.run
    since = unchanged_since(settings.evaluator, run.model_path, run.state_path)
    if since and since < datetime.fromisoformat(evaluated_at):
        require_metrics(boards(settings.run, settings.ranking), names, None)
