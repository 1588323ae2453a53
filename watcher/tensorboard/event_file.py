"""One event file, with the summaries that `tf.summary.scalar` and `tf.summary.image` write."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboardX.record_writer import RecordWriter

from watcher.tensorboard.points import Content, Point

_FORMAT = "brain.Event:2"
_PNG = b"\x89PNG\r\n\x1a\n"


def write_event_file(path: Path, point: Point, content: Content, *, pictures: bool) -> None:
    """Write a file that holds all of one evaluation; it is on the disk when this returns.

    Args:
        path: It is replaced.
        point: Its step and time.
        content: Its values.
        pictures: Whether to take the pictures in as well.

    Raises:
        OSError: it cannot be written.
    """
    writer = RecordWriter(str(path))
    try:
        for event in _events(point, content, pictures):
            event.wall_time = point.wall_time
            writer.write(event.SerializeToString())
        writer.flush()
    finally:
        writer.close()


def _events(point: Point, content: Content, pictures: bool) -> Iterator[Event]:
    yield Event(file_version=_FORMAT)
    # What EventAccumulator has of this step and later ones comes again, or is of the past.
    yield Event(step=point.step, session_log=SessionLog(status=SessionLog.START))
    if pictures and content.pictures:
        for tag, png in _read_pictures(Path(content.pictures)):
            yield Event(step=point.step, summary=_summary(tag, "images", _image(png)))
    for tag, value in content.scalars.items():
        tensor = TensorProto(dtype="DT_FLOAT", float_val=[value], tensor_shape=TensorShapeProto())
        yield Event(step=point.step, summary=_summary(tag, "scalars", tensor))


def _summary(tag: str, plugin: str, tensor: TensorProto) -> Summary:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin))
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])


def _image(png: bytes) -> TensorProto:
    """Return width, height and the encoded image, as the images of TensorFlow 2 are kept."""
    width, height = struct.unpack(">II", png[16:24])  # of IHDR, which always comes first
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=3)])
    values = [str(width).encode(), str(height).encode(), png]
    return TensorProto(dtype="DT_STRING", string_val=values, tensor_shape=shape)


def _read_pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (tag, PNG) in the order of their numbers; nothing where they are gone."""
    try:
        files = sorted(folder.glob("*.png"), key=lambda file: _natural(file.stem))
        for file in files:
            png = file.read_bytes()
            if png.startswith(_PNG) and len(png) > len(_PNG) + 16:
                yield file.stem, png
    except FileNotFoundError:  # the worker that drew them was replaced
        return


def _natural(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
