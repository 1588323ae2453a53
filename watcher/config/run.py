"""Settings of the run's name and files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from watcher.config.bucket import Place, is_url, parse_place
from watcher.config.rules import about

# The settings that name a file or a folder, beside model_dir.
PATHS = (
    *("pipeline_config", "state_dir", "best_dir", "kept_dir", "eval_dir", "sentinel"),
    "working_directory",
)
SENTINEL_NAME = "EARLY_STOP"


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where things lie and what the run is called."""

    model_dir: Annotated[
        str,
        about(
            "The folder the trainer writes checkpoints into; gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
            " beside --state-dir.",
            "FOLDER",
            min_length=1,
        ),
    ]
    evaluator: Annotated[
        Literal["od-api", "model-garden"] | None,
        about(
            "What evaluates: the Object Detection API or Model Garden. Default: what the other"
            " settings are of; without any, model-garden where MODEL_DIR has a params.yaml.",
            "od-api|model-garden",
        ),
    ] = None
    run_name: Annotated[
        str | None, about("Name of the run. Default: the name of MODEL_DIR.", "NAME")
    ] = None
    state_dir: Annotated[
        str | None,
        about(
            "Database, pins, lock and logs. Default: MODEL_DIR/watcher. It has to be given where"
            " MODEL_DIR is in a bucket, and best/, kept/, eval/ and EARLY_STOP lie in it then.",
            "FOLDER",
        ),
    ] = None
    best_dir: Annotated[
        str | None, about("The best checkpoints. Default: MODEL_DIR/best.", "FOLDER")
    ] = None
    kept_dir: Annotated[
        str | None,
        about(
            "Checkpoints kept for another reason than their score. Default: MODEL_DIR/kept.",
            "FOLDER",
        ),
    ] = None
    eval_dir: Annotated[
        str | None,
        about(
            "Where TensorBoard finds the evaluations, in a folder for each eval input."
            " Default: MODEL_DIR/eval; of Model Garden MODEL_DIR, where it has validation/.",
            "FOLDER",
        ),
    ] = None
    sentinel: Annotated[
        str | None,
        about(
            "The early-stop file. Default: MODEL_DIR/EARLY_STOP. For `train` it may be the object"
            " that another machine's --publish writes: gs://BUCKET/FOLDER/EARLY_STOP.",
            "FILE",
        ),
    ] = None
    group: Annotated[
        str | None,
        about(
            "Group, by name or number, whose members may read the database and best/."
            " Default: the database is its owner's alone.",
            "GROUP",
        ),
    ] = None

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.run_name or (self.place.name if self.place else self.model_path.name)

    @property
    def place(self) -> Place | None:
        """MODEL_DIR where it is in a bucket, None where it is a folder."""
        return parse_place(self.model_dir) if is_url(self.model_dir) else None

    @property
    def model_path(self) -> Path:
        """MODEL_DIR, absolute; of one in a bucket the local folder that stands for it."""
        local = self.state_dir if self.state_dir and is_url(self.model_dir) else self.model_dir
        return Path(local).absolute()

    @property
    def origin(self) -> Place | Path:
        """Where the checkpoints come from."""
        return self.place or self.model_path

    @property
    def state_path(self) -> Path:
        """Folder of the database, the pins, the lock and the logs."""
        return state_path(self.model_path, self.state_dir)

    @property
    def best_path(self) -> Path:
        """Folder of the best checkpoints."""
        return Path(self.best_dir).absolute() if self.best_dir else self.model_path / "best"

    @property
    def kept_path(self) -> Path:
        """Folder of the checkpoints that are kept for another reason than their score."""
        return Path(self.kept_dir).absolute() if self.kept_dir else self.model_path / "kept"

    @property
    def eval_path(self) -> Path:
        """Folder of the event files for TensorBoard."""
        if self.eval_dir:
            return Path(self.eval_dir).absolute()
        return self.model_path if self.evaluator == "model-garden" else self.model_path / "eval"

    @property
    def sentinel_path(self) -> Path:
        """The early-stop file."""
        return Path(self.sentinel).absolute() if self.sentinel else self.model_path / SENTINEL_NAME


def state_path(model_dir: Path, state_dir: str | None) -> Path:
    """Return the state folder of a run; `state_dir` is the setting of that name."""
    return Path(state_dir).absolute() if state_dir else model_dir / "watcher"
