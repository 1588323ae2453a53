"""Settings of health, metrics, notifications, the log and the end."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from watcher.config.rules import NotNegative, about

# They may hold passwords, and are neither shown nor recorded.
SECRET = ("notify", "notify_command")


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How others are told of the run, and when it ends."""

    listen: Annotated[
        int | str | None,
        about(
            "Serve /healthz, /readyz and /metrics there, on 127.0.0.1 unless HOST is given."
            " Port 0 takes a free one. Default: off.",
            "[HOST:]PORT",
        ),
    ] = None
    health_seconds: Annotated[
        float,
        about("How late the loop may be before /healthz says that it is stuck.", "SECONDS", gt=0),
    ] = 120.0
    notify: Annotated[
        tuple[str, ...],
        about(
            "Tell of a new best, early stop, degradation and failure there, with apprise.", "URL"
        ),
    ] = ()
    notify_command: Annotated[
        tuple[str, ...],
        about(
            "A program and its arguments that is run for each notice, with JSON on standard input"
            " and without a shell.",
            "PROGRAM|ARGUMENT",
        ),
    ] = ()
    notify_seconds: Annotated[
        float, about("Time that one notice may take to be delivered.", "SECONDS", gt=0)
    ] = 30.0
    notify_confirmed: Annotated[
        bool,
        about(
            "Notify of a new best only once it is better than the one told of before by more than"
            " the noise of the eval set."
        ),
    ] = False
    exit_when_idle: Annotated[
        NotNegative | None,
        about(
            "End with code 0 when nothing is pending and nothing new came for so long.",
            "SECONDS",
        ),
    ] = None
    log_format: Annotated[
        Literal["auto", "live", "human", "json"],
        about("What run prints; auto is live on a terminal, else human-readable lines."),
    ] = "auto"

    @property
    def listen_address(self) -> tuple[str, int] | None:
        """Host and port of `listen`, None when it is off."""
        return None if self.listen is None else parse_address(str(self.listen))


def parse_address(text: str) -> tuple[str, int]:
    """Read `PORT`, `HOST:PORT` or `[IPV6]:PORT`; raises ValueError with the rule."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("Expected an IPv6 address in brackets, [::1]:PORT")
    if (colon and not host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("Expected PORT or HOST:PORT, with a port from 0 to 65535")
    return host or "127.0.0.1", int(port)
