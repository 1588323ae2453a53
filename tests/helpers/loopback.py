"""Servers on the loopback address: a port for one, and a request to one."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
from collections.abc import Mapping

Reply = tuple[int, http.client.HTTPMessage | dict[str, str], bytes]


def free_port() -> int:
    """Return a port that nobody listens on.

    It lies below those that a system gives to connections, so that none takes it before, or while
    a server starts again.
    """
    drawn = random.SystemRandom()
    while True:
        port = drawn.randrange(10_000, 32_000)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def send(
    port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Reply:
    """Send one request; returns status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
