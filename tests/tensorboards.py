"""TensorBoard's own readers on a folder, kept open as TensorBoard is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluator_client import PROGRAMS


@contextmanager
def tensorboard(od_python: str, folder: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """TensorBoard's two readers on a folder, kept open; the function returns what they see now."""
    with subprocess.Popen(
        [od_python, "-W", "ignore", str(PROGRAMS / "read_events.py"), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    ) as reader:
        assert reader.stdin and reader.stdout

        def look() -> dict[str, Any]:
            assert reader.stdin and reader.stdout
            reader.stdin.write("look\n")
            reader.stdin.flush()
            seen: dict[str, Any] = json.loads(reader.stdout.readline())
            return seen

        try:
            yield look
        finally:
            reader.kill()
