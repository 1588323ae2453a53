"""HTTP: a small server that answers GET on a few paths, and that nobody can use up.

A connection may last `REQUEST_SECONDS` in all, and of more than `CONNECTIONS` the oldest are cut,
so that clients that say nothing, or never stop, do not lock out the one that asks for /healthz.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from watcher.errors import ListenError

REQUEST_SECONDS = 5.0
CONNECTIONS = 16
_TICK_SECONDS = 0.5


class Answer(msgspec.Struct, frozen=True):
    """What a path answers: a status code, a content type and a body."""

    code: int
    content_type: str
    body: bytes


Respond = Callable[[str], Answer]
"""Takes the request's Accept header; may take a while, and must not raise."""


class HttpServer:
    """The server and its thread; a context manager."""

    def __init__(self, host: str, port: int, paths: Mapping[str, Respond]) -> None:
        """Take the address; requests are answered from `__enter__` on.

        Args:
            host: Name or address to listen on.
            port: 0 for one that is free.
            paths: Path to what answers it.

        Raises:
            ListenError: the address is in use, not one of this machine, or not allowed.
        """
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            family, *_, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _Server(family, address, dict(paths))
        except OSError as error:
            hint = "give an address of this machine, 0.0.0.0 for all it has, and a port above 1023"
            if error.errno == errno.EADDRINUSE:
                hint = "another program uses that port; give --listen another one, or 0 for any"
            raise ListenError(
                f"cannot listen on {shown}: {error.strerror or error}", hint=hint
            ) from error
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    @property
    def url(self) -> str:
        """Where it is reached, with the port that was taken."""
        host, port = self._server.server_address[:2]
        return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=_TICK_SECONDS)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, family: int, address: Any, paths: dict[str, Respond]) -> None:
        self.address_family = family
        self.paths = paths
        self._opened: dict[Any, float] = {}  # the order is that of their age
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks the name service for this machine's name.
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            while len(self._opened) >= CONNECTIONS:
                self._cut(next(iter(self._opened)))
            self._opened[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        oldest = time.monotonic() - REQUEST_SECONDS
        with self._lock:
            for request in [one for one, opened in self._opened.items() if opened < oldest]:
                self._cut(request)

    def _cut(self, request: Any) -> None:
        """End a connection; its thread finds that out and closes it."""
        del self._opened[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._opened.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away, or is cut, is no concern of the operator's."""


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS
    server: _Server

    def do_GET(self) -> None:
        respond = self.server.paths.get(urlsplit(self.path).path)
        if respond is None:
            known = " ".join(self.server.paths)
            answer = Answer(404, "text/plain; charset=utf-8", f"there are: {known}\n".encode())
        else:
            answer = respond(self.headers.get("Accept", ""))
        self.send_response(answer.code)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET

    def version_string(self) -> str:
        """Name the program, not the Python it runs on."""
        return "checkpoint-watcher"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: probes ask every few seconds."""
