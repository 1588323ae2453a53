"""Encodes tensors and checkpoint indexes byte for byte as TensorFlow does, without TensorFlow.

Each rule names its source; `test_bundle_tensorflow.py` compares the bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import google_crc32c

FLOAT, STRING, INT64 = 1, 7, 9
_BLOCK_SIZE = 262_144  # tsl/lib/io/table_options.h
_RESTART_INTERVAL = 16
_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True)
class Tensor:
    """A value to save: its bytes, or the strings of a string tensor."""

    dtype: int
    shape: tuple[int, ...]
    data: bytes = b""
    strings: tuple[bytes, ...] = ()


def floats(values: Sequence[float], shape: tuple[int, ...] | None = None) -> Tensor:
    shape = (len(values),) if shape is None else shape
    return Tensor(FLOAT, shape, struct.pack(f"<{len(values)}f", *values))


def int64(value: int) -> Tensor:
    return Tensor(INT64, (), struct.pack("<q", value))


def strings(values: Sequence[bytes], shape: tuple[int, ...] | None = None) -> Tensor:
    return Tensor(STRING, (len(values),) if shape is None else shape, strings=tuple(values))


def mask(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*encoded, value))


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer; zero is the default of a number and left out."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value) if value else b""


def header_proto(num_shards: int, *, endianness: int = 0) -> bytes:
    return field(1, num_shards) + field(2, endianness) + field(3, field(1, 1))


@dataclass(frozen=True)
class Entry:
    """A BundleEntryProto. `crc` is not masked; `slices` holds TensorSliceProtos."""

    dtype: int
    shape: tuple[int, ...]
    shard: int = 0
    offset: int = 0
    size: int = 0
    crc: int | None = None
    slices: tuple[bytes, ...] = ()

    def proto(self) -> bytes:
        shape = b"".join(field(2, field(1, dimension)) for dimension in self.shape)
        encoded = field(1, self.dtype) + field(2, shape) + field(3, self.shard)
        encoded += field(4, self.offset) + field(5, self.size)
        if self.crc is not None:
            encoded += varint(6 << 3 | 5) + struct.pack("<I", mask(self.crc))
        return encoded + b"".join(field(7, part) for part in self.slices)


def build_index(num_shards: int, entries: Mapping[str | bytes, Entry]) -> bytes:
    """The bytes of an index, the same as TensorFlow's for the same entries."""
    rows = {key.encode() if isinstance(key, str) else key: entries[key] for key in entries}
    values = [(b"", header_proto(num_shards))]
    return build_table(values + [(key, rows[key].proto()) for key in sorted(rows)])


def build_table(rows: Iterable[tuple[bytes, bytes]], block_size: int = _BLOCK_SIZE) -> bytes:
    """A LevelDB table as TensorFlow's TableBuilder writes it."""
    table = bytearray()
    handles: list[tuple[bytes, bytes]] = []  # last key of each block, its handle
    pending = Block(_RESTART_INTERVAL)
    flushed: tuple[bytes, bytes] | None = None
    for key, value in rows:
        if flushed is not None:
            handles.append((_separator(flushed[0], key), flushed[1]))
            flushed = None
        pending.add(key, value)
        if pending.size() >= block_size:
            flushed = key, append_block(table, pending.finish())
            pending = Block(_RESTART_INTERVAL)
    if pending.last_key is not None:
        flushed = pending.last_key, append_block(table, pending.finish())
    metaindex = append_block(table, Block(_RESTART_INTERVAL).finish())
    if flushed is not None:
        handles.append((_successor(flushed[0]), flushed[1]))
    index = Block(1)
    for key, handle in handles:
        index.add(key, handle)
    footer = metaindex + append_block(table, index.finish())
    return bytes(table) + footer.ljust(40, b"\0") + _MAGIC


class Block:
    """block_builder.cc: keys share their beginning with the one before, except at restarts."""

    def __init__(self, restart_interval: int) -> None:
        self.last_key: bytes | None = None
        self._interval = restart_interval
        self._count = 0
        self._restarts = [0]
        self._data = bytearray()

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._count < self._interval:
            for ours, theirs in zip(self.last_key or b"", key, strict=False):
                if ours != theirs:
                    break
                shared += 1
        else:
            self._restarts.append(len(self._data))
            self._count = 0
        self._data += varint(shared) + varint(len(key) - shared) + varint(len(value))
        self._data += key[shared:] + value
        self._count += 1
        self.last_key = key

    def size(self) -> int:
        return len(self._data) + 4 * len(self._restarts) + 4

    def finish(self) -> bytes:
        count = len(self._restarts)
        return bytes(self._data) + struct.pack(f"<{count + 1}I", *self._restarts, count)


def append_block(table: bytearray, content: bytes) -> bytes:
    handle = varint(len(table)) + varint(len(content))
    content += b"\0"  # not compressed
    table += content + struct.pack("<I", mask(google_crc32c.value(content)))
    return handle


def _separator(start: bytes, limit: bytes) -> bytes:
    """comparator.cc, FindShortestSeparator."""
    same = 0
    while same < min(len(start), len(limit)) and start[same] == limit[same]:
        same += 1
    if same < min(len(start), len(limit)) and start[same] + 1 < min(limit[same], 256):
        return start[:same] + bytes((start[same] + 1,))
    return start


def _successor(key: bytes) -> bytes:
    """comparator.cc, FindShortSuccessor."""
    for position, byte in enumerate(key):
        if byte != 0xFF:
            return key[:position] + bytes((byte + 1,))
    return key


def encode_tensor(tensor: Tensor) -> tuple[bytes, int]:
    """The bytes of a tensor in its shard and their crc32c (tensor_bundle.cc, Write...Tensor)."""
    if tensor.dtype != STRING:
        return tensor.data, google_crc32c.value(tensor.data)
    lengths = b"".join(struct.pack("<I", len(text)) for text in tensor.strings)
    stored = struct.pack("<I", mask(google_crc32c.value(lengths)))
    text = b"".join(tensor.strings)
    data = b"".join(varint(len(text)) for text in tensor.strings) + stored + text
    return data, google_crc32c.value(lengths + stored + text)


def object_graph(keys: Iterable[str]) -> Tensor:
    """A TrackableObjectGraph in which the keys hang together, so that TensorFlow can restore."""
    tree: dict[str, dict] = {}
    leaves: dict[int, str] = {}
    for key in sorted(keys):
        node = tree
        for name in key.removesuffix(SUFFIX).split("/"):
            node = node.setdefault(name, {})
        leaves[id(node)] = key
    nodes, protos = [tree], []
    for node in nodes:  # grows while we walk it
        proto = b""
        for name, child in node.items():
            proto += field(1, field(1, len(nodes)) + field(2, name.encode()))
            nodes.append(child)
        if id(node) in leaves:
            key = leaves[id(node)].encode()
            proto += field(2, field(1, b"VARIABLE_VALUE") + field(2, key) + field(3, key))
        protos.append(field(1, proto))
    return strings([b"".join(protos)], ())


@dataclass(frozen=True)
class Part:
    """What one writer of a save contributes: the bytes of its shard and its entries."""

    data: bytes
    entries: dict[str | bytes, Entry]


def make_part(tensors: Mapping[str | bytes, Tensor]) -> Part:
    entries: dict[str | bytes, Entry] = {}
    pieces: list[bytes] = []
    offset = 0
    for key, tensor in tensors.items():
        piece, crc = encode_tensor(tensor)
        entries[key] = Entry(tensor.dtype, tensor.shape, 0, offset, len(piece), crc)
        pieces.append(piece)
        offset += len(piece)
    return Part(b"".join(pieces), entries)
