"""A real `checkpoint-watcher web` process on a free port, for the tests."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from watching import CLI, ROOT

DATASETTE = ROOT / ".venv-web" / "bin" / "python"


class WebPage:
    """The process; `origin` is where its page is reached, `start` the path it named."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        if not DATASETTE.exists():
            pytest.fail(f"no Datasette at {DATASETTE}: run `make test`, which installs it")
        told = [*CLI, "web", *map(str, arguments), "--port", "0", "--datasette", str(DATASETTE)]
        self.process = subprocess.Popen(
            told,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], 60)[0], "it does not start"
        self.said = self.process.stdout.readline()
        found = re.search(r"(http://\S+?)(/\S*)", self.said)
        if not found:
            raise AssertionError(self.said + self.process.communicate(timeout=60)[1])
        self.origin, self.start = found[1], found[2]

    def answer(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        """Ask for a path, and return the code and the text."""
        request = Request(self.origin + path, method=method, headers=headers)
        try:
            with urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except OSError as error:
            if not hasattr(error, "code"):
                raise
            return error.code, error.read().decode()

    def rows(self, path: str, **parameters: object) -> list[dict[str, Any]]:
        """The rows of a table, a view, a canned query, or of `sql`."""
        query = urlencode({**parameters, "_shape": "array"})
        code, text = self.answer(f"{path}.json?{query}")
        assert code == 200, text
        found: list[dict[str, Any]] = json.loads(text)
        return found

    def serving(self) -> list[int]:
        """Process ids of the children: that of Datasette."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal, and return the exit code and what stood on standard error."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        error = self.process.communicate(timeout=60)[1]
        return self.process.returncode, error
