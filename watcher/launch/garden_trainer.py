"""What Model Garden's trainers make of their command line and of params.yaml: a `TrainerKind`.

`python -m official.vision.train`, those of its projects, and a train.py of one's own that takes the
same flags. An unknown flag is refused by absl itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from watcher.config.garden_params import lookup, params_file, read_params
from watcher.config.run import RunSettings
from watcher.config.settings import EvaluatorSettings
from watcher.launch.command import flag_value, flag_values
from watcher.launch.trainer_kind import Mistyped, Schedule

_MODES = frozenset(
    ("train", "eval", "train_and_eval", "continuous_eval", "continuous_train_and_eval")
) | frozenset(("train_and_validate", "train_and_post_eval"))
# The fields of `trainer:` that count here. No other field of a configuration has such a name.
_FIELDS = ("train_steps", "checkpoint_interval", "steps_per_loop", "max_to_keep")
# As YAML, JSON and `trainer.train_steps=90` have it.
_FIELD = re.compile(rf"\b({'|'.join(_FIELDS)})\b[\"']?\s*[:=]\s*([0-9]+)\b")
_PROJECT = re.compile(r"official\.projects(\.\w+)+")
_BYTES = 1 << 20
_KEPT = 5


class GardenTrainer:
    """Model Garden's official.vision.train."""

    def __init__(self, registers: str = "") -> None:
        """Take the module that registers its experiments, where that is one of its projects'."""
        self._registers = registers

    program = "official.vision.train"
    suite = "Model Garden"
    evaluator = "model-garden"
    packages = ("tensorflow",)
    evaluates_with = ("tensorflow", "official")
    configuration = "params.yaml"
    faster = ""
    # What it saves there is made anew in place, of one name.
    side_folders = ("best_ckpt", "ema_checkpoints")

    def runs(self, program: str, arguments: Sequence[str]) -> bool:
        """Tell whether a module or script is a trainer of Model Garden, or takes its flags."""
        path = PurePath(program.removesuffix(".py"))
        words = path.parts if len(path.parts) > 1 else tuple(program.split("."))
        if path.parts[-1:] == ("train",) or words[-1:] == ("train",):
            return "official" in words or self._has_flags(arguments)
        return False

    def started_as(self, program: str) -> GardenTrainer:
        """Return it with the project that it is of: its trainer imports what registers those."""
        return GardenTrainer(program) if _PROJECT.fullmatch(program) else self

    def trains(self, arguments: Sequence[str]) -> bool:
        """Tell whether it trains: its other modes only evaluate, and write no params.yaml."""
        return "train" in (flag_value(arguments, "mode") or "train")

    def settings(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return MODEL_DIR, the experiment and what is laid over it."""
        last = flag_value(arguments, "params_override")
        given = {
            "model_dir": flag_value(arguments, "model_dir"),
            "evaluator": self.evaluator,
            "experiment": flag_value(arguments, "experiment"),
            "config_file": flag_values(arguments, "config_file"),
            "params_override": [last] if last else [],
            "garden_import": [self._registers] if self._registers else [],
        }
        return {name: value for name, value in given.items() if value}

    def mistyped(self, arguments: Sequence[str]) -> list[Mistyped]:
        """Return nothing: absl ends it for an unknown flag."""
        return []

    def missing(self, arguments: Sequence[str], wrong: Sequence[Mistyped]) -> Mistyped | None:
        """Return None, for the same reason."""
        return None

    def schedule(
        self,
        arguments: Sequence[str],
        configuration: Path | None,
        folder: Path,
        known: Mapping[str, Any],
    ) -> Schedule:
        """Return when it saves: after the first loop, each interval's last loop, and at the end."""
        typed = _numbers(_typed(arguments, folder))
        written = _numbers([_text(configuration)] if configuration else [])
        asked = {name: known[name] for name in _FIELDS if isinstance(known.get(name), int)}
        values = {**written, **asked, **typed}
        is_typed = "checkpoint_interval" in typed
        keeps = values.get("max_to_keep", _KEPT)
        return Schedule(
            every=values.get("checkpoint_interval"),
            source="the trainer's command" if is_typed else "params.yaml",
            is_set="checkpoint_interval" in values,
            steps=values.get("train_steps"),
            steps_name="trainer.train_steps",
            every_name="checkpoint_interval",
            set_every="trainer.checkpoint_interval: ",
            loop=max(1, values.get("steps_per_loop", 1)),
            loop_name="steps_per_loop",
            saves_at_end=True,
            keeps=keeps or None,
        )

    def export(self, run: RunSettings, evaluator: EvaluatorSettings) -> list[str]:
        """Return export_saved_model with what it needs, where the size of an image is known."""
        params = params_file(run.model_path)
        size = lookup(read_params([params]), "task.model.input_size")
        if not isinstance(size, list) or len(size) < 2:
            return []
        return [
            "official.vision.serving.export_saved_model",
            f"--experiment={getattr(evaluator, 'experiment', '')}",
            f"--config_file={params}",
            f"--checkpoint_path={run.best_path}",
            f"--input_image_size={size[0]},{size[1]}",
            "--export_dir=exported",
        ]

    def remarks(self, arguments: Sequence[str]) -> list[str]:
        """Say what a mode does that evaluates as well."""
        if "eval" not in (flag_value(arguments, "mode") or ""):
            return []
        return [
            "it runs train_and_eval: it stops training for evaluations of its own, of which it"
            " writes validation/ and best_ckpt/; with --mode=train all of that is the watcher's"
        ]

    def foretold(
        self, arguments: Sequence[str], configuration: Path | None, folder: Path
    ) -> list[str]:
        """Say that nothing is saved where that is so."""
        if self.schedule(arguments, configuration, folder, {}).every != 0:
            return []
        return ["checkpoint_interval is 0: the trainer saves no checkpoint, not at the end either"]

    def _has_flags(self, arguments: Sequence[str]) -> bool:
        named = all(flag_value(arguments, name) for name in ("experiment", "model_dir"))
        return named and flag_value(arguments, "mode") in _MODES


def _typed(arguments: Sequence[str], folder: Path) -> list[str]:
    """Return the texts that a command line lays over an experiment, in their order."""
    texts = [_text(folder / file) for file in flag_values(arguments, "config_file")]
    if last := flag_value(arguments, "params_override"):
        is_file = not re.search(r"[\n{:=]", last) and (folder / last).is_file()
        texts.append(_text(folder / last) if is_file else last)
    return texts


def _numbers(texts: Sequence[str]) -> dict[str, int]:
    """Return the fields that are whole numbers; what comes later counts."""
    found = (pair for text in texts for pair in _FIELD.findall(re.sub("#[^\n]*", "", text)))
    return {name: int(value) for name, value in found}


def _text(file: Path) -> str:
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return opened.read(_BYTES)
    except (OSError, ValueError):
        return ""
