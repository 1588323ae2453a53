"""Settings of what is measured, by the kind of evaluator: a tagged union.

A setting's name means the same in each kind that has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from watcher.config.garden_params import config_files
from watcher.config.rules import Positive, about

OD_API, MODEL_GARDEN = "od-api", "model-garden"


class InputFile(NamedTuple):
    """A file that an evaluation is set up from.

    Attributes:
        setting: The one that names it.
        path: As it was given.
        copy: What a run calls its copy of it.
        required: Nothing can be evaluated without it. Others are the worker's to refuse.
    """

    setting: str
    path: str
    copy: str
    required: bool = False


class EvaluatorBase(
    msgspec.Struct, tag_field="kind", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """The evaluation."""

    eval_cache_mib: Annotated[
        Positive | None,
        about(
            "Memory for the decoded eval set; a larger one is kept on disk."
            " Default: a quarter of what is available, at most 4096.",
            "MIB",
        ),
    ] = None
    threads: Annotated[
        Positive | None,
        about("Threads that the evaluation may use. Default: TensorFlow's choice.", "N"),
    ] = None
    replicates: Annotated[
        int,
        about(
            "How often each score is computed anew, on eval sets drawn from this one, for the"
            " intervals that tell which scores are as good as each other; 0 for never.",
            "N",
            ge=0,
            le=10_000,
        ),
    ] = 1000
    coco_backend: Annotated[
        Literal["auto", "numpy", "pycocotools", "faster-coco-eval", "hotcoco"],
        about("What computes COCO metrics; auto takes the fastest that is exact, mostly numpy."),
    ] = "auto"

    def inputs(self, model_dir: Path) -> list[InputFile]:
        """Return the files that an evaluation is set up from, the required ones first."""
        raise NotImplementedError


class OdApiSettings(EvaluatorBase, tag=OD_API, frozen=True, kw_only=True):
    """The evaluation, by the Object Detection API."""

    pipeline_config: Annotated[
        str, about("The pipeline.config that the trainer was started with.", "FILE")
    ]
    eval_input: Annotated[
        str | int | None,
        about("Which eval_input_reader, by name or index. Default: the first.", "NAME|INDEX"),
    ] = None
    eval_batch_size: Annotated[
        Positive | Literal["auto"] | None,
        about(
            "Batch size of the evaluation; auto is the pipeline's, with as many images at once in"
            " the network as are proven to change no bit of the OD API's numbers.",
            "N|auto",
        ),
    ] = "auto"
    sample_1_of_n: Annotated[
        Positive | None,
        about("Evaluate only every N-th image. Default: as pipeline.config says.", "N"),
    ] = None
    metric_plugin: Annotated[
        tuple[str, ...],
        about(
            "A metric of your own: a function in a file, or the name of an entry point in the"
            " group checkpoint_watcher.metrics of the training environment.",
            "FILE.py:FUNCTION|NAME",
        ),
    ] = ()

    def inputs(self, model_dir: Path) -> list[InputFile]:
        """Return pipeline.config and the files of metric plugins."""
        given = dict.fromkeys(text.rpartition(":")[0] for text in self.metric_plugin)
        files = enumerate(file for file in given if file)
        plugins = [InputFile("metric_plugin", file, f"plugin-{n}.py") for n, file in files]
        main = InputFile("pipeline_config", self.pipeline_config, "pipeline.config", required=True)
        return [main, *plugins]


class ModelGardenSettings(EvaluatorBase, tag=MODEL_GARDEN, frozen=True, kw_only=True):
    """The evaluation, by Model Garden."""

    experiment: Annotated[
        str,
        about(
            "The name that official.vision.train got as --experiment."
            " Default: that of the trainer on MODEL_DIR, while it runs.",
            "NAME",
            min_length=1,
        ),
    ]
    config_file: Annotated[
        tuple[str, ...],
        about(
            "The configuration of the experiment; a later file overrides an earlier one."
            " Default: MODEL_DIR/params.yaml, which the trainer writes.",
            "FILE",
        ),
    ] = ()
    params_override: Annotated[
        tuple[str, ...],
        about(
            "Overrides of that, as official.vision.train takes them, such as"
            " task.validation_data.global_batch_size=8.",
            "PARAMS|FILE",
        ),
    ] = ()
    garden_import: Annotated[
        tuple[str, ...],
        about(
            "A module that registers an experiment of your own, imported before it is looked up.",
            "MODULE|FILE.py",
        ),
    ] = ()
    whole_eval_set: Annotated[
        bool,
        about(
            "Evaluate the images too that Model Garden leaves out at the end of the eval set,"
            " as drop_remainder and validation_steps have it."
        ),
    ] = False

    def inputs(self, model_dir: Path) -> list[InputFile]:
        """Return the configuration, and those of its overrides and imports that are files."""
        config = config_files(model_dir, self.config_file)
        every = [
            *_numbered("config_file", map(str, config), "params", ".yaml", required=True),
            *_numbered("params_override", self.params_override, "override", ".yaml"),
            *_numbered("garden_import", self.garden_import, "import", ".py"),
        ]
        return [one for one in every if one.required or is_file(one.path)]


def _numbered(
    setting: str, paths: Iterable[str], name: str, suffix: str, *, required: bool = False
) -> list[InputFile]:
    return [
        InputFile(setting, path, f"{name}-{number}{suffix}", required)
        for number, path in enumerate(paths)
    ]


def is_file(text: str) -> bool:
    """Tell whether what may be a file or something else is one that is there."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # far too long for a name
        return False


KINDS: dict[str, type[EvaluatorBase]] = {OD_API: OdApiSettings, MODEL_GARDEN: ModelGardenSettings}
