"""What model_main_tf2 makes of its command line and of pipeline.config: a `TrainerKind`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from watcher.config.run import RunSettings
from watcher.config.settings import EvaluatorSettings
from watcher.launch.command import flag_value
from watcher.launch.trainer_kind import Mistyped, Schedule, number

# Without these it cannot train.
REQUIRED = ("model_dir", "pipeline_config_path")

_SWITCHES = ("eval_on_train_data", "record_summaries", "use_tpu")
_FLAGS = (
    *REQUIRED,
    *("num_train_steps", "checkpoint_every_n", "checkpoint_dir", "num_workers"),
    *("sample_1_of_n_eval_examples", "sample_1_of_n_eval_on_train_examples"),
    *("eval_timeout", "tpu_name"),
    *_SWITCHES,
    *(f"no{name}" for name in _SWITCHES),
)
# Those of absl, which look like nothing of the above; here for the words that may follow them.
_OTHERS = frozenset({"log_dir", "logger_levels", "flagfile", "undefok", "stderrthreshold"})
# Less like a flag than this is another program's, or a word of another meaning.
_ALIKE = 0.75
_FLAG = re.compile(r"([-\u2010-\u2015]*)([A-Za-z][\w-]*)(=.*)?", re.DOTALL)
_NUMBER, _QUOTED = "([0-9]+)", "[\"']([^\"'\\n]+)[\"']"
_PIPELINE_BYTES = 1 << 20
_DEFAULT_EVERY_N = 1000
LOOP_STEPS = 100


class OdTrainer:
    """The OD API's model_main_tf2."""

    program = "model_main_tf2"
    suite = "the OD API"
    evaluator = "od-api"
    packages = ("tensorflow",)
    evaluates_with = ("tensorflow", "object_detection")
    configuration = "pipeline.config"
    faster = "--eval-batch-size, --sample-1-of-n, "
    side_folders: tuple[str, ...] = ()

    def runs(self, program: str, arguments: Sequence[str]) -> bool:
        """Tell whether a module or script is model_main_tf2."""
        name = PurePath(program.removesuffix(".py")).name
        return name.rpartition(".")[2] == self.program

    def started_as(self, program: str) -> OdTrainer:
        """Return it: there is one."""
        return self

    def trains(self, arguments: Sequence[str]) -> bool:
        """Tell whether it trains: with a --checkpoint_dir it only evaluates."""
        return not flag_value(arguments, "checkpoint_dir")

    def settings(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return MODEL_DIR and pipeline.config."""
        given = {
            "model_dir": flag_value(arguments, "model_dir"),
            "pipeline_config": flag_value(arguments, "pipeline_config_path"),
        }
        return {name: value for name, value in given.items() if value}

    def mistyped(self, arguments: Sequence[str]) -> list[Mistyped]:
        """Return the words that are nearly flags, see the function."""
        return mistyped(arguments)

    def missing(self, arguments: Sequence[str], wrong: Sequence[Mistyped]) -> Mistyped | None:
        """Return the mistyped flag for want of which it cannot train."""
        return missing(arguments, wrong)

    def schedule(
        self,
        arguments: Sequence[str],
        configuration: Path | None,
        folder: Path,
        known: Mapping[str, Any],
    ) -> Schedule:
        """Return when it saves: each 100 steps it looks whether it is time, and not at the end."""
        typed = number(flag_value(arguments, "num_train_steps"))
        every = number(flag_value(arguments, "checkpoint_every_n"))
        pipeline = _configured(arguments, configuration, folder)
        return Schedule(
            every=every or _DEFAULT_EVERY_N,
            source="the trainer's command" if every else "the OD API's default",
            is_set=bool(every),
            steps=typed or known.get("num_steps") or num_steps(pipeline),
            steps_name="--num_train_steps" if typed else "num_steps",
            every_name="checkpoint_every_n",
            set_every="--checkpoint_every_n ",
            loop=LOOP_STEPS,
            keeps=7,
        )

    def export(self, run: RunSettings, evaluator: EvaluatorSettings) -> list[str]:
        """Return exporter_main_v2 with what it needs."""
        pipeline = getattr(evaluator, "pipeline_config", "")
        if not pipeline:
            return []
        return [
            *("object_detection.exporter_main_v2", "--input_type", "image_tensor"),
            *("--pipeline_config_path", pipeline),
            *("--trained_checkpoint_dir", str(run.best_path)),
            *("--output_directory", "exported"),
        ]

    def remarks(self, arguments: Sequence[str]) -> list[str]:
        """Return nothing."""
        return []

    def foretold(
        self, arguments: Sequence[str], configuration: Path | None, folder: Path
    ) -> list[str]:
        """Say of which classes nothing is learned."""
        said = never_detected(_configured(arguments, configuration, folder))
        return [said] if said else []


def mistyped(arguments: Sequence[str]) -> list[Mistyped]:
    """Return the words that are nearly flags. TensorFlow tells nobody of a flag that is unknown.

    Args:
        arguments: Of model_main_tf2. What is right is never among what is returned.
    """
    found, is_value = [], False
    for word, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        if word == "--":
            break
        parts = _FLAG.fullmatch(word)
        if is_value or parts is None:
            is_value = False
            continue
        dashes, name, value = parts[1], parts[2], parts[3] or ""
        if dashes in ("-", "--") and name in (*_FLAGS, *_OTHERS):
            is_value = not value and name.removeprefix("no") not in _SWITCHES
            continue
        meant = _meant(dashes, name, value)
        if meant:
            is_value = not value and not following.startswith("-") and meant not in _SWITCHES
            value = f" {following}" if is_value else value
            found.append(Mistyped(f"{dashes}{name}", meant, f"--{meant}{value}"))
    return found


def missing(arguments: Sequence[str], wrong: Sequence[Mistyped]) -> Mistyped | None:
    """Return the mistyped flag for want of which model_main_tf2 cannot train, None for none."""
    if flag_value(arguments, "flagfile"):
        return None
    lacking = [name for name in REQUIRED if flag_value(arguments, name) is None]
    return next((one for one in wrong if one.name in lacking), None)


def num_steps(pipeline: str) -> int | None:
    """Return train_config.num_steps of a pipeline.config, None when that cannot be told."""
    return _only(_values(pipeline, "num_steps", _NUMBER))


def never_detected(pipeline: str) -> str | None:
    """Say which classes of its label maps a pipeline.config gives the model no place for.

    The OD API trains without a word about them, and the model never detects them. None where there
    are none, and where that cannot be told from the text alone.
    """
    classes = _only(_values(pipeline, "num_classes", _NUMBER))
    for path in dict.fromkeys(_values(pipeline, "label_map_path", _QUOTED)):
        # Keypoints have ids of their own.
        labels = re.sub(r"\bkeypoints\s*:?\s*{[^}]*}", "", read_pipeline(Path(path)))
        ids = [int(one) for one in _values(labels, "id", _NUMBER)]
        if classes is not None and max(ids, default=0) > classes:
            return (
                f"label map ({path}) has id {max(ids)}, and the model's num_classes is {classes}:"
                f" it never detects what is above: set num_classes to {max(ids)}"
            )
    return None


def read_pipeline(file: Path) -> str:
    """Return the text of a pipeline.config or a label map, empty when it cannot be read."""
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return opened.read(_PIPELINE_BYTES)
    except (OSError, ValueError):
        return ""


def _configured(arguments: Sequence[str], configuration: Path | None, folder: Path) -> str:
    given = flag_value(arguments, "pipeline_config_path")
    file = folder / given if given else configuration
    return read_pipeline(file) if file else ""


def _values(text: str, field: str, value: str) -> list[str]:
    """Return what a field of protobuf text is set to, outside of comments."""
    return re.findall(rf"\b{field}\s*:\s*{value}", re.sub("#[^\n]*", "", text))


def _only(found: list[str]) -> int | None:
    return int(found[0]) if len(found) == 1 else None


def _meant(dashes: str, name: str, value: str) -> str | None:
    plain = name.lower().replace("-", "_")
    if not dashes:  # `model_dir=/x`; another word is one
        return plain if value and plain in _FLAGS else None
    if plain in _FLAGS:
        return plain
    return next(iter(difflib.get_close_matches(plain, _FLAGS, n=1, cutoff=_ALIKE)), None)
