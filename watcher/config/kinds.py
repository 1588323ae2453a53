"""Kinds: which evaluator settings are for, and what its own files add to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from watcher.config.evaluator import KINDS, MODEL_GARDEN, OD_API, is_file
from watcher.config.garden_params import params_file, primary_metric
from watcher.config.settings import own_names
from watcher.errors import ConfigError


def complete(merged: dict[str, Any], origin: Mapping[str, str]) -> list[str]:
    """Settle which kind of evaluator it is, and what its own files say; returns what was added.

    Raises:
        ConfigError: a setting is of another kind of evaluator.
    """
    asked = kind_given(merged)
    if asked is None:
        asked = MODEL_GARDEN if is_model_garden(merged.get("model_dir")) else OD_API
    added = {} if "evaluator" in merged else {"evaluator": asked}
    merged |= added
    if merged["evaluator"] not in KINDS:
        raise ConfigError(
            f"evaluator ({merged['evaluator']}) is invalid: expected one of {', '.join(KINDS)}",
            hint=f"it was set by {origin['evaluator']}",
        )
    for name in sorted(of_others(merged) & merged.keys()):
        if merged[name] not in (None, ()):
            raise ConfigError(
                f"{name} ({merged[name]}) is not a setting of evaluator {merged['evaluator']}",
                hint=f"it was set by {origin[name]}: leave it out, or set evaluator to the other",
            )
        del merged[name]
    if merged["evaluator"] == MODEL_GARDEN and not _ranks(merged.get("board")):
        said = primary_metric(Path(merged.get("model_dir", "")), merged.get("config_file") or ())
        added |= {name: value for name, value in said.items() if name not in merged}
        if "metric" not in added:
            added.pop("mode", None)
    merged |= added
    return list(added)


def is_model_garden(model_dir: object) -> bool:
    """Tell whether a folder has what only Model Garden's trainer writes."""
    return bool(model_dir) and is_file(str(params_file(Path(str(model_dir)))))


def kind_given(values: Mapping[str, Any]) -> str | None:
    """Return the kind of evaluator that settings ask for, by name or by what only it has."""
    if "evaluator" in values:
        return str(values["evaluator"])
    return next((kind for kind in KINDS if values.keys() & own_names(kind)), None)


def of_others(values: Mapping[str, Any]) -> set[str]:
    """Return the names of all settings that only another kind of evaluator has."""
    return {n for kind in KINDS if kind != values.get("evaluator") for n in own_names(kind)}


def _ranks(listed: Any) -> bool:
    """Tell whether the first [[board]] of a file names a metric of its own."""
    first = listed[0] if isinstance(listed, list) and listed else None
    return isinstance(first, dict) and bool(first.get("metric"))
