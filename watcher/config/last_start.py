"""The last start: what it was given counts at the next one, where nothing else is given. Pure.

A flag or a variable goes on counting until another value is given. What came from a settings file
counts on only while no file is in use, since a file is a whole statement: a key that is taken out
of it has its default again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from watcher.config.ranking import DEFAULT_METRIC
from watcher.config.rules import ENVIRONMENT_PREFIX
from watcher.config.service import SECRET
from watcher.config.settings import Settings, fields, names
from watcher.decision.metric import parse_metric
from watcher.errors import ConfigError

# Of the one invocation: how this process is run, and where it finds what it is to remember.
ONCE = frozenset(
    {
        *("model_dir", "state_dir", "wait_for_model_dir", "exit_when_idle", "log_format"),
        *("listen", "health_seconds", "notify_seconds"),
    }
)
# Said in the metric's own terms, and of no meaning for another metric.
_OF_METRIC = frozenset({"mode", "target", "divergence", "min_delta", "plateau_std", "trend_below"})
# A watchdog may ask for another one.
_UNTOLD = ONCE | {"rescan_seconds", *SECRET}
_EARLIER = "an earlier version"


class LastStart(msgspec.Struct, frozen=True):
    """What is recorded of the last start.

    Attributes:
        settings: All that it went by, none before the first start or after a rebuild.
        given: What it was given, by setting: the flag, the variable or the file; None when that was
            not recorded.
    """

    settings: Mapping[str, Any] = msgspec.field(default_factory=dict)
    given: Mapping[str, str] | None = msgspec.field(default_factory=dict)

    @property
    def where(self) -> dict[str, str]:
        """What it was given and is remembered, with where."""
        given = self._all_but_defaults() if self.given is None else self.given
        return {name: at for name, at in given.items() if name in self.settings and _kept(name)}

    def counting(self, *, with_file: bool) -> dict[str, Any]:
        """Return the settings that count on; with a settings file, those that came from none."""
        return {
            name: self.settings[name]
            for name, at in self.where.items()
            if not (with_file and is_file(at))
        }

    @property
    def secrets(self) -> list[str]:
        """The settings that it was given and whose values are not recorded."""
        return [name for name in SECRET if name in (self.given or ())]

    def _all_but_defaults(self) -> dict[str, str]:
        # As JSON has them, as what is recorded: a tuple would not equal a list.
        defaults = {one.name: one.default for one in fields(Settings) if not one.required}
        # Which was the default for every metric.
        before = msgspec.to_builtins(defaults) | {"mode": "max"}
        changed = [name for name, value in self.settings.items() if value != before.get(name)]
        return dict.fromkeys(changed, _EARLIER)


def is_file(where: str) -> bool:
    """Tell whether a setting came from a settings file, by what is recorded of where it was given.

    What nothing is known of is taken for that: a file in use is then the whole statement.
    """
    return not where.startswith(("--", ENVIRONMENT_PREFIX))


def without_foreign(
    values: Mapping[str, Any], inherited: Iterable[str], last: Mapping[str, Any]
) -> set[str]:
    """Return those inherited settings that are said in terms of a metric which is another now.

    Args:
        values: What counts now, by setting.
        inherited: Which of them were inherited.
        last: All settings of the last start.
    """
    return set() if _same_metric(values, last) else set(_OF_METRIC.intersection(inherited))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what changed between two starts that are shown by `Settings.to_show`, for people."""
    changed = []
    # As they are recorded: a tuple would equal no list.
    before, now = (msgspec.json.decode(msgspec.json.encode(one)) for one in (before, now))
    was, present = ({**one, "mode": _mode(one)} for one in (before, now))
    for name, value in present.items():
        if name in _UNTOLD or name not in before or value == was[name]:
            continue
        old, new = shown(was[name]), shown(value)
        changed.append(f"{name} {old} -> {new}" if old != new else f"{name} changed")
    return changed


def shown(value: Any) -> str:
    """Return the value of a setting as people write it."""
    if isinstance(value, dict):
        return "/".join(
            str(value[key]) for key in ("name", "host", "device") if value.get(key)
        ) or str(value.get("metric"))
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _kept(name: str) -> bool:
    return name in names(Settings) and name not in ONCE and name not in SECRET


def _main_metric(values: Mapping[str, Any]) -> str:
    listed = values.get("board")
    first = listed[0] if isinstance(listed, list | tuple) and listed else None
    own = first.get("metric") if isinstance(first, Mapping) else None
    return str(own or values.get("metric") or DEFAULT_METRIC)


def _same_metric(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether both rank by one metric, however they write it: `mAP` or its whole name."""
    names = {_main_metric(one), _main_metric(other)}
    try:
        (first, *others) = [parse_metric(name) for name in names]
    except ConfigError:  # told where it is validated
        return False
    return not others or (
        not first.is_expression and not others[0].is_expression and _meets(first.keys, others[0])
    )


def _meets(keys: Iterable[Any], other: Any) -> bool:
    return not set(keys).isdisjoint(other.keys)


def _mode(values: Mapping[str, Any]) -> str:
    try:
        nature = parse_metric(_main_metric(values)).natural_mode
    except ConfigError:
        nature = None
    return values.get("mode") or nature or "max"
