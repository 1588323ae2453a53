"""The serving process: Datasette on databases that it cannot write, on a socket it was given.

Started by file path in the interpreter that has Datasette, which may be one of another environment:
it imports nothing of checkpoint-watcher. Standard input brings one line of JSON, and its end is the
order to end, so that this process does not outlive the one that started it. It says `ready` on
standard output once requests are answered; what cannot be served is one line of JSON there.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# `python FILE` looks for modules beside FILE first, which is no place for them.
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != HERE]

_BUSY_SECONDS = 1.0
_GRACE_SECONDS = 2
_LAST_REQUESTS_SECONDS = 0.3
# Others that the environment has may write, or load from elsewhere: maps, for one.
_PLUGINS = ("datasette_dashboards", "datasette_render_markdown")
_POLICY = "; ".join(
    (
        "default-src 'none'",
        # Datasette's pages have scripts in them, and Vega compiles its expressions.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)


class Refused(Exception):
    """What the environment lacks; told to the other side."""


def main() -> None:
    """Serve until standard input ends, or a signal comes."""
    order = json.loads(sys.stdin.readline())
    try:
        application = make_application(order)
    except Refused as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)
    import uvicorn

    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        lifespan="on",
        # uvloop, where there is one, listens in its own way, which cannot be paused.
        loop="asyncio",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = make_server(config)
    threading.Thread(target=end_with_input, args=[server], daemon=True).start()
    listening = socket.socket(fileno=order["socket"])
    server.run(sockets=[listening])
    # A query that still runs in a thread of Datasette's is not worth waiting for.
    sys.stdout.flush()
    os._exit(0)


def end_with_input(server: Any) -> None:
    """Ask the server to end when standard input does."""
    while os.read(0, 1024):
        pass
    server.should_exit = True


def make_application(order: dict[str, Any]) -> Any:
    """Return Datasette as an ASGI application.

    Raises:
        Refused: it is not installed here, or in a version that is not known to work.
    """
    try:
        import datasette_dashboards  # noqa: F401
        from datasette import version
        from datasette.app import Datasette
        from datasette.plugins import DEFAULT_PLUGINS, pm
    except ImportError as error:
        raise Refused(f"{error.name or error} cannot be imported by {sys.executable}") from error
    if version.__version_info__[0] != "0" or int(version.__version_info__[1]) < 65:
        found = version.__version__
        raise Refused(f"Datasette {found} in {sys.executable} is not known to work")
    for plugin in list(pm.get_plugins()):
        name = getattr(plugin, "__name__", "")
        if name not in DEFAULT_PLUGINS and name not in _PLUGINS:
            pm.unregister(plugin)
    served = Datasette(
        files=[],
        metadata=order["metadata"],
        settings=order["settings"],
        template_dir=str(HERE / "templates"),
        static_mounts=[("watcher", str(HERE / "static"))],
    )
    served.remove_database("_memory")
    for database in order["databases"]:
        kind = database_class(frozen=database["frozen"])
        served.add_database(kind(served, path=database["path"]), name=database["name"])
    return guarded(served.app(), local=order["local"])


def database_class(*, frozen: bool) -> Any:
    """Return the class of databases that are read while others write them.

    Those that are `frozen` nobody writes, in folders that cannot be written.
    """
    from datasette.database import Database

    how = "mode=ro&immutable=1" if frozen else "mode=ro"

    class ReadOnlyDatabase(Database):  # type: ignore[misc]
        """Read-only whatever is asked of it, and never Datasette's `immutable`."""

        def connect(self, write: bool = False) -> sqlite3.Connection:
            path = Path(self.path).absolute().as_uri()
            connection = sqlite3.connect(
                f"{path}?{how}",
                uri=True,
                check_same_thread=False,
                timeout=_BUSY_SECONDS,
            )
            connection.execute("PRAGMA query_only = 1")
            self._all_file_connections.append(connection)
            return connection

    return ReadOnlyDatabase


def guarded(application: Any, *, local: bool) -> Any:
    """Wrap an application: nothing but GET, headers that forbid all that is remote.

    Args:
        application: An ASGI application.
        local: True when it is for this machine alone: then it is not served under another
            machine's name either, by which a web site could read it through the browser.
    """

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await application(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await refuse(send, 405, "this page is read-only")
            return
        if local and not names_this_machine(host_of(scope)):
            await refuse(send, 421, "this page is served under the names of this machine only")
            return

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await application(scope, receive, send_guarded)

    return answer


def host_of(scope: Any) -> str:
    """Return the name a request was addressed to, without the port."""
    host: str = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def names_this_machine(host: str) -> bool:
    """True for names and addresses by which a machine reaches itself alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


async def refuse(send: Any, code: int, text: str) -> None:
    """Answer with a line of text."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


def make_server(config: Any) -> Any:
    """Return uvicorn's server, which also says when it is ready."""
    import uvicorn

    class Saying(uvicorn.Server):  # type: ignore[misc]
        """Says `ready` once it has started, and answers at its end whom it has accepted."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                print(json.dumps({"ready": True}), flush=True)

        async def shutdown(self, sockets: Any = None) -> None:
            # uvicorn resets connections whose request it has not read yet, and asyncio those
            # that wait to be attached to a server that is closed.
            for listening in sockets or ():
                asyncio.get_running_loop().remove_reader(listening)
            await asyncio.sleep(_LAST_REQUESTS_SECONDS)
            await super().shutdown(sockets=sockets)

    return Saying(config)


if __name__ == "__main__":
    main()
