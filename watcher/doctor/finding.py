"""Findings: what a check has to say, in a sentence, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Severity = Literal["ok", "note", "warning", "error"]


class Finding(msgspec.Struct, frozen=True):
    """One sentence about one thing that was looked at.

    Attributes:
        check: What was looked at; stable, for programs.
        severity: `ok`; `note`, worth knowing and nothing to repair; `warning`, it works, but not
            as well as it could, or it could not be looked at; `error`, a run would fail or be
            of no use.
        remedy: What to do next, None where there is nothing to do.
    """

    check: str
    severity: Severity
    message: str
    remedy: str | None = None


def exit_code(findings: Sequence[Finding], *, strict: bool) -> int:
    """Return 1 when there is an error, or with `strict` a warning, else 0."""
    found = {finding.severity for finding in findings}
    return int("error" in found or (strict and "warning" in found))


def sizes(size_bytes: float) -> str:
    """Write bytes as people read them, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}" if unit != "bytes" else f"{size_bytes:.0f} bytes"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def duration(seconds: float) -> str:
    """Write a duration in the unit that fits it."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
