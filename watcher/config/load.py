"""Loading: flags over environment over file over the last start, validated.

An error names field, value and rule, and where the value came from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from watcher.config.bucket import check_model_dir, check_place, is_url
from watcher.config.contradictions import refuse_contradictions
from watcher.config.describe import describe
from watcher.config.devices import TABLES, check_device, check_table, split_tables
from watcher.config.invalid import OF_FILES, check_names, explain
from watcher.config.kinds import complete, kind_given, of_others
from watcher.config.last_start import LastStart, without_foreign
from watcher.config.launching import LaunchSettings, launcher_names
from watcher.config.policies import boards, parse_delta, parse_veto, with_main_board
from watcher.config.ranking import BoardSettings
from watcher.config.rules import ENVIRONMENT_PREFIX, MOST_SECONDS
from watcher.config.run import PATHS
from watcher.config.service import parse_address
from watcher.config.settings import Settings, fields, names, nested
from watcher.decision.averages import parse_choice
from watcher.decision.metric import parse_directed, parse_metric
from watcher.decision.queue_policy import parse_policy, parse_size
from watcher.decision.smooth import parse_smoothing
from watcher.errors import ConfigError

FILE_ONLY = frozenset(OF_FILES)

_SomeSettings = TypeVar("_SomeSettings", bound=Settings)
_NO_START = LastStart()


class Loaded(msgspec.Struct, Generic[_SomeSettings], frozen=True):
    """Settings, and how they came about.

    Attributes:
        settings: Validated.
        given: Where each that is not a default was given, now or at an earlier start: the flag, the
            variable or the file.
        inherited: Those that are as at the last start, with their values.
        forgotten: What the last start was given, is not remembered, and is not given now.
        unread: The last start could not be read, since the database is locked.
    """

    settings: _SomeSettings
    given: Mapping[str, str] = msgspec.field(default_factory=dict)
    inherited: Mapping[str, Any] = msgspec.field(default_factory=dict)
    forgotten: tuple[str, ...] = ()
    unread: bool = False

    def source(self, name: str) -> str:
        """Say for people how a setting came to its value."""
        if name in self.inherited:
            return "as at the last start"
        return "as set" if name in self.given else "by default"


def load_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None
) -> Settings:
    """Return the settings of `run` without those of an earlier start; see `load_as`."""
    return load_as(Settings, flags, environment, file)


def load_as(
    kind: type[_SomeSettings],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Path | None,
    defaults: Mapping[str, Any] | None = None,
) -> _SomeSettings:
    """Return settings without those of an earlier start; see `load`."""
    return load(kind, flags, environment, file, defaults).settings


def load(
    kind: type[_SomeSettings],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Path | None,
    defaults: Mapping[str, Any] | None = None,
    last: LastStart = _NO_START,
) -> Loaded[_SomeSettings]:
    """Merge flags over environment over file over the last start, and validate.

    Args:
        kind: Which settings. A file may hold those of `train` too, which others pass over.
        flags: Field name to value; None means not given.
        environment: Usually `os.environ`. A list is one value, or an array as TOML writes it.
        file: A TOML file, None for none.
        defaults: What the trainer's command says, for a field that none of these sets.
        last: What counts where nothing else is given.

    Raises:
        ConfigError: the file cannot be read, a field is unknown, a value breaks its rule, or two
            contradict each other.
    """
    merged, given, by_hand = _collect(kind, flags, environment, file, defaults or {})
    check_names(merged, given, names(kind))
    inherited = _inherit(merged, last, with_file=file is not None)
    origin = given | {name: f"{last.where[name]} at the last start" for name in inherited}
    _unset(kind, merged)
    guessed = complete(merged, origin)
    origin |= dict.fromkeys(guessed, "MODEL_DIR/params.yaml")
    for one in fields(kind):
        if one.required and one.name not in merged and one.name not in of_others(merged):
            raise ConfigError(f"{one.name} is not set", hint=_missing_hint(kind, one.name))
    # A first board of the file that is in use has its say over what was typed at an earlier start.
    of_board = "board" in given and "mode" not in by_hand and _first_board(merged).get("mode")
    given |= {name: last.where[name] for name in inherited}
    _override_main_board(merged, by_hand, inherited="board" in inherited)
    settings = _make(kind, merged, origin)
    _refuse_remote(settings, origin)
    typed = given.get("mode") == "--mode" and not of_board
    refuse_contradictions(settings, mode_by_hand=typed)
    return Loaded(
        settings,
        {name: at for name, at in given.items() if merged[name] not in (None, ())},
        inherited,
        tuple(name for name in last.secrets if name not in merged),
    )


def _refuse_remote(settings: Settings, origin: Mapping[str, str]) -> None:
    """Raise ConfigError for what must be on this machine and is not, or is not said."""
    # The launcher looks for a sentinel anywhere, and reads no pipeline.config of the trainer's.
    launches = isinstance(settings, LaunchSettings)
    remote = {"sentinel", "pipeline_config"} if launches else set()
    for name in PATHS:
        if is_url(value := settings.value(name)) and name not in remote:
            raise ConfigError(
                f"{name} ({value}) must be on this machine: only MODEL_DIR may be in a bucket",
                hint=f"it was set by {origin[name]}; copy the file here, or name a folder here",
            )
    run, published = settings.run, settings.exports.published_to
    if published and published == run.place:
        raise ConfigError(
            f"publish ({published}) is MODEL_DIR: what is uploaded would be found there anew",
            hint=f"give it a folder of its own: {published}/best",
        )
    if run.place and not run.state_dir and not launches:
        raise ConfigError(
            f"state_dir is not set, and MODEL_DIR is {run.place}",
            hint="give --state-dir FOLDER, on a disk of this machine: the database, best/ and"
            " EARLY_STOP lie there",
        )


def _collect(
    kind: type[Settings],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Path | None,
    defaults: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    """Return what is given now, where, and which of it by a flag or in the environment."""
    merged: dict[str, Any] = {}
    given: dict[str, str] = {}
    for name, value in defaults.items():
        merged[name], given[name] = value, "the trainer's command"
    for name, value in split_tables(read_toml(file) if file else {}).items():
        if name in names(kind) or name not in launcher_names():
            merged[name], given[name] = value, str(file)
    by_hand: set[str] = set()
    for name in set(names(kind)) - FILE_ONLY:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            merged[name], given[name] = _from_text(name, environment[variable]), variable
            by_hand.add(name)
        if flags.get(name) is not None:
            merged[name], given[name] = flags[name], f"--{name.replace('_', '-')}"
            by_hand.add(name)
    return merged, given, by_hand


def _inherit(merged: dict[str, Any], last: LastStart, *, with_file: bool) -> dict[str, Any]:
    """Add what counts on since the last start, and return that."""
    counting = last.counting(with_file=with_file)
    inherited = {name: value for name, value in counting.items() if name not in merged}
    foreign = without_foreign({**inherited, **merged}, inherited, last.settings)
    # Those of the kind of evaluator that it was, when another one is asked for now.
    asked = kind_given(merged)
    for name in foreign | (of_others({"evaluator": asked}) & set(inherited) if asked else set()):
        del inherited[name]
    merged |= inherited
    return inherited


def _missing_hint(kind: type[Settings], name: str) -> str:
    if name == "experiment":
        return (
            "params.yaml does not tell it: give --experiment NAME, as official.vision.train got it,"
            " such as retinanet_resnetfpn_coco"
        )
    if issubclass(kind, LaunchSettings):
        return "give --model-dir, or --model_dir in the trainer's command"
    return (
        "give MODEL_DIR and --pipeline-config FILE, or both in the file of --config, which"
        " `checkpoint-watcher init MODEL_DIR` writes; for a run of Model Garden give MODEL_DIR,"
        " which has its params.yaml, and --experiment NAME"
    )


def make_settings(merged: Mapping[str, Any], origin: Mapping[str, str]) -> Settings:
    """Validate the settings of `run` by field name.

    Args:
        merged: Values as text, or as TOML types.
        origin: Where each came from, for the error.

    Raises:
        ConfigError: a value breaks its rule.
    """
    return _make(Settings, merged, origin)


def _make(
    kind: type[_SomeSettings], merged: Mapping[str, Any], origin: Mapping[str, str]
) -> _SomeSettings:
    check_names(merged, origin, names(kind))
    try:
        # Not strict: flags and environment are text, and "3" is as good a number as 3.
        settings = msgspec.convert(nested(kind, merged), kind, strict=False)
        _check_texts(settings)
    except msgspec.ValidationError as error:
        raise explain(kind, error, merged, origin) from error
    chosen = settings.value("eval_input")
    if isinstance(chosen, str) and chosen.isdecimal():
        settings = settings.replaced(eval_input=int(chosen))
    settings = with_main_board(settings)
    boards(settings.run, settings.ranking)
    return settings


def _unset(kind: type[Settings], merged: dict[str, Any]) -> None:
    """Let `none` stand for a setting that is not set, where that is its default."""
    for one in fields(kind):
        if one.default in (None, ()) and merged.get(one.name) in ("none", ("none",), ["none"]):
            merged[one.name] = one.default


def _first_board(merged: Mapping[str, Any]) -> Mapping[str, Any]:
    listed = merged.get("board")
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict):
        return {}
    return listed[0]


def _override_main_board(
    merged: dict[str, Any], by_hand: Collection[str], *, inherited: bool
) -> None:
    """Let a flag or the environment have its say over the first `[[board]]` of the file too."""
    if not (board := _first_board(merged)):
        return
    given = {name: merged[name] for name in by_hand}
    fields = {"best_dir": "folder"} | {name: name for name in BoardSettings.__struct_fields__}
    first = {field: given[name] for name, field in fields.items() if name in given}
    if "metric" in first and inherited:
        first.setdefault("mode", None)  # which was that of another metric
    merged["board"] = [{**board, **first}, *merged["board"][1:]]


@functools.cache
def list_settings() -> frozenset[str]:
    """Return the names of the settings that hold several values: those annotated as a tuple."""
    return frozenset(one.name for one in describe(Settings) if one.kind == "list")


def _from_text(name: str, text: str) -> Any:
    """Return what an environment variable holds: text, for a list a list of one or as in TOML."""
    if name not in list_settings():
        return text
    if not text.lstrip().startswith("["):
        return [text] if text else []
    try:
        return msgspec.toml.decode(f"value = {text}")["value"]
    except msgspec.DecodeError:
        return text  # which is no array, and refused as such


def _check_directed(text: str) -> None:
    """Raise ValueError for what is no metric with max or min, as `loss:up` is none."""
    metric, colon, mode = text.rpartition(":")
    if not text or (colon and mode.isalpha() and mode not in ("max", "min")):
        raise ValueError("expected METRIC, METRIC:max or METRIC:min")
    if colon and not mode:
        raise ValueError(f"after {metric}: comes max or min")
    parse_directed(text)


_TEXTS: dict[str, Callable[[Any], object]] = {
    "model_dir": check_model_dir,
    "publish": check_place,
    "device": check_device,
    TABLES: check_table,
    "queue_policy": parse_policy,
    "listen": lambda value: parse_address(str(value)),
    "max_pinned_bytes": lambda value: parse_size(str(value)),
    "worker_memory_limit": lambda value: parse_size(str(value)),
    "min_delta": parse_delta,
    "smoothing": parse_smoothing,
    "average": parse_choice,
    "metric": parse_metric,
    "tie_break": _check_directed,
    "veto": parse_veto,
}


@functools.cache
def _in_seconds(kind: type[Settings]) -> frozenset[str]:
    return frozenset(one.name for one in describe(kind) if one.metavar == "SECONDS")


def _check_texts(settings: Settings) -> None:
    """Try out what is text with a grammar of its own."""
    for name, value in settings.flat().items():
        # A file's name say, that could not be written down in the database.
        if isinstance(value, str) and value != value.encode(errors="ignore").decode():
            raise msgspec.ValidationError(f"Expected a text in UTF-8 - at `$.{name}`")
        if isinstance(value, float) and not math.isfinite(value):
            raise msgspec.ValidationError(f"Expected a finite number - at `$.{name}`")
        if (
            isinstance(value, float)
            and value > MOST_SECONDS
            and name in _in_seconds(type(settings))
        ):
            raise msgspec.ValidationError(
                f"Expected a number, {MOST_SECONDS} (a year) at most - at `$.{name}`"
            )
    for name, read in _TEXTS.items():
        value = settings.value(name)
        values = value if name in list_settings() else [value] if value is not None else []
        try:
            for one in values:
                read(one)
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
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}", hint="see toml.io for the format") from (
            error
        )
    assert isinstance(content, dict)
    return content
