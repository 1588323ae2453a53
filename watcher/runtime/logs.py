"""What `run` prints: structured log lines, or on a terminal a live view."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO, cast

import structlog
from rich.console import ConsoleDimensions
from rich.live import Live

from watcher.runtime.output import output_of
from watcher.store.database_file import DATABASE_NAME
from watcher.store.reading import Reader
from watcher.view import make_console
from watcher.view.look import Look, Looker
from watcher.view.overview import Overview

LOG_NAME = "watcher.log"
_REFRESH_SECONDS = 0.25
_HISTORY_ROWS = 40  # more than fit on most terminals


def configure_logs(log_format: str, state_dir: Path, *, live: bool) -> None:
    """Send log lines to stderr, or to `watcher.log` while the live view holds the terminal.

    Args:
        log_format: `json` for a JSON object a line, else lines for people.
        state_dir: Folder of `watcher.log`.
        live: True while the live view is shown.
    """
    stream: TextIO = sys.stderr
    if live:
        stream = (state_dir / LOG_NAME).open("a", encoding="utf-8")
    output = output_of(stream)
    render: Callable[..., str] = structlog.dev.ConsoleRenderer(colors=stream.isatty())
    if log_format == "json":
        render = cast(Callable[..., str], structlog.processors.JSONRenderer())
    level = structlog.processors.add_log_level
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)

    def tell_lost(count: int) -> str:
        said = {"event": "lines were lost: nothing took them for a while", "lines": count}
        return f"{render(None, 'warning', stamp(None, 'warning', level(None, 'warning', said)))}\n"

    output.tell_lost = tell_lost
    structlog.configure(
        processors=[level, stamp, render],
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, output)),
        cache_logger_on_first_use=True,
    )


class LiveView:
    """The live view of a run on the terminal; does nothing when `live` is False."""

    def __init__(self, state_dir: Path, live: bool) -> None:
        self.live = live
        self._path = state_dir / DATABASE_NAME
        self._reader: Reader | None = None
        self._looker: Looker | None = None
        self._drawn: tuple[Look, ConsoleDimensions] | None = None
        self._screen: Live | None = None
        self._output = output_of(sys.stdout) if live else None
        self._refreshed = 0.0

    def __enter__(self) -> Self:
        if self.live:
            # The loop draws, and must not wait here for another program's lock.
            self._reader = Reader(self._path, timeout_seconds=0.1)
            self._looker = Looker(self._reader)
            # Refreshed by the loop alone: no thread of rich's beside the daemon.
            console = make_console(cast(TextIO, self._output))
            self._screen = Live(console=console, auto_refresh=False, transient=False)
            self._screen.start()
        return self

    def refresh(self) -> None:
        """Draw the run as it is now, at most a few times a second."""
        if self._screen and time.monotonic() - self._refreshed >= _REFRESH_SECONDS:
            self._draw()

    def _draw(self) -> None:
        # Each picture begins where the one before ended, which has to be there.
        if self._screen and self._looker and self._output and self._output.idle:
            self._refreshed = time.monotonic()
            look, size = self._looker.look(recent=_HISTORY_ROWS), self._screen.console.size
            if (look, size) != self._drawn:
                self._drawn = look, size
                self._screen.update(Overview(look, fit=True), refresh=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._screen and self._output:
            if error is None:
                self._output.drain()
                self._draw()
            self._screen.stop()
        if self._reader:
            self._reader.close()
