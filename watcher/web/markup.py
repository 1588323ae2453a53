"""HTML as Python values: text is escaped unless it is `Markup`, so nothing can be forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


_EMPTY = frozenset({"meta", "br"})


def tag(element: str, /, *children: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        element: Its name.
        children: Text, which is escaped; Markup, which is not; iterables of those; None for
            nothing.
        attributes: Values are escaped; True stands for the name alone, None and False for nothing.
            A `_` in a name is a `-`, one at the end is not there, as in `class_`.
    """
    said = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inside = joined(children)
    if element in _EMPTY:
        return Markup(f"<{element}{said}>")
    return Markup(f"<{element}{said}>{inside}</{element}>")


def joined(children: object) -> Markup:
    """Return children one after the other, escaped where they are no Markup."""
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, str) or not isinstance(children, Iterable):
        return Markup(escape(str(children)))
    return Markup("".join(joined(child) for child in children))
