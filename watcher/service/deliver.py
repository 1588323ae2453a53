"""Deliver: sends one notice with apprise. A program of its own, run by file path.

Standard input: one JSON object, `urls` (apprise's addresses), and unless they are only to be
checked `title`, `body` and `type` (info, success, warning or failure). It ends with code 0 when all
took it; else with 1, and standard error ends with why. Code 2: apprise is not installed; code 3:
one of `urls` is none, whose number is the last line.

In the daemon apprise would take 20 MiB, and a service that does not answer would hold a thread.
"""

from __future__ import annotations

import json
import logging
import os
import sys


def main() -> int:
    """Do what standard input asks for."""
    os.nice(10)
    request = json.load(sys.stdin)
    # What fails is said by apprise's log alone.
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        import apprise
    except ImportError:
        return 2
    sender = apprise.Apprise()
    for number, url in enumerate(request["urls"], start=1):
        if not sender.add(url):
            print(number, file=sys.stderr)
            return 3
    if "body" not in request:
        return 0
    sent = sender.notify(
        body=request["body"],
        title=request["title"],
        notify_type=apprise.NotifyType(request["type"]),
        body_format=apprise.NotifyFormat.TEXT,
    )
    return 0 if sent else 1


if __name__ == "__main__":
    sys.exit(main())
