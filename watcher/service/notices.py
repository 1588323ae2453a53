"""Notices: what others are told of a run, decided from how it stands and what they know. Pure.

Nothing here reacts to an event: how the run stands is compared with what was told, and the
difference is told. So a restart neither repeats nor loses a notice, and while nobody can be reached
notices do not pile up: there is one of each kind at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

_SHOWN_FAILURES = 10
_TEXT_LIMIT = 1000

Event = Literal["best", "stop", "degraded", "recovered", "failed"]


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a channel was told last; kept in a file.

    Attributes:
        best: Content and metric of the best checkpoint, None for none.
        stopped: True when it knows that training should stop.
        degraded: What it knows not to work.
        event: The last row of `events` that was looked at for failures.
    """

    best: str | None = None
    stopped: bool = False
    degraded: tuple[str, ...] = ()
    event: int = 0


class Situation(msgspec.Struct, frozen=True):
    """How the run stands.

    Attributes:
        best: The row of the view `best`, None for none.
        failures: Rows of `events` of kind `failed` since those told: `checkpoint, message`.
        event: The last row of `events`.
        readable: False when the database could not be read, so that those three are not known.
        stop: Why training should stop, None to go on.
        decided: False while it is not known whether training should stop.
        degraded: What does not work, and why.
        recovered: That a device which was held back works again, None while that is not so.
        confirmed: False where the best is not told of yet, since it may be no better than the one
            that was.
    """

    best: dict[str, Any] | None = None
    failures: list[dict[str, Any]] = msgspec.field(default_factory=list)
    event: int = 0
    readable: bool = True
    stop: str | None = None
    decided: bool = True
    degraded: dict[str, str] = msgspec.field(default_factory=dict)
    recovered: str | None = None
    confirmed: bool = True


class Notice(msgspec.Struct, frozen=True):
    """One message to others; `details` are further keys of what a command is given."""

    event: Event
    title: str
    message: str
    details: dict[str, Any] = msgspec.field(default_factory=dict)


def news(told: Told, now: Situation) -> Iterator[tuple[Notice | None, Told]]:
    """Compare how the run stands with what was told.

    Yields:
        Each notice with what is told once it was delivered; None where nothing needs to be said.
    """
    if now.readable:
        told = msgspec.structs.replace(told, event=now.event)
        yield (_failed(now.failures) if now.failures else None), told
    news_of = {what: why for what, why in now.degraded.items() if what not in told.degraded}
    known = tuple(now.degraded) if now.decided else (*told.degraded, *news_of)
    if "device" in told.degraded and "device" not in now.degraded:
        # A restart knows nothing of it: only an answer of the device ends that.
        known = tuple(what for what in known if what != "device")
        if now.recovered:
            rest = tuple(what for what in told.degraded if what != "device")
            told = msgspec.structs.replace(told, degraded=rest)
            yield Notice("recovered", "evaluation goes on", _short(now.recovered)), told
        else:
            known = (*known, "device")
    told = msgspec.structs.replace(told, degraded=known)
    yield (_degraded(news_of) if news_of else None), told
    if now.readable and now.confirmed and (key := best_key(now.best)) != told.best:
        told = msgspec.structs.replace(told, best=key)
        yield (_best(now.best) if now.best else None), told
    if now.decided and (now.stop is not None) != told.stopped:
        told = msgspec.structs.replace(told, stopped=now.stop is not None)
        yield (_stop(now.stop) if now.stop is not None else None), told


def best_key(best: dict[str, Any] | None) -> str | None:
    """Return what identifies a best checkpoint: its content, and what it is the best by."""
    return f"{best['sha256']} {best['metric']}" if best else None


def ended(error: BaseException) -> Notice:
    """Return the notice that the watcher ended with an error."""
    return Notice("failed", "the watcher ended", _short(str(error) or repr(error)))


def _best(row: dict[str, Any]) -> Notice:
    message = (
        f"{row['checkpoint']} (step {row['global_step']}) is the best:"
        f" {row['metric']} {row['score']:.6g}"
    )
    keys = ("checkpoint", "global_step", "score", "metric", "path", "sha256", "evaluated_at")
    return Notice("best", "new best", message, {key: row[key] for key in keys})


def _stop(reason: str) -> Notice:
    return Notice("stop", "training should stop", _short(reason))


def _degraded(why: dict[str, str]) -> Notice:
    message = "; ".join(f"{what}: {text}" for what, text in why.items())
    return Notice("degraded", "degraded", _short(message), {"degraded": why})


def _failed(rows: list[dict[str, Any]]) -> Notice:
    shown = [
        {"checkpoint": row["checkpoint"], "reason": _short(row["message"])}
        for row in rows[:_SHOWN_FAILURES]
    ]
    texts = [f"{row['checkpoint']}: {row['reason']}" for row in shown]
    if len(rows) > len(shown):
        texts.append(f"and {len(rows) - len(shown)} more")
    title = "a checkpoint failed" if len(rows) == 1 else f"{len(rows)} checkpoints failed"
    return Notice("failed", title, _short("; ".join(texts)), {"checkpoints": shown})


def _short(text: str) -> str:
    return text if len(text) <= _TEXT_LIMIT else f"{text[: _TEXT_LIMIT - 3]}..."
