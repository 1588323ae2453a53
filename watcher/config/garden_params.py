"""What the configuration of a Model Garden job says of the run: params.yaml, and files like it.

The trainer writes MODEL_DIR/params.yaml when it starts: the whole configuration, resolved, without
the experiment's name. Nothing here checks it; the worker does, with Model Garden's own classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_MOST_BYTES = 1 << 20


def params_file(model_dir: Path) -> Path:
    """Return where the trainer writes its configuration."""
    return model_dir / "params.yaml"


def config_files(model_dir: Path, given: Iterable[str]) -> list[Path]:
    """Return the files of a configuration, in the order in which they override each other."""
    return [Path(one) for one in given] or [params_file(model_dir)]


def read_params(files: Iterable[Path]) -> dict[str, Any]:
    """Return what the files say together; nothing of one that cannot be read as a configuration."""
    import yaml  # only where a run is of Model Garden

    merged: dict[str, Any] = {}
    for file in files:
        try:
            with file.open("rb") as opened:
                said = yaml.safe_load(opened.read(_MOST_BYTES))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(said, dict):
            _merge(merged, said)
    return merged


def lookup(params: Mapping[str, Any], path: str) -> Any:
    """Return the value at `trainer.train_steps`, None where there is none."""
    value: Any = params
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def primary_metric(model_dir: Path, given: Iterable[str]) -> dict[str, str]:
    """Return what a run ranks by, as `metric` and `mode`, where its configuration tells it.

    That is trainer.best_checkpoint_eval_metric with best_checkpoint_metric_comp; where it is not
    set, what Model Garden's tasks are compared by.
    """
    params = read_params(config_files(model_dir, given))
    named = lookup(params, "trainer.best_checkpoint_eval_metric")
    if isinstance(named, str) and named:
        lower = lookup(params, "trainer.best_checkpoint_metric_comp") == "lower"
        return {"metric": named, "mode": "min" if lower else "max"}
    model = lookup(params, "task.model")
    if not isinstance(model, Mapping):
        return {}
    if "detection_generator" in model:
        return {"metric": "AP"}
    if "decoder" in model and "head" in model:
        return {"metric": "mean_iou"}
    return {"metric": "accuracy"} if "num_classes" in model else {}


def _merge(into: dict[str, Any], said: Mapping[str, Any]) -> None:
    for name, value in said.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value
