"""Wording: the rule that a value breaks, in a person's words. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "none",
}
_BOUNDS = {">=": "{} or more", "<=": "{} at most", ">": "more than {}", "<": "less than {}"}
_RULE = re.compile(
    r"Expected `(?P<kinds>[^`]+)`(?:, got `(?P<got>\w+)`| (?P<sign>[<>]=?) (?P<limit>\S+)|"
    r" of length >= 1(?P<filled>)| matching regex '(?P<pattern>.*)')?"
)


def either(words: Sequence[str]) -> str:
    """Return words as people list them: `a, b or c`."""
    return _listed(words, "or")


def together(words: Sequence[str]) -> str:
    """Return words as people list them: `a, b and c`."""
    return _listed(words, "and")


def _listed(words: Sequence[str], last: str) -> str:
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def as_written(value: Any) -> str:
    """Return a value as it stands in a settings file, but for a text, which has no quotes."""
    return value if isinstance(value, str) else _toml(value)


def _toml(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False)
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            pairs = ", ".join(f"{key} = {_toml(one)}" for key, one in value.items())
            return f"{{{pairs}}}"
    return str(value)


def in_words(rule: str) -> str:
    """Return msgspec's rule, "Expected `int | null`, got `str`" say, as people say it.

    What is not known here is returned as it is, without its quotes.
    """
    match = _RULE.fullmatch(rule)
    if not match:
        text = rule.replace("`", "")
        return text[0].lower() + text[1:]
    kinds = match["kinds"].split(" | ")
    # A number is a text too where it comes from a flag, so a text is none of what was wrong.
    words = [_KINDS.get(kind, kind) for kind in kinds]
    said = either(words)
    if match["sign"]:
        limit = format(float(match["limit"]), "g")
        said += f", {_BOUNDS[match['sign']].format(limit)}"
    elif match["filled"] is not None:
        said += " that is not empty"
    elif match["pattern"]:
        said += f" of the form {match['pattern']}"
    elif match["got"] not in (None, "str"):
        got = {**_KINDS, "float": "a fraction"}.get(match["got"], f"a {match['got']}")
        said += f", not {got}"
    return f"expected {said}"
