"""Pictures: read again what an evaluation's event file shows of single images."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from watcher.store.reading import Reader
from watcher.tensorboard.folder import files_of_ours, folder_of
from watcher.tensorboard.points import points

# A record: length, its checksum, what it holds, the checksum of that.
_LENGTH = struct.Struct("<Q")
_CHECKSUM_BYTES = 4


def read_pictures(
    reader: Reader, eval_dir: Path, evaluation_id: int, tags: Collection[str]
) -> dict[str, bytes]:
    """Return the PNGs of an evaluation that event files hold, by their tags.

    Args:
        reader: The run.
        eval_dir: Where its event files are.
        evaluation_id: Whose pictures; of two evaluations of a step the last one has them.
        tags: Which.

    Raises:
        StoreError: the database cannot be read.
        OSError: a file cannot be read.
        ImportError: tensorboardX is not installed.
    """
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, bytes] = {}
    point = next((one for one in points(reader) if one.evaluation_id == evaluation_id), None)
    if point is None:
        return found
    for file in files_of_ours(folder_of(eval_dir, point.name) / point.earlier):
        if file.identity != point.identity:
            continue
        for record in _records(file.path):
            for value in Event.FromString(record).summary.value:
                if value.tag in tags and len(value.tensor.string_val) > 2:
                    found[value.tag] = value.tensor.string_val[2]
    return found


def _records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file that was written as a whole."""
    data = path.read_bytes()
    place = 0
    while place < len(data):
        (length,) = _LENGTH.unpack_from(data, place)
        begin = place + _LENGTH.size + _CHECKSUM_BYTES
        yield data[begin : begin + length]
        place = begin + length + _CHECKSUM_BYTES
