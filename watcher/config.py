"""Settings: one table from which the flags, the environment variables and the TOML keys come.

A flag overrides the environment (`CHECKPOINT_WATCHER_TOP_K`), which overrides the file. Every
value passes the same validation, and an error names the field, the value, where it came from and
the rule.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from watcher.errors import ConfigError
from watcher.thin import QueuePolicy, parse_policy, parse_size

ENVIRONMENT_PREFIX = "CHECKPOINT_WATCHER_"
DEFAULT_METRIC = "DetectionBoxes_Precision/mAP"

_Positive = Annotated[int, Meta(ge=1)]
_NotNegative = Annotated[float, Meta(ge=0)]
_Niceness = Annotated[int, Meta(ge=0, le=19)]
_DEVICE = re.compile(r"cpu|auto|gpu:[0-9]+|(GPU|MIG)-[0-9A-Za-z/-]+")


def _about(description: str, metavar: str | None = None, **rules: Any) -> Meta:
    return Meta(description=description, extra={"metavar": metavar}, **rules)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. Field names are the TOML keys and, with dashes, the flags."""

    model_dir: Annotated[str, _about("The folder the trainer writes checkpoints into.")]
    pipeline_config: Annotated[
        str, _about("The pipeline.config that the trainer was started with.", "FILE")
    ]
    python: Annotated[
        str | None,
        _about(
            "Interpreter of the training environment, which evaluates. Default: this one.",
            "INTERPRETER",
        ),
    ] = None
    device: Annotated[
        str,
        _about(
            "Device to evaluate on: cpu, gpu:N as nvidia-smi counts, or a GPU's UUID."
            " auto takes a GPU that no process uses at the start, else the CPU.",
            "DEVICE",
        ),
    ] = "cpu"
    metric: Annotated[
        str, _about("Primary metric: what ranks and stops, by the OD API's name.", "NAME")
    ] = DEFAULT_METRIC
    mode: Annotated[
        Literal["max", "min"], _about("Whether the larger or the smaller score is better.")
    ] = "max"
    top_k: Annotated[
        int, _about("Places in best/. -1 keeps every scored checkpoint, 0 none.", "K", ge=-1)
    ] = 3
    patience: Annotated[
        _Positive | None,
        _about("Stop after N evaluations without improvement. Default: never stop.", "N"),
    ] = None
    min_delta: Annotated[
        float, _about("A gain that is not greater than this is no improvement.", "DELTA", ge=0)
    ] = 0.0
    min_steps: Annotated[
        int, _about("Do not stop before an evaluation at this global step.", "STEPS", ge=0)
    ] = 0
    eval_input: Annotated[
        str | int | None,
        _about("Which eval_input_reader, by name or index. Default: the first.", "NAME|INDEX"),
    ] = None
    eval_batch_size: Annotated[
        _Positive | None,
        _about(
            "Batch size of the evaluation. Default: the pipeline's, which gives exactly the"
            " OD API's numbers.",
            "N",
        ),
    ] = None
    sample_1_of_n: Annotated[
        _Positive | None,
        _about("Evaluate only every N-th image. Default: as pipeline.config says.", "N"),
    ] = None
    eval_cache_mib: Annotated[
        _Positive | None,
        _about(
            "Memory for the decoded eval set; a larger one is kept on disk."
            " Default: a quarter of what is available, at most 4096.",
            "MIB",
        ),
    ] = None
    threads: Annotated[
        _Positive | None,
        _about("Threads that the evaluation may use. Default: TensorFlow's choice.", "N"),
    ] = None
    nice: Annotated[
        _Niceness | None, _about("Niceness of the evaluation, 0 to 19. Default: none.", "N")
    ] = None
    worker_memory_limit: Annotated[
        int | str | None,
        _about(
            "Memory, such as 8GB, above which the worker is replaced after an evaluation."
            " Default: no limit.",
            "SIZE",
        ),
    ] = None
    coco_backend: Annotated[
        Literal["auto", "pycocotools", "faster-coco-eval", "hotcoco"],
        _about("What computes COCO metrics; auto takes the fastest that is installed there."),
    ] = "auto"
    run_name: Annotated[
        str | None, _about("Name of the run. Default: the name of MODEL_DIR.", "NAME")
    ] = None
    state_dir: Annotated[
        str | None,
        _about("Database, pins, lock and logs. Default: MODEL_DIR/watcher.", "FOLDER"),
    ] = None
    best_dir: Annotated[
        str | None, _about("The best checkpoints. Default: MODEL_DIR/best.", "FOLDER")
    ] = None
    sentinel: Annotated[
        str | None, _about("The early-stop file. Default: MODEL_DIR/EARLY_STOP.", "FILE")
    ] = None
    exit_when_idle: Annotated[
        _NotNegative | None,
        _about(
            "End with code 0 when nothing is pending and nothing new came for so long.",
            "SECONDS",
        ),
    ] = None
    wait_for_model_dir: Annotated[bool, _about("Wait for a MODEL_DIR that does not exist yet.")] = (
        False
    )
    rescan_seconds: Annotated[
        float, _about("Look at MODEL_DIR at least this often.", "SECONDS", gt=0, le=10)
    ] = 10.0
    grace_seconds: Annotated[
        float,
        _about(
            "How long an incomplete checkpoint may stay so before it is corrupt.", "SECONDS", gt=0
        ),
    ] = 30.0
    evict_seconds: Annotated[
        float,
        _about(
            "How long what left best/ can still be read there, by those who have its name.",
            "SECONDS",
            ge=0,
        ),
    ] = 10.0
    queue_policy: Annotated[
        str,
        _about(
            "What waits when evaluation is slower than training: all; latest; every-N, those"
            " whose number divides by N; or spread, ten at most, evenly over the steps.",
            "all|latest|every-N|spread",
        ),
    ] = "all"
    max_pinned_bytes: Annotated[
        int | str | None,
        _about(
            "Size of the checkpoints that may wait, such as 20GB. Beyond it they are thinned"
            " evenly, and the newest stays. Default: no limit.",
            "SIZE",
        ),
    ] = None
    max_attempts: Annotated[
        int, _about("Evaluations that may break off before a checkpoint is failed.", "N", ge=1)
    ] = 3
    retry_seconds: Annotated[
        float,
        _about("First delay after a broken evaluation; it doubles each time.", "SECONDS", gt=0),
    ] = 5.0
    start_timeout: Annotated[
        float, _about("Time for the worker to import, build and trace.", "SECONDS", gt=0)
    ] = 600.0
    stall_timeout: Annotated[
        float, _about("Time without progress after which an evaluation hangs.", "SECONDS", gt=0)
    ] = 600.0
    log_format: Annotated[
        Literal["auto", "live", "human", "json"],
        _about("What run prints; auto is live on a terminal, else human-readable lines."),
    ] = "auto"

    @property
    def model_path(self) -> Path:
        """MODEL_DIR, absolute."""
        return Path(self.model_dir).absolute()

    @property
    def worker_memory_bytes(self) -> int | None:
        """`worker_memory_limit` in bytes."""
        limit = self.worker_memory_limit
        return None if limit is None else parse_size(str(limit))

    @property
    def waiting_policy(self) -> QueuePolicy:
        """What may wait: `queue_policy` within `max_pinned_bytes`."""
        limit = None if self.max_pinned_bytes is None else parse_size(str(self.max_pinned_bytes))
        return parse_policy(self.queue_policy, limit)

    @property
    def state_path(self) -> Path:
        """Folder of the database, the pins, the lock and the logs."""
        return state_path(self.model_path, self.state_dir)

    @property
    def best_path(self) -> Path:
        """Folder of the best checkpoints."""
        return Path(self.best_dir).absolute() if self.best_dir else self.model_path / "best"

    @property
    def sentinel_path(self) -> Path:
        """The early-stop file."""
        return Path(self.sentinel).absolute() if self.sentinel else self.model_path / "EARLY_STOP"


def state_path(model_dir: Path, state_dir: str | None) -> Path:
    """Return the state folder of a run; `state_dir` is the setting of that name."""
    return Path(state_dir).absolute() if state_dir else model_dir / "watcher"


def load_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None
) -> Settings:
    """Merge flags over environment over file, and validate.

    Args:
        flags: Field name to value; None means not given.
        environment: Usually `os.environ`.
        file: A TOML file, None for none.

    Raises:
        ConfigError: the file cannot be read, a field is unknown, or a value breaks its rule.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in (read_toml(file) if file else {}).items():
        merged[name], origin[name] = value, str(file)
    for name in Settings.__struct_fields__:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            merged[name], origin[name] = environment[variable], variable
        if flags.get(name) is not None:
            merged[name], origin[name] = flags[name], f"--{name.replace('_', '-')}"
    _check_names(merged, origin)
    for name in ("model_dir", "pipeline_config"):
        if name not in merged:
            raise ConfigError(
                f"{name} is not set",
                hint="give MODEL_DIR and --pipeline-config FILE, or both in the file of --config",
            )
    try:
        # Not strict: flags and environment are text, and "3" is as good a number as 3.
        settings = msgspec.convert(merged, Settings, strict=False)
        if not _DEVICE.fullmatch(settings.device):
            raise msgspec.ValidationError(
                "Expected cpu, auto, gpu:N or a GPU's UUID - at `$.device`"
            )
        _check_policy(settings)
    except msgspec.ValidationError as error:
        raise _explain(error, merged, origin) from error
    if isinstance(settings.eval_input, str) and settings.eval_input.isdecimal():
        settings = msgspec.structs.replace(settings, eval_input=int(settings.eval_input))
    return settings


def _check_policy(settings: Settings) -> None:
    readers: dict[str, Callable[[str], object]] = {"queue_policy": parse_policy}
    readers |= dict.fromkeys(("max_pinned_bytes", "worker_memory_limit"), parse_size)
    for name, read in readers.items():
        value = getattr(settings, name)
        try:
            if value is not None:
                read(str(value))
        except ValueError as error:
            raise msgspec.ValidationError(f"{error} - at `$.{name}`") from error


def read_toml(file: Path) -> dict[str, Any]:
    """Read a TOML file into a dict; raises ConfigError when that cannot be done."""
    try:
        content = msgspec.toml.decode(file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}", hint="--config names a TOML file"
        ) from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}", hint="see toml.io for the format") from (
            error
        )
    assert isinstance(content, dict)
    return content


def _choices(name: str) -> list[str]:
    field = get_type_hints(Settings)[name]
    return [str(choice) for choice in get_args(field)]


def _check_names(merged: Mapping[str, Any], origin: Mapping[str, str]) -> None:
    known = Settings.__struct_fields__
    for name in merged:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{name} in {origin[name]} is not a setting",
                hint=f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}",
            )


def _explain(
    error: msgspec.ValidationError, merged: Mapping[str, Any], origin: Mapping[str, str]
) -> ConfigError:
    text = str(error)
    match = re.search(r"(.*) - at `\$\.(\w+)", text)
    if not match:
        return ConfigError(f"invalid settings: {text}")
    rule, name = match[1].replace("`", ""), match[2]
    if "enum" in rule:
        rule = f"expected one of {', '.join(_choices(name))}"
    rule = rule[0].lower() + rule[1:]
    return ConfigError(
        f"{name} ({merged[name]}) is invalid: {rule}",
        hint=f"it was set by {origin[name]}; `checkpoint-watcher run --help` says what it takes",
    )
