"""What event files show: read here, and by TensorBoard's own readers, kept open as that is."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluator_client import PROGRAMS
from tensorboardX.proto.event_pb2 import Event

MAP = "DetectionBoxes_Precision/mAP"
ON = {"CHECKPOINT_WATCHER_TENSORBOARD": "true"}


def event_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*tfevents*"))


def read(folder: Path) -> list[tuple[int, str, float | bytes]]:
    """Step, tag and value of what TensorBoard shows of a folder, in the order that it reads it."""
    found: list[tuple[int, str, float | bytes]] = []
    for path in event_files(folder):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[12 + length + 4 :]
            if event.HasField("session_log"):  # it begins anew there
                found = [point for point in found if point[0] < event.step]
            for value in event.summary.value:
                tensor = value.tensor
                found.append((event.step, value.tag, (*tensor.float_val, *tensor.string_val)[-1]))
    return found


def steps(folder: Path, tag: str = MAP) -> list[int]:
    return [step for step, name, _ in read(folder) if name == tag]


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
