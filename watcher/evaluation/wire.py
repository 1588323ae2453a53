"""Wire: messages as lines of JSON, and what is wrong with a line that is none."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import msgspec
from msgspec import Struct

from watcher.errors import WorkerError
from watcher.evaluation.messages import Replicates, Reply


class WrongResult(Struct, frozen=True):
    """A `result` that is none: its evaluation is refused, and the worker lives on."""

    id: str
    reason: str


_replies = msgspec.json.Decoder(Reply)
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?$", re.DOTALL)


def write_request(request: Struct) -> bytes:
    """Return the line of a request."""
    # A path need not be text: what stands for its other bytes only this encoder passes on.
    return json.dumps(msgspec.to_builtins(request)).encode() + b"\n"


def read_reply(line: bytes) -> Reply | WrongResult:
    """Return the message of a line.

    Raises:
        WorkerError: it is none, or says it wrongly; the message names the field and its value.
    """
    try:
        reply: Reply = _replies.decode(line)
        return reply
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        said = _said(line) if isinstance(error, msgspec.ValidationError) else {}
        if not isinstance(kind := said.get("type"), str):
            raise WorkerError(f"the worker sent garbage: {line[:80]!r}") from error
        try:
            reason = _explain(said, str(error))
        except (LookupError, TypeError, AttributeError):  # a field is there twice
            reason = str(error)
        if kind == "result" and isinstance(said.get("id"), str):
            return WrongResult(said["id"], reason)
        if kind == "replicates" and isinstance(said.get("id"), str):
            # As a worker says it that could not compute them: the score stands without.
            return Replicates(id=said["id"], scheme="", images=0, count=0, level=0.0)
        raise WorkerError(f"the worker sent a wrong {kind[:80]}: {reason}") from error


def _said(line: bytes) -> dict[str, Any]:
    """Return a message unchecked, an empty one where it is garbage all the same."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):  # of what comes after the first mistake
        return {}
    return said if isinstance(said, dict) else {}


def _explain(said: dict[str, Any], error: str) -> str:
    """Name the field of a wrong message and its value, of which msgspec tells the place alone."""
    place = _PLACE.match(error)
    assert place
    what = place["what"][:1].lower() + place["what"][1:]
    if place["path"] is None:
        return what
    path = ""
    value: Any = said
    for name, number in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", place["path"]):
        step: Any = name or number
        if number == "...":
            step = _wrong_key(said, path)
        elif number:
            step = int(number)
        if step is None:
            break
        path += ("." if path else "") + name if name else f"[{step!r}]"
        value = value[step]
    if place["key"]:
        path, value = f"a name in {path}", _wrong_key(said, path)
    return f"{path} ({_shown(value)}): {what}"


def _wrong_key(said: dict[str, Any], field: str) -> str | None:
    """Return the first key of a mapping in a message that makes it a wrong one."""
    kind = next(one for one in get_args(Reply) if one.__struct_config__.tag == said["type"])
    types = {one.name: one.type for one in msgspec.structs.fields(kind)}
    for key, value in said[field].items() if field in types else ():
        try:
            msgspec.convert({key: value}, types[field])
        except msgspec.ValidationError:
            return str(key)
    return None


def _shown(value: Any) -> str:
    return f"{len(value)} values" if isinstance(value, list | dict) else repr(value)[:80]
