"""All settings of a run, a section for each part of it.

People set them flat: a name is a key of the file, a flag and an environment variable, and belongs
to one section. Each component is handed its own section.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, get_args, get_type_hints

import msgspec

from watcher.config.bucket import is_url
from watcher.config.carrier import LocalSettings
from watcher.config.evaluator import (
    KINDS,
    OD_API,
    EvaluatorBase,
    ModelGardenSettings,
    OdApiSettings,
    is_file,
)
from watcher.config.exports import ExportSettings
from watcher.config.ranking import RankingSettings
from watcher.config.retention import RetentionSettings
from watcher.config.run import PATHS, RunSettings
from watcher.config.service import SECRET, ServiceSettings
from watcher.config.source import SourceSettings
from watcher.config.stopping import StoppingSettings

# What evaluates and where it runs are tagged unions by `kind`; the latter has one member today.
EvaluatorSettings = OdApiSettings | ModelGardenSettings
CarrierSettings = LocalSettings


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set, in sections."""

    run: RunSettings
    evaluator: EvaluatorSettings
    carrier: CarrierSettings = LocalSettings()
    ranking: RankingSettings = RankingSettings()
    stopping: StoppingSettings = StoppingSettings()
    retention: RetentionSettings = RetentionSettings()
    exports: ExportSettings = ExportSettings()
    source: SourceSettings = SourceSettings()
    service: ServiceSettings = ServiceSettings()

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Return settings by name, as a program gives them; raises msgspec.ValidationError."""
        return msgspec.convert(nested(cls, {"evaluator": OD_API, **values}), cls)

    def flat(self) -> dict[str, Any]:
        """Return every setting by its name."""
        return {
            name: value
            for section in self.__struct_fields__
            for name, value in msgspec.structs.asdict(getattr(self, section)).items()
        }

    def value(self, name: str) -> Any:
        """Return a setting by its name, None for one of another kind of evaluator."""
        return getattr(getattr(self, section_of(type(self))[name]), name, None)

    def replaced(self, **values: Any) -> Self:
        """Return these settings with others of some names."""
        made: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            made.setdefault(section_of(type(self))[name], {})[name] = value
        changed = {
            section: msgspec.structs.replace(getattr(self, section), **own)
            for section, own in made.items()
        }
        return msgspec.structs.replace(self, **changed)

    def to_show(self) -> dict[str, Any]:
        """Return the settings by name, for people and for the database, without secrets.

        Paths are absolute: whoever reads them later is elsewhere.
        """
        shown = absolute(msgspec.to_builtins(self.flat()))
        for board in shown["board"]:
            if board["folder"]:
                board["folder"] = str(Path(self.run.model_path, board["folder"]))
        # A name without a folder is looked for on PATH.
        if shown["python"] and "/" in shown["python"]:
            shown["python"] = str(Path(shown["python"]).absolute())
        return {name: value for name, value in shown.items() if name not in SECRET}


def absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings whose paths do not depend on where they are read."""
    read = dict(settings)
    for name in ("model_dir", "device_lock_dir", *PATHS):
        if read.get(name) and not is_url(read[name]):
            read[name] = str(Path(read[name]).absolute())
    if "config_file" in read:
        read["config_file"] = [str(Path(one).absolute()) for one in read["config_file"]]
    # Of what may be a file or something else, that is one which is there.
    for name in ("garden_import", "params_override"):
        if name in read:
            read[name] = [str(Path(o).absolute()) if is_file(o) else o for o in read[name]]
    if "metric_plugin" in read:
        # A name without a file is looked for among the entry points.
        parts = (one.rpartition(":") for one in read["metric_plugin"])
        read["metric_plugin"] = [
            f"{Path(file).absolute()}:{function}" if file else function
            for file, _, function in parts
        ]
    return read


@functools.cache
def tables(kind: type[Settings]) -> Mapping[str, tuple[type[msgspec.Struct], ...]]:
    """Return the sections of some settings, by name, in their order, each with its kinds."""
    hints = get_type_hints(kind)
    return {name: get_args(hints[name]) or (hints[name],) for name in kind.__struct_fields__}


@functools.cache
def defining(kind: type[Settings]) -> Mapping[str, type[msgspec.Struct]]:
    """Return for the name of each setting the table that it is defined in.

    What all kinds of evaluators have comes after what one of them has.
    """
    found: dict[str, type[msgspec.Struct]] = {}
    for members in tables(kind).values():
        common = EvaluatorBase if len(members) > 1 else members[0]
        for table in (*members, common):
            own = [n for n in table.__struct_fields__ if n not in common.__struct_fields__]
            found |= dict.fromkeys(own or table.__struct_fields__, table)
    return found


@functools.cache
def section_of(kind: type[Settings]) -> Mapping[str, str]:
    """Return for the name of each setting the section that it is in."""
    return {
        name: section
        for section, members in tables(kind).items()
        for table in members
        for name in table.__struct_fields__
    }


def names(kind: type[Settings]) -> tuple[str, ...]:
    """Return the names of all settings, in the order of their definition."""
    return tuple(defining(kind))


@functools.cache
def fields(kind: type[Settings]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Return all settings as msgspec describes them, in the order of their definition."""
    return tuple(
        next(one for one in msgspec.structs.fields(table) if one.name == name)
        for name, table in defining(kind).items()
    )


def own_names(evaluator: str) -> frozenset[str]:
    """Return the names of the settings that one kind of evaluator has and others have not."""
    others = {n for kind, one in KINDS.items() if kind != evaluator for n in one.__struct_fields__}
    return frozenset(KINDS[evaluator].__struct_fields__) - others


def nested(kind: type[Settings], values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return settings that are given by name in their sections; raises KeyError for an unknown."""
    made: dict[str, dict[str, Any]] = {"evaluator": {"kind": values.get("evaluator") or OD_API}}
    for name, value in values.items():
        made.setdefault(section_of(kind)[name], {})[name] = value
    return made
