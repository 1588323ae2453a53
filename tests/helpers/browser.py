"""A headless Chromium, driven through a pipe, that notes what it asks for and complains of."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import struct
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "Chromium is not here: apt-get install chromium fonts-dejavu-core"


class Browser:
    """One Chromium with one page at a time.

    Attributes:
        requested: Every URL that was asked for since the last `open`.
        complaints: What the page's console had to say of errors and warnings since then.
    """

    def __init__(self, profile: Path) -> None:
        theirs, self._writer = os.pipe()
        self._reader, answers = os.pipe()

        def as_three_and_four() -> None:
            # Copies first: one of the two may be 3 or 4 itself.
            one, other = os.dup(theirs), os.dup(answers)
            os.dup2(one, 3)
            os.dup2(other, 4)

        self._process = subprocess.Popen(
            [
                *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--disable-dev-shm-usage", "--no-first-run", "--disable-extensions"),
                *("--disable-background-networking", "--disable-component-update"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
            ],
            close_fds=False,
            pass_fds=(),
            preexec_fn=as_three_and_four,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self._left = b""
        self._number = 0
        self._session: str | None = None
        self.requested: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._number += 1
        told = {"id": self._number, "method": method, "params": arguments}
        if self._session:
            told["sessionId"] = self._session
        os.write(self._writer, json.dumps(told).encode() + b"\0")
        while True:
            said = self._next(30)
            if said.get("id") == self._number:
                assert "error" not in said, said["error"]
                result: dict[str, Any] = said["result"]
                return result

    def _next(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert select.select([self._reader], [], [], seconds)[0], "Chromium does not answer"
            more = os.read(self._reader, 1 << 20)
            assert more, "Chromium has ended"
            self._left += more
        text, _, self._left = self._left.partition(b"\0")
        said: dict[str, Any] = json.loads(text)
        self._note(said.get("method"), said.get("params", {}))
        return said

    def _note(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(str([one.get("value") for one in told["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url')}")

    def open(self, url: str, *, width: int = 1280, scheme: str = "light") -> None:
        """Go to a page as wide as this, in CSS pixels; below 500 it is a phone."""
        # What the page before still had to say is over first.
        self.call("Page.navigate", url="about:blank")
        self.until("location.href === 'about:blank'")
        self.requested, self.complaints = [], []
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=feature)
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def ask(self, script: str) -> Any:
        """Evaluate an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 20) -> Any:
        """Evaluate an expression again and again until it is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := self.ask(script):
                return value
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {script}\n{self.complaints}")

    def picture(self, file: Path) -> Picture:
        """Take a screenshot of the whole page, keep it as a file, and return it."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        file.write_bytes(base64.b64decode(shot["data"]))
        return Picture(file.read_bytes())

    def elsewhere(self) -> list[str]:
        """What was asked of other machines: neither this one, nor what the page itself holds."""
        here = ("127.0.0.1", "localhost")
        return [
            url
            for url in self.requested
            if urlsplit(url).scheme not in ("data", "blob", "file", "about")
            and urlsplit(url).hostname not in here
        ]

    def overflow(self) -> int:
        """How many CSS pixels the page is wider than the window."""
        return int(self.ask("document.documentElement.scrollWidth - innerWidth"))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        os.close(self._reader)
        os.close(self._writer)


class Picture:
    """A PNG without interlacing, as Chromium makes them."""

    def __init__(self, content: bytes) -> None:
        assert content.startswith(b"\x89PNG")
        self.width, self.height = struct.unpack(">II", content[16:24])
        packed, at = b"", 8
        while at < len(content):
            (size,) = struct.unpack(">I", content[at : at + 4])
            if content[at + 4 : at + 8] == b"IDAT":
                packed += content[at + 8 : at + 8 + size]
            at += size + 12
        lines = zlib.decompress(packed)
        step = len(lines) // self.height
        # A line that is as the one above, or of one colour, is nothing but zeros after filtering.
        drawn = [lines[n : n + step].strip(b"\0") for n in range(0, len(lines), step)]
        self.drawn_lines = sum(len(set(line)) > 4 for line in drawn)
