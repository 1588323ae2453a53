"""Settings of what is measured, by the kind of evaluator."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from watcher.config.rules import Positive, about


class OdApiSettings(
    msgspec.Struct,
    tag_field="kind",
    tag="od-api",
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
):
    """The evaluation."""

    pipeline_config: Annotated[
        str, about("The pipeline.config that the trainer was started with.", "FILE")
    ]
    eval_input: Annotated[
        str | int | None,
        about("Which eval_input_reader, by name or index. Default: the first.", "NAME|INDEX"),
    ] = None
    eval_batch_size: Annotated[
        Positive | None,
        about(
            "Batch size of the evaluation. Default: the pipeline's, which gives exactly the"
            " OD API's numbers.",
            "N",
        ),
    ] = None
    sample_1_of_n: Annotated[
        Positive | None,
        about("Evaluate only every N-th image. Default: as pipeline.config says.", "N"),
    ] = None
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
    coco_backend: Annotated[
        Literal["auto", "pycocotools", "faster-coco-eval", "hotcoco"],
        about("What computes COCO metrics; auto takes the fastest that is installed there."),
    ] = "auto"
    metric_plugin: Annotated[
        tuple[str, ...],
        about(
            "A metric of your own: a function in a file, or the name of an entry point in the"
            " group checkpoint_watcher.metrics of the training environment.",
            "FILE.py:FUNCTION|NAME",
        ),
    ] = ()
