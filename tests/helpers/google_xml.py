"""Writes by Google's XML API, told to a server that takes them by its JSON API alone.

fake-gcs-server lists and reads by both. The forms are those of Google's reference of the XML API:
PUT and DELETE of an object, `x-goog-if-generation-match`, and the requests of an upload in parts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote, urlsplit
from uuid import uuid4

from loopback import Reply, send


@dataclass
class XmlWrites:
    """The writes of one server on loopback."""

    port: int
    _parts: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def take(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Reply | None:
        """Return the reply to a write; None for anything else, which the server understands.

        Args:
            method: The request's.
            path: As it came, with its query.
            body: What came with it.
            headers: Names in small letters.
        """
        address = urlsplit(path)
        asked = parse_qs(address.query, keep_blank_values=True)
        bucket, _, name = unquote(address.path).lstrip("/").partition("/")
        if not name or method not in ("PUT", "POST", "DELETE"):
            return None
        upload = asked.get("uploadId", [""])[0]
        if "uploads" in asked:
            self._parts[made := uuid4().hex] = {}
            return 200, {}, _xml("InitiateMultipartUploadResult", UploadId=made)
        if "partNumber" in asked:
            number = int(asked["partNumber"][0])
            self._parts[upload][number] = body
            return 200, {"etag": f'"{number}"'}, b""
        if upload and method == "DELETE":
            del self._parts[upload]
            return 204, {}, b""
        if upload:
            whole = b"".join(part for _, part in sorted(self._parts.pop(upload).items()))
            status, had, said = self._insert(bucket, name, whole, headers)
            etag = had.get("etag", "")
            return status, had, said or _xml("CompleteMultipartUploadResult", ETag=etag)
        if method == "DELETE":
            there = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
            return send(self.port, "DELETE", there)
        return self._insert(bucket, name, body, headers)

    def _insert(self, bucket: str, name: str, body: bytes, headers: dict[str, str]) -> Reply:
        # Of the ways to upload it is this one whose conditions the server heeds.
        there = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart&name={quote(name, safe='')}"
        if (generation := headers.get("x-goog-if-generation-match")) is not None:
            there += f"&ifGenerationMatch={generation}"
        edge = uuid4().hex
        head = f"--{edge}\r\nContent-Type: application/json\r\n\r\n{json.dumps({'name': name})}"
        head += f"\r\n--{edge}\r\nContent-Type: application/octet-stream\r\n\r\n"
        whole = head.encode() + body + f"\r\n--{edge}--\r\n".encode()
        kind = {"Content-Type": f"multipart/related; boundary={edge}"}
        status, _, said = send(self.port, "POST", there, whole, kind)
        if status != 200:
            return status, {}, said
        _, had, _ = send(self.port, "HEAD", f"/{bucket}/{quote(name)}")
        return 200, {name: had[name] for name in ("etag", "x-goog-generation") if name in had}, b""


def _xml(kind: str, **values: str) -> bytes:
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
    return f"<{kind}><Bucket>b</Bucket><Key>k</Key>{inner}</{kind}>".encode()
