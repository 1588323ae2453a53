"""Reads and verifies a TensorFlow checkpoint (a "tensor bundle") without TensorFlow.

A checkpoint `P` is `P.index`, a table (see `sstable`), and `P.data-SSSSS-of-NNNNN`, the
shards with the tensors' bytes. The format's source is `tensorflow/core/util/tensor_bundle/
tensor_bundle.cc` and `tensorflow/core/protobuf/tensor_bundle.proto`:

- The empty key holds a BundleHeaderProto, every other key a BundleEntryProto: dtype, shape, shard,
  offset, size, masked crc32c.
- Numbers: the crc32c is that of the bytes in the shard.
- Strings: varint64 lengths, the masked crc32c of the lengths, the strings. The crc32c covers the
  lengths as uint32 (uint64 if larger), the stored checksum and the strings.
- Variants: their size is checked, their bytes are not; no checkpoint of a model holds any.
- A partitioned tensor's entry lists its slices; each lies under a key of its own, made by
  EncodeTensorNameSlice (`tensorflow/core/util/saved_tensor_slice_util.cc`).

An index is read as a hostile one: sizes and counts are limited, nothing is allocated because a
number in it says so, and no byte of a shard is read twice.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from watcher.checkpoints.bundle_index import (
    DT_INT64,
    DT_STRING,
    DT_VARIANT,
    Bundle,
    TensorEntry,
    parse_index,
    show_key,
)
from watcher.checkpoints.sstable import crc32c, unmask
from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint
from watcher.files.slices import Work, finish

MAX_INDEX_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
_BUFFER_BYTES = 64 * 1024  # small tensors share a read, large ones pass it by
# A tensor or string that is looked at takes the time of reading so many bytes, however small.
_ITEM_BYTES = 256
# The key of a variable of tf.train.Checkpoint ends so, and that of an optimizer's slot holds this.
_VARIABLE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_SLOT_MARK = "/.OPTIMIZER_SLOT/"

Progress = Callable[[int], None]


class Layout(msgspec.Struct, frozen=True):
    """Under which keys a trainer saves what is asked of its checkpoints.

    Attributes:
        step: The global step, an int64 scalar.
        model: What the keys of the model's variables begin with.
        others: What other variables' keys begin with.
    """

    step: str
    model: str = ""
    others: tuple[str, ...] = ()

    def is_model(self, key: str) -> bool:
        """Tell whether a key is that of a variable of the model, and of no optimizer's slot."""
        return (
            key.startswith(self.model)
            and key.endswith(_VARIABLE_SUFFIX)
            and _SLOT_MARK not in key
            and not key.startswith(self.others)
        )


# model_main_tf2 saves tf.train.Checkpoint(step=..., model=..., optimizer=...).
OD_API_LAYOUT = Layout(step=f"step{_VARIABLE_SUFFIX}", model="model/")
# official.core.base_trainer saves tf.train.Checkpoint(global_step=..., model=..., optimizer=...,
# **model.checkpoint_items): the model's variables have no name in common.
MODEL_GARDEN_LAYOUT = Layout(
    step=f"global_step{_VARIABLE_SUFFIX}", others=("global_step/", "save_counter/", "optimizer/")
)


class CheckpointFacts(msgspec.Struct, frozen=True):
    """What a verified checkpoint says about itself.

    Attributes:
        sha256: Hex digest of the `.index` file, the identity of the content.
        global_step: Training steps done, None when the layout's int64 scalar was not saved.
        num_shards: Number of data files.
        size_bytes: Index and data files together.
        model_variables: Number of saved variables of the model; 0 means untrained.
    """

    sha256: str
    global_step: int | None
    num_shards: int
    size_bytes: int
    model_variables: int


def index_path(prefix: Path) -> Path:
    """Return the path of a checkpoint's index."""
    return prefix.with_name(prefix.name + ".index")


def shard_name(name: str, shard: int, num_shards: int) -> str:
    """Return the file name of a shard: `ckpt-3.data-00000-of-00001`."""
    return f"{name}.data-{shard:05d}-of-{num_shards:05d}"


def shard_sizes(bundle: Bundle) -> list[int]:
    """Return how many bytes each shard must have, in the order of the shards."""
    sizes = [0] * bundle.num_shards
    for entry in bundle.entries.values():
        if not entry.sliced:
            sizes[entry.shard] = max(sizes[entry.shard], entry.offset + entry.size)
    return sizes


def model_variables(bundle: Bundle, layout: Layout) -> list[str]:
    """List the keys of the model's variables, optimizer slots left out."""
    return [key for key in bundle.entries if layout.is_model(key)]


def read_index(prefix: Path) -> bytes:
    """Read the bytes of a checkpoint's index as they are now, whole or not.

    Raises:
        FileNotFoundError: there is none, or no longer.
        CorruptCheckpoint: it is no regular file, or larger than MAX_INDEX_BYTES.
        OSError: it cannot be read.
    """
    path = index_path(prefix)
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_INDEX_BYTES:
            raise CorruptCheckpoint(f"{path.name} is larger than {MAX_INDEX_BYTES} bytes")
        # What is written after the look at the size is left out: the end is missing then, and
        # the index shows that it is unfinished.
        return file.read(size)


def read_global_step(prefix: Path, layout: Layout) -> int | None:
    """Read a checkpoint's global step alone, from its index and eight bytes of a shard.

    Raises:
        FileNotFoundError: the checkpoint was deleted, before or meanwhile.
        IncompleteCheckpoint: the index has no end yet.
        CorruptCheckpoint: the index, or the step itself, is not what it must be.
        OSError: a file cannot be read.
    """
    bundle = parse_index(read_index(prefix))
    entry = bundle.entries.get(layout.step)
    if entry is None or entry.sliced:
        return None
    path = prefix.with_name(shard_name(prefix.name, entry.shard, bundle.num_shards))
    with _open_regular(path) as file:
        return finish(_verify_tensor(_Reader(file, path.name, None), entry, bundle.byte_order))


def verify(
    prefix: Path,
    index: bytes | None = None,
    *,
    layout: Layout = OD_API_LAYOUT,
    on_read: Progress | None = None,
) -> CheckpointFacts:
    """Check every byte of a checkpoint that its index vouches for, reading each file once.

    The length of every shard is exactly what the entries need, and every tensor has its crc32c.
    Memory is bounded by the index and a few CHUNK_BYTES. Writes nothing.

    Args:
        prefix: Path without suffix, `.../ckpt-3`.
        index: The content of the index when the caller has read it already; otherwise it is read
            from `prefix.index`.
        layout: Where the global step and the model are.
        on_read: Called with the number of bytes after each read of a shard. What it raises
            passes through, so a long verification can be watched and ended.

    Returns:
        The facts read on the way.

    Raises:
        FileNotFoundError: the checkpoint was deleted, before or meanwhile.
        IncompleteCheckpoint: it may be unfinished: the index has no end yet or a shard is missing
            although the index is there.
        CorruptCheckpoint: its bytes are not what the index says.
        OSError: a file cannot be read.
    """
    return finish(verifying(prefix, index, layout=layout, on_read=on_read))


def verifying(
    prefix: Path,
    index: bytes | None = None,
    *,
    layout: Layout,
    on_read: Progress | None = None,
) -> Work[CheckpointFacts]:
    """Do what `verify` does, yielding after each CHUNK_BYTES or what takes as long.

    The index is taken apart in one go, which MAX_INDEX_BYTES bounds: 0.1 s for 10,000 tensors.
    """
    if index is None:
        index = read_index(prefix)
    bundle = parse_index(index)
    sizes = shard_sizes(bundle)
    by_shard: list[list[TensorEntry]] = [[] for _ in sizes]
    for entry in bundle.entries.values():
        if not entry.sliced:
            by_shard[entry.shard].append(entry)
    scalars: dict[str, int] = {}
    for shard, size in enumerate(sizes):
        path = prefix.with_name(shard_name(prefix.name, shard, bundle.num_shards))
        yield from _verify_shard(
            path, prefix, size, by_shard[shard], bundle.byte_order, on_read, scalars
        )
    return CheckpointFacts(
        sha256=hashlib.sha256(index).hexdigest(),
        global_step=scalars.get(layout.step),
        num_shards=bundle.num_shards,
        size_bytes=len(index) + sum(sizes),
        model_variables=len(model_variables(bundle, layout)),
    )


def _open_regular(path: Path) -> BinaryIO:
    """Open a file without following a symlink and without waiting for a FIFO's writer."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CorruptCheckpoint(f"{path.name} is a symbolic link") from error
        if error.errno == errno.ENXIO:  # a socket
            raise CorruptCheckpoint(f"{path.name} is not a regular file") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CorruptCheckpoint(f"{path.name} is not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb", buffering=_BUFFER_BYTES)


def _verify_shard(
    path: Path,
    prefix: Path,
    size: int,
    entries: list[TensorEntry],
    byte_order: str,
    on_read: Progress | None,
    scalars: dict[str, int],
) -> Work[None]:
    """Check one shard from front to back; adds the int64 scalars in it to `scalars`."""
    try:
        file = _open_regular(path)
    except FileNotFoundError as error:
        # The manager deletes the index first, so a shard gone beside an index is no rotation.
        if not os.path.lexists(index_path(prefix)):
            raise
        raise IncompleteCheckpoint(f"{path.name} is missing, {size} bytes needed") from error
    with file:
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise CorruptCheckpoint(f"{path.name} has {found} bytes, {size} needed")
        reader = _Reader(file, path.name, on_read)
        for entry in sorted(entries, key=lambda entry: (entry.offset, entry.size)):
            value = yield from _verify_tensor(reader, entry, byte_order)
            if value is not None:
                scalars[entry.key] = value


def _verify_tensor(reader: _Reader, entry: TensorEntry, byte_order: str) -> Work[int | None]:
    """Check one tensor; return its value if it is an int64 scalar."""
    reader.start(entry)
    if reader.is_due():
        yield
    if entry.dtype == DT_VARIANT:
        reader.skip()
        return None
    value: int | None = None
    if entry.dtype == DT_STRING and entry.size:
        crc = yield from _string_crc(reader, entry, byte_order)
    elif entry.dtype == DT_INT64 and not entry.shape:
        data = reader.read(8)
        value = int(struct.unpack(f"{byte_order}q", data)[0])
        crc = crc32c(data)
    else:
        crc = yield from reader.rest_crc(0)
    if crc != entry.crc32c:
        raise CorruptCheckpoint(
            f"{reader.name}: {show_key(entry.key)} fails its checksum "
            f"({entry.size} bytes at offset {entry.offset})"
        )
    return value


def _string_crc(reader: _Reader, entry: TensorEntry, byte_order: str) -> Work[int]:
    """Return the crc32c of a string tensor, its lengths checked against its size."""
    crc = total = 0
    for _ in range(entry.num_elements):
        length = reader.varint()
        total += length
        if reader.is_due():
            yield
        packed = struct.pack(f"{byte_order}{'I' if length <= 0xFFFFFFFF else 'Q'}", length)
        crc = crc32c(packed, crc)
    length_bytes = reader.position - entry.offset
    stored = reader.read(4)
    if unmask(struct.unpack(f"{byte_order}I", stored)[0]) != crc:
        raise CorruptCheckpoint(
            f"{reader.name}: the string lengths of {show_key(entry.key)} fail their checksum"
        )
    if length_bytes + 4 + total != entry.size:
        raise CorruptCheckpoint(
            f"{reader.name}: {show_key(entry.key)} has strings of {total} bytes in all, "
            f"which does not fit its size of {entry.size}"
        )
    return (yield from reader.rest_crc(crc32c(stored, crc)))


class _Reader:
    """Reads the tensors of an open shard one after another, never beyond the current one."""

    def __init__(self, file: BinaryIO, name: str, on_read: Progress | None) -> None:
        self.name = name
        self.position = 0
        self._file = file
        self._end = 0
        self._on_read = on_read
        self._spent = 0  # bytes, or what takes as long, since the last yield

    def start(self, entry: TensorEntry) -> None:
        if entry.offset > self.position:
            self._file.seek(entry.offset)
        self.position = entry.offset
        self._end = entry.offset + entry.size

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes of the tensor."""
        data = self._file.read(min(size, self._end - self.position))
        if len(data) < size:
            end = self.position + len(data)
            raise CorruptCheckpoint(f"{self.name}: a tensor or the file ends too soon, at {end}")
        self.position += len(data)
        self._spent += len(data)
        if self._on_read:
            self._on_read(len(data))
        return data

    def is_due(self) -> bool:
        """Count one more tensor or string; True when it is time to yield."""
        self._spent += _ITEM_BYTES
        if self._spent < CHUNK_BYTES:
            return False
        self._spent = 0
        return True

    def skip(self) -> None:
        self._file.seek(self._end)
        self.position = self._end

    def rest_crc(self, crc: int) -> Work[int]:
        """Extend a crc32c by what is left of the tensor."""
        while self.position < self._end:
            crc = crc32c(self.read(min(CHUNK_BYTES, self._end - self.position)), crc)
            if self.is_due():
                yield
        return crc

    def varint(self) -> int:
        """Decode one varint64; see `watcher.checkpoints.sstable.read_varint`."""
        value = 0
        for shift in range(0, 70, 7):
            if self.position == self._end:
                break
            byte = self._file.read(1)
            if not byte:
                break
            self.position += 1
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                if value > 0xFFFFFFFFFFFFFFFF or (shift and not byte[0]):
                    break
                return value
        raise CorruptCheckpoint(f"{self.name} holds a malformed string length")
