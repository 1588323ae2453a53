"""Loading: flags over environment over file, validated; an error names field, value and rule."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from watcher.config.contradictions import refuse_contradictions
from watcher.config.launching import LaunchSettings, launcher_names
from watcher.config.ranking import BoardSettings
from watcher.config.service import SECRET, parse_address
from watcher.config.settings import Settings
from watcher.decision.metric import parse_directed, parse_metric
from watcher.decision.policy import boards, parse_delta, parse_veto, with_main_board
from watcher.decision.smooth import parse_smoothing
from watcher.errors import ConfigError
from watcher.evaluation.device import check_device
from watcher.intake.thin import parse_policy, parse_size

ENVIRONMENT_PREFIX = "CHECKPOINT_WATCHER_"
# Tables cannot be written as a flag.
FILE_ONLY = frozenset({"board"})

_SomeSettings = TypeVar("_SomeSettings", bound=Settings)


def load_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None
) -> Settings:
    """Return the settings of `run`; see `load_as`."""
    return load_as(Settings, flags, environment, file)


def load_as(
    kind: type[_SomeSettings],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: Path | None,
    defaults: Mapping[str, Any] | None = None,
    *,
    defaults_from: str = "the trainer's command",
) -> _SomeSettings:
    """Merge flags over environment over file, and validate.

    Args:
        kind: Which settings. A file may hold those of `train` too, which others pass over.
        flags: Field name to value; None means not given.
        environment: Usually `os.environ`. A list is one value, or an array as TOML writes it.
        file: A TOML file, None for none.
        defaults: What holds for a field that none of these sets.
        defaults_from: Where that is known from, for an error.

    Raises:
        ConfigError: the file cannot be read, a field is unknown, a value breaks its rule, or two
            contradict each other.
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, value in (defaults or {}).items():
        merged[name], origin[name] = value, defaults_from
    for name, value in (read_toml(file) if file else {}).items():
        if name in kind.__struct_fields__ or name not in launcher_names():
            merged[name], origin[name] = value, str(file)
    for name in set(kind.__struct_fields__) - FILE_ONLY:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            merged[name], origin[name] = _from_text(name, environment[variable]), variable
        if flags.get(name) is not None:
            merged[name], origin[name] = flags[name], f"--{name.replace('_', '-')}"
    _check_names(merged, origin, kind.__struct_fields__)
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in merged:
            raise ConfigError(f"{field.name} is not set", hint=_missing_hint(kind))
    _override_main_board(merged, origin, str(file))
    settings = _make(kind, merged, origin)
    refuse_contradictions(settings)
    return settings


def _missing_hint(kind: type[Settings]) -> str:
    if issubclass(kind, LaunchSettings):
        return "give --model-dir, or --model_dir in the trainer's command"
    return "give MODEL_DIR and --pipeline-config FILE, or both in the file of --config"


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
    try:
        # Not strict: flags and environment are text, and "3" is as good a number as 3.
        settings = msgspec.convert(merged, kind, strict=False)
        _check_texts(settings)
    except msgspec.ValidationError as error:
        raise _explain(error, merged, origin) from error
    if isinstance(settings.eval_input, str) and settings.eval_input.isdecimal():
        settings = msgspec.structs.replace(settings, eval_input=int(settings.eval_input))
    settings = with_main_board(settings)
    boards(settings)
    return settings


def _override_main_board(merged: dict[str, Any], origin: Mapping[str, str], file: str) -> None:
    """Let a flag or the environment have its say over the first `[[board]]` of the file too."""
    listed = merged.get("board")
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict):
        return
    given = {name: merged[name] for name in origin if origin[name] != file}
    fields = {"best_dir": "folder"} | {name: name for name in BoardSettings.__struct_fields__}
    first = {field: given[name] for name, field in fields.items() if name in given}
    merged["board"] = [{**listed[0], **first}, *listed[1:]]


@functools.cache
def list_settings() -> frozenset[str]:
    """Return the names of the settings that hold several values: those annotated as a tuple."""
    hints = get_type_hints(Settings)
    return frozenset(
        name for name in Settings.__struct_fields__ if get_origin(hints[name]) is tuple
    )


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


_TEXTS: dict[str, Callable[[Any], object]] = {
    "device": check_device,
    "queue_policy": parse_policy,
    "listen": lambda value: parse_address(str(value)),
    "max_pinned_bytes": lambda value: parse_size(str(value)),
    "worker_memory_limit": lambda value: parse_size(str(value)),
    "min_delta": parse_delta,
    "smoothing": parse_smoothing,
    "metric": parse_metric,
    "tie_break": parse_directed,
    "veto": parse_veto,
}


def _check_texts(settings: Settings) -> None:
    """Try out what is text with a grammar of its own."""
    for name, value in msgspec.structs.asdict(settings).items():
        if isinstance(value, str) and not _is_utf8(value):
            raise msgspec.ValidationError(f"Expected a text in UTF-8 - at `$.{name}`")
    for name, read in _TEXTS.items():
        value = getattr(settings, name)
        values = value if name in list_settings() else [value] if value is not None else []
        try:
            for one in values:
                read(one)
        except ValueError as error:
            raise msgspec.ValidationError(f"{error} - at `$.{name}`") from error


def _is_utf8(text: str) -> bool:
    """Return whether a text, a file's name say, can be written down in the database."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _choices(table: type, name: str) -> list[str]:
    """Return what a field may be: the values of its Literal, which may be one of a union."""
    hint = get_type_hints(table)[name]
    kinds = [hint, *get_args(hint)]
    return [
        str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)
    ]


def _check_names(
    merged: Mapping[str, Any], origin: Mapping[str, str], known: tuple[str, ...]
) -> None:
    for name in merged:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{name} in {origin[name]} is not a setting",
                hint=f"did you mean {close[0]}?"
                if close
                else "`checkpoint-watcher run --help` lists the settings, with - for _",
            )


def _explain(
    error: msgspec.ValidationError, merged: Mapping[str, Any], origin: Mapping[str, str]
) -> ConfigError:
    text = str(error)
    match = re.search(r"(.*) - at `\$\.(\w+)([^`]*)`", text)
    if not match:
        return ConfigError(f"invalid settings: {text}")
    rule, name, field = match[1].replace("`", ""), match[2], match[3].rpartition(".")[2]
    if "enum" in rule:
        table = (BoardSettings, field) if field else (Settings, name)
        rule = f"expected one of {', '.join(_choices(*table))}"
    rule = rule[0].lower() + rule[1:]
    said = f"{name}{match[3]}" if match[3] or name in SECRET else f"{name} ({merged[name]})"
    command = "train" if name in launcher_names() else "run"
    return ConfigError(
        f"{said} is invalid: {rule}",
        hint=f"it was set by {origin[name]};"
        f" `checkpoint-watcher {command} --help` says what it takes",
    )
