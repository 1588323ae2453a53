"""Decodes the `.index` of a tensor bundle into tensors; `bundle` explains the format.

The protocol buffers are BundleHeaderProto and BundleEntryProto
(`tensorflow/core/protobuf/tensor_bundle.proto`), VersionDef, TensorShapeProto and TensorSliceProto
(`tensorflow/core/framework/*.proto`), read with the few rules of the wire format that they need
("Encoding", protobuf.dev): unknown fields are passed over, the last value of a field counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import msgspec

from watcher.checkpoints.sstable import read_table, read_varint, unmask
from watcher.errors import CorruptCheckpoint

DT_STRING = 7
DT_INT64 = 9
DT_VARIANT = 21

MAX_SHARDS = 4096
MAX_RANK = 254  # TensorShape::MaxDimensions()
MAX_EXTENTS = 100_000  # dimensions of slices, all together
MAX_STRINGS = 1_000_000  # they are walked one by one; a model's checkpoint holds a handful

# Bytes an element by DataType (tensorflow/core/framework/types.proto). 4-bit types are stored in
# a byte each. References, resources and later additions are not in here and are refused.
_ITEM_SIZES = {
    **dict.fromkeys((4, 6, 10, 11, 12, 24, 25, 26, 27, 28, 29, 30), 1),
    **dict.fromkeys((5, 14, 15, 16, 17, 19), 2),
    **dict.fromkeys((1, 3, 13, 22), 4),
    **dict.fromkeys((2, 8, 9, 23), 8),
    18: 16,
}
_FORMAT_VERSION = 1  # kTensorBundleVersion

_Slice = tuple[tuple[int, int], ...]  # (start, length) a dimension, length -1 for all of it


class TensorEntry(msgspec.Struct, frozen=True):
    """One saved tensor, or one slice of a partitioned tensor.

    Attributes:
        key: The name it was saved under. Bytes that are not UTF-8 (the key of a slice has some)
            are kept as surrogate escapes.
        dtype: A DataType of `types.proto`.
        shape: Length of each dimension.
        shard: Number of the data file.
        offset: Where its bytes begin there.
        size: How many there are.
        crc32c: Their checksum, unmasked.
        sliced: The tensor is partitioned: shard, offset, size and crc32c mean nothing, the bytes
            belong to the entries of its slices.
    """

    key: str
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    sliced: bool = False

    @property
    def num_elements(self) -> int:
        """Number of elements, the product of the shape."""
        return math.prod(self.shape)


class Bundle(msgspec.Struct, frozen=True):
    """The content of an index: how many shards there are and what lies in them.

    Attributes:
        num_shards: Number of data files.
        entries: The tensors by key, in the order of the keys.
        byte_order: Of the numbers in the shards, `<` or `>` as in `struct`.
    """

    num_shards: int
    entries: dict[str, TensorEntry]
    byte_order: str = "<"


def show_key(key: str) -> str:
    """Return a key fit for a message: printable ASCII, at most 200 characters."""
    shown = key if key.isascii() and key.isprintable() else ascii(key)
    return shown if len(shown) <= 200 else shown[:197] + "..."


# On a checkpoint's way each stage asks anew, of the same bytes. Of one index alone: many may wait.
@lru_cache(maxsize=1)
def parse_index(data: bytes) -> Bundle:
    """Decode an index and check that it is consistent in itself.

    Args:
        data: The whole `.index` file.

    Returns:
        What it lists. Every entry lies in an existing shard, has the size its dtype and shape
        ask for and shares no byte with another one.

    Raises:
        IncompleteCheckpoint: the index is empty or does not have its end yet.
        CorruptCheckpoint: anything else is wrong with it.
    """
    table = read_table(data)
    first = next(table, None)
    if first is None or first[0] != b"":
        raise CorruptCheckpoint("index has no header entry")
    num_shards, byte_order = _parse_header(first[1])
    entries: dict[str, TensorEntry] = {}
    slices: dict[str, tuple[_Slice, ...]] = {}
    num_extents = num_strings = 0
    for raw_key, value in table:
        key = raw_key.decode("utf-8", "surrogateescape")
        entry, parts = _parse_entry(key, value)
        entries[key] = entry
        if parts:
            slices[key] = parts
        num_extents += sum(len(part) + 1 for part in parts)
        num_strings += entry.num_elements if entry.dtype == DT_STRING else 0
        if num_extents > MAX_EXTENTS or num_strings > MAX_STRINGS:
            raise CorruptCheckpoint(
                f"index lists more than {MAX_EXTENTS} extents of slices or {MAX_STRINGS} strings"
            )
    _check_places(num_shards, entries)
    for key, parts in slices.items():
        _check_slices(entries, entries[key], parts)
    return Bundle(num_shards, entries, byte_order)


def _parse_header(data: bytes) -> tuple[int, str]:
    """Return the number of shards and the byte order of a BundleHeaderProto."""
    fields = dict(_fields(data))
    num_shards = _number(fields.get(1, 0))
    if not 1 <= num_shards <= MAX_SHARDS:
        raise CorruptCheckpoint(f"index names {num_shards} shards, 1 to {MAX_SHARDS} are possible")
    endianness = _number(fields.get(2, 0))
    if endianness not in (0, 1):
        raise CorruptCheckpoint(f"index names the unknown byte order {endianness}")
    for number, value in _fields(_message(fields.get(3, b""))):
        # VersionDef: 2 is min_consumer, 3 lists bad_consumers, packed or one by one.
        newer = number == 2 and _number(value) > _FORMAT_VERSION
        banned = number == 3 and _FORMAT_VERSION in _numbers(value)
        if newer or banned:
            raise CorruptCheckpoint("index is of a newer format than this version can read")
    return num_shards, "<>"[endianness]


def _parse_entry(key: str, data: bytes) -> tuple[TensorEntry, tuple[_Slice, ...]]:
    """Return the tensor of a BundleEntryProto and the slices it lists."""
    numbers: dict[int, int] = {}
    shape: list[int] = []
    slices: list[_Slice] = []
    num_extents = 0
    for number, value in _fields(data):
        if number == 2:
            shape += _parse_shape(key, _message(value))
        elif number == 7:
            slices.append(_parse_slice(_message(value)))
            num_extents += len(slices[-1]) + 1
        elif number in (1, 3, 4, 5, 6):
            numbers[number] = _number(value)
        if len(shape) > MAX_RANK or num_extents > MAX_EXTENTS:
            raise CorruptCheckpoint(f"index gives {show_key(key)} too many dimensions or slices")
    entry = TensorEntry(
        key=key,
        dtype=numbers.get(1, 0),
        shape=tuple(shape),
        shard=numbers.get(3, 0),
        offset=numbers.get(4, 0),
        size=numbers.get(5, 0),
        crc32c=unmask(numbers.get(6, 0) & 0xFFFFFFFF),
        sliced=bool(slices),
    )
    _check_size(entry)
    return entry, tuple(slices)


def _parse_shape(key: str, data: bytes) -> list[int]:
    """Return the dimensions of a TensorShapeProto; a saved tensor's are all known."""
    dimensions: list[int] = []
    for number, value in _fields(data):
        if number == 3 and _number(value):
            raise CorruptCheckpoint(f"index gives {show_key(key)} a shape of unknown rank")
        if number == 2:
            sizes = [_number(size) for field, size in _fields(_message(value)) if field == 1]
            dimensions.append(sizes[-1] if sizes else 0)
            if dimensions[-1] < 0:
                raise CorruptCheckpoint(f"index gives {show_key(key)} a dimension below zero")
        if len(dimensions) > MAX_RANK:
            break
    return dimensions


def _parse_slice(data: bytes) -> _Slice:
    """Return the extents of a TensorSliceProto."""
    extents: list[tuple[int, int]] = []
    for number, value in _fields(data):
        if number == 1:
            extent = {1: 0, 2: -1}
            extent.update((field, _number(size)) for field, size in _fields(_message(value)))
            extents.append((extent[1], extent[2]))
        if len(extents) > MAX_RANK:
            raise CorruptCheckpoint("index lists a slice with too many dimensions")
    return tuple(extents)


def _check_size(entry: TensorEntry) -> None:
    """Check the dtype, and the size against dtype and shape as far as they determine it."""
    item_size = _ITEM_SIZES.get(entry.dtype)
    if item_size is None and entry.dtype not in (DT_STRING, DT_VARIANT):
        raise CorruptCheckpoint(f"index gives {show_key(entry.key)} the dtype {entry.dtype}")
    elements = entry.num_elements
    if elements >= 1 << 63:  # Python would count on, but no file can hold it
        raise CorruptCheckpoint(f"index gives {show_key(entry.key)} an impossible shape")
    if entry.sliced:
        right = entry.size >= 0
    elif item_size is not None:
        right = entry.size == elements * item_size
    elif entry.dtype == DT_STRING:  # a byte of length each, and the checksum of the lengths
        right = entry.size >= elements + 4 or entry.size == elements == 0
    else:
        right = entry.size >= elements
    if not right or not 0 <= entry.offset <= (1 << 63) - 1 - entry.size:
        raise CorruptCheckpoint(
            f"index gives {show_key(entry.key)} {entry.size} bytes at offset {entry.offset}, "
            f"which does not fit its dtype {entry.dtype} and its {elements} elements"
        )


def _check_places(num_shards: int, entries: dict[str, TensorEntry]) -> None:
    """Check that entries lie in existing shards and share no bytes, so each is read once."""
    ends: dict[int, int] = {}
    stored = [entry for entry in entries.values() if not entry.sliced]
    for entry in sorted(stored, key=lambda entry: (entry.shard, entry.offset, entry.size)):
        if not 0 <= entry.shard < num_shards:
            raise CorruptCheckpoint(
                f"index puts {show_key(entry.key)} into shard {entry.shard} of {num_shards}"
            )
        if entry.offset < ends.get(entry.shard, 0):
            raise CorruptCheckpoint(f"index lets {show_key(entry.key)} overlap another tensor")
        ends[entry.shard] = entry.offset + entry.size


def _check_slices(
    entries: dict[str, TensorEntry], whole: TensorEntry, slices: tuple[_Slice, ...]
) -> None:
    """Check that the slices of a tensor are there and add up to it."""
    elements = 0
    for part in set(slices):
        raw_key = _slice_key(whole.key.encode("utf-8", "surrogateescape"), part)
        entry = entries.get(raw_key.decode("utf-8", "surrogateescape"))
        shape = tuple(
            size if length < 0 else length
            for (_, length), size in zip(part, whole.shape, strict=False)
        )
        inside = len(part) == len(whole.shape) and all(
            length < 0 or 0 <= start <= size - length
            for (start, length), size in zip(part, whole.shape, strict=True)
        )
        if entry is None or not inside or (entry.dtype, entry.shape) != (whole.dtype, shape):
            raise CorruptCheckpoint(f"index lacks a slice of {show_key(whole.key)}")
        elements += entry.num_elements
    if elements != whole.num_elements:
        raise CorruptCheckpoint(
            f"index has slices of {elements} elements for {show_key(whole.key)}, "
            f"which has {whole.num_elements}"
        )


def _slice_key(name: bytes, extents: _Slice) -> bytes:
    """Return the key of a slice: EncodeTensorNameSlice over OrderedCode's encodings.

    Source: `tensorflow/core/lib/strings/ordered_code.cc`.
    """
    escaped = b"\x00\xff".join(part.replace(b"\xff", b"\xff\x00") for part in name.split(b"\x00"))
    rank = len(extents)
    count = rank.to_bytes((rank.bit_length() + 7) // 8, "big")
    key = b"\x00" + escaped + b"\x00\x01" + bytes((len(count),)) + count
    for start, length in extents:
        for number in (start, length) if length >= 0 else (0, -1):
            key += _ordered_signed(number)
    return key


def _ordered_signed(number: int) -> bytes:
    """Encode as OrderedCode::WriteSignedNumIncreasing: n bytes hold 7n bits with the sign.

    The first n bits say how many bytes there are, in ones, ended by a zero; negative numbers are
    the complement of that.
    """
    magnitude = ~number if number < 0 else number
    size = magnitude.bit_length() // 7 + 1
    header = ((1 << size) - 1) << (7 * size)
    encoded = (header | magnitude).to_bytes(size, "big")
    return bytes(byte ^ 0xFF for byte in encoded) if number < 0 else encoded


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the field numbers and values of one protocol buffer message."""
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = read_varint(data, position)
            yield number, value - (1 << 64) if value >> 63 else value  # int64, int32
            continue
        if wire_type == 2:
            size, position = read_varint(data, position)
        else:
            size = {1: 8, 5: 4}.get(wire_type, len(data))
        content = data[position : position + size]
        position += size
        if position > len(data):
            raise CorruptCheckpoint("index holds a malformed entry")
        yield number, content if wire_type == 2 else int.from_bytes(content, "little")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise CorruptCheckpoint("index holds text where a number belongs")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise CorruptCheckpoint("index holds a number where a message belongs")
    return value


def _numbers(value: int | bytes) -> list[int]:
    """Return the values of a repeated number, packed or single."""
    if isinstance(value, int):
        return [value]
    numbers, position = [], 0
    while position < len(value):
        number, position = read_varint(value, position)
        numbers.append(number)
    return numbers
