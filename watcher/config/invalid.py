"""Invalid: what is wrong with a setting, as one clear error. Pure.

It names the field, the value, the rule, and where the value came from.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from watcher.config.devices import TABLES, DeviceTable
from watcher.config.last_start import is_file
from watcher.config.launching import launcher_names
from watcher.config.ranking import BoardSettings, VetoSettings
from watcher.config.service import SECRET
from watcher.config.settings import Settings, defining
from watcher.config.wording import as_written, either, in_words
from watcher.errors import ConfigError

# Tables cannot be written as a flag.
OF_FILES: Mapping[str, type[msgspec.Struct]] = {"board": BoardSettings, TABLES: DeviceTable}
_INSIDE: Mapping[str, type[msgspec.Struct]] = {"veto": VetoSettings}


def check_names(merged: Mapping[str, Any], origin: Mapping[str, str], known: Sequence[str]) -> None:
    """Raise ConfigError where something was set that is no setting.

    Args:
        merged: Name to value.
        origin: Name to where it was set.
        known: The names that there are.
    """
    for name in merged:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{name} in {origin[name]} is not a setting",
                hint=f"did you mean {close[0]}?"
                if close
                else "`checkpoint-watcher run --help` lists the settings, with - for _",
            )


def explain(
    kind: type[Settings],
    error: msgspec.ValidationError,
    merged: Mapping[str, Any],
    origin: Mapping[str, str],
) -> ConfigError:
    """Return the error for settings that msgspec refused.

    Args:
        kind: What was to be made of them.
        error: What msgspec says, with the path of the field.
        merged: Name to value.
        origin: Name to where it was set.
    """
    text = str(error)
    match = re.search(r"(.*) - at `\$\.(?:\w+\.)?(\w+)([^`]*)`", text)
    if not match or match[2] not in merged:  # a whole section, not one of its settings
        return ConfigError(f"invalid settings: {text}")
    rule, name, field = match[1], match[2], match[3].rpartition(".")[2]
    table = (OF_FILES[name], field) if field and name in OF_FILES else (defining(kind)[name], name)
    if not match[3] and (least := _least(*table)) is not None:
        rule = f"expected a whole number, {least} or more, or {either(_choices(*table))}"
    elif "enum" in rule:
        rule = f"expected one of {', '.join(_choices(*table))}"
    elif unknown := re.fullmatch(r"Object contains unknown field `(.*)`", rule):
        rule = _unknown_key(unknown[1], name, match[3])
    else:
        rule = in_words(rule)
    name = "device" if name == TABLES else name
    said = f"{name}{match[3]}" if match[3] or name in SECRET else f"{name} ({_value(merged[name])})"
    more = _remedy(name, match[3], field, rule, merged[name], origin[name])
    return ConfigError(f"{said} is invalid: {rule}", hint=f"it was set by {origin[name]}; {more}")


def _remedy(name: str, path: str, field: str, rule: str, value: Any, origin: str) -> str:
    """Say how a setting is written, or where that stands."""
    if rule.startswith("expected a list") and is_file(origin):
        text = "..." if path or name in SECRET or not isinstance(value, str) else value
        return f"write {field or name} = {as_written([text])}"
    if path:
        return f"the first [[{name}]] is {name}[0]"
    command = "train" if name in launcher_names() else "run"
    return f"`checkpoint-watcher {command} --help` says what it takes"


def _value(value: Any) -> str:
    """Return a value as a person wrote it: of a flag that may be given several times, each."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else as_written(value)


def _unknown_key(key: str, name: str, path: str) -> str:
    """Say what a table may have that has a key which it cannot have."""
    inside = re.search(r"(\w+)\[\d+\]$", path)
    table = _INSIDE.get(inside[1]) if inside else OF_FILES.get(name)
    known = table.__struct_fields__ if table else ()
    close = difflib.get_close_matches(key, known, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"it has a key {key}{meant}" + (f", and may have {', '.join(known)}" if known else "")


def _choices(table: type, name: str) -> list[str]:
    """Return what a field may be: the values of its Literal, which may be one of a union."""
    hint = get_type_hints(table)[name]
    kinds = [hint, *get_args(hint)]
    return [
        str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)
    ]


def _least(table: type, name: str) -> int | None:
    """Return the least number that a field may be which is a number or a choice, else None."""
    kinds = get_args(get_type_hints(table)[name])
    if int not in kinds or not _choices(table, name):
        return None
    schema = msgspec.json.schema(get_type_hints(table, include_extras=True)[name])
    return next((one["minimum"] for one in schema["anyOf"] if "minimum" in one), 0)
