"""Writes event files: `python -m watcher.tensorboard STATE_DIR EVAL_DIR [categories]`.

Writes what the database has and EVAL_DIR lacks, and ends. It prints one line of JSON with `written`
(a number) or `problem` (a sentence); the exit code is 0 in both cases.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from watcher.errors import StoreError
from watcher.files import scratch
from watcher.store.reading import Reader, open_reader
from watcher.tensorboard.folder import arrange, folder_of
from watcher.tensorboard.points import Point, content, pictures_of, points

LOCK_NAME = "tensorboard.lock"
# Curves take little. What pictures take the trainer may need, for its checkpoints.
_ROOM_BYTES = 1 << 30
# Of older ones that one who was killed here has left, who made the pictures removes them.
_LATEST = 4
_NICENESS = 19


def update(state_dir: Path, eval_dir: Path, *, categories: bool = False) -> int:
    """Bring the event files up to date; returns how many were written.

    Args:
        state_dir: Where the database is.
        eval_dir: Where the files are, in a folder for each eval input.
        categories: Give the files that are written now each category's AP, too.

    Raises:
        StoreError: the database cannot be read.
        OSError: a file cannot be written.
        ImportError: tensorboardX is not installed.
    """
    with open_reader(state_dir) as reader:
        inputs: dict[str, list[Point]] = {}
        for point in points(reader):
            inputs.setdefault(point.name, []).append(point)
        return sum(
            _update(reader, folder_of(eval_dir, name), found, categories)
            for name, found in inputs.items()
        )


def _update(reader: Reader, folder: Path, wanted: Sequence[Point], categories: bool) -> int:
    shown_now: set[Point] = set()

    def write(point: Point, path: Path) -> None:
        # Imported when there is something to write: mostly there is not.
        from watcher.tensorboard.event_file import write_event_file

        room = shutil.disk_usage(path.parent).free > _ROOM_BYTES
        shown = content(reader, point, categories=categories)
        write_event_file(path, point, shown, pictures=room)
        shown_now.add(point)

    written = arrange(folder, wanted, write, time.time())
    # Only now, and also those that one who was killed here has left: in a file they all are.
    latest = sorted(wanted, key=lambda point: point.evaluation_id)[-_LATEST:]
    for point in shown_now.union(latest):
        # In a worker's scratch, and from nowhere else.
        if (pictures := pictures_of(reader, point)) and scratch.is_within(Path(pictures)):
            shutil.rmtree(pictures, ignore_errors=True)
    return written


def main() -> None:
    """Run the program."""
    os.nice(_NICENESS)
    state_dir, eval_dir = map(Path, sys.argv[1:3])
    answer: dict[str, object]
    try:
        # One that outlived its daemon may still be at work.
        descriptor = os.open(state_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        answer = {"written": update(state_dir, eval_dir, categories="categories" in sys.argv[3:])}
    except StoreError as error:
        answer = {"problem": error.message}
    except ImportError as error:
        answer = {"problem": f"tensorboardX cannot be imported: {error}"}
    except OSError as error:
        answer = {"problem": f"{error.filename or eval_dir}: {error.strerror or error}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
