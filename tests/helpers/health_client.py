"""Asks the endpoints of a daemon over real HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from watching import Watcher, wait_until


class Client:
    """Asks the endpoints of the daemon that was started last."""

    def __init__(self, watcher: Watcher, port: int | None = None) -> None:
        if port is not None:
            self.port = port
            return
        pattern = re.compile(r"listening\s.*http://127\.0\.0\.1:(\d+)")
        found = wait_until(lambda: pattern.findall(watcher.log.read_text()), "it listens")
        self.port = int(found[-1])

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("/healthz"))
        return False

    def code(self, path: str) -> int:
        return self.ask(path)[0]

    def told(self, path: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.ask(path)[1])
        return told

    def metrics(self) -> dict[str, float]:
        """Name, with the values of its labels but `run`, to value: `checkpoints/scored`."""
        code, text = self.ask("/metrics")
        assert code == 200
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = {key: text for key, text in sample.labels.items() if key != "run"}
                name = sample.name.removeprefix("checkpoint_watcher_")
                found["/".join([name, *labels.values()])] = sample.value
        return found

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


def listen(watcher: Watcher, *flags: object, **environment: object) -> Client:
    watcher.log.unlink(missing_ok=True)
    watcher.start("--listen", 0, *flags, **environment)
    return Client(watcher)
