"""What there is to say about each setting: from here come flags, help texts and settings files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from watcher.config.settings import Settings, defining


class Setting(msgspec.Struct, frozen=True):
    """One setting, as it is described where it is defined.

    Attributes:
        name: Of the field, which is the TOML key and, with dashes, the flag.
        group: What the first line about its group says.
        about: Its help text.
        metavar: What stands for a value, None when nothing does.
        default: None when it has none, or is not set.
        kind: `text`, `number`, `whole`, `switch` or `list`.
    """

    name: str
    group: str
    about: str
    metavar: str | None
    default: Any
    kind: str


def describe(kind: type[Settings]) -> Sequence[Setting]:
    """Return the settings of a kind in the order of their definition, tables among them."""
    return [_describe(_field(table, name), _title(table)) for name, table in defining(kind).items()]


def _field(table: type[msgspec.Struct], name: str) -> Any:
    every = msgspec.inspect.type_info(table).fields  # type: ignore[attr-defined]
    return next(one for one in every if one.name == name)


def _describe(field: Any, group: str) -> Setting:
    kind = field.type
    assert isinstance(kind, msgspec.inspect.Metadata), "every setting has a description"
    metavar = (kind.extra or {}).get("metavar")
    inner = kind.type
    if metavar is None and isinstance(inner, msgspec.inspect.LiteralType):
        metavar = "|".join(str(value) for value in inner.values)
    return Setting(
        name=field.name,
        group=group,
        about=(kind.extra_json_schema or {}).get("description", ""),
        metavar=metavar,
        default=None if field.default is msgspec.NODEFAULT else field.default,
        kind=_kind(inner),
    )


def _kind(inner: Any) -> str:
    kinds = {type(one) for one in _parts(inner)}
    if msgspec.inspect.BoolType in kinds:
        return "switch"
    if msgspec.inspect.VarTupleType in kinds:
        return "list"
    if msgspec.inspect.StrType in kinds or msgspec.inspect.LiteralType in kinds:
        return "text"
    return "number" if msgspec.inspect.FloatType in kinds else "whole"


def _parts(inner: Any) -> list[Any]:
    """Return the types that a union is made of, without the rules about them."""
    if isinstance(inner, msgspec.inspect.Metadata):
        return _parts(inner.type)
    if isinstance(inner, msgspec.inspect.UnionType):
        return [part for one in inner.types for part in _parts(one)]
    return [inner]


def _title(table: type[msgspec.Struct]) -> str:
    """Return the first line about a section, without its full stop."""
    return (table.__doc__ or "Settings").splitlines()[0].removesuffix(".")
