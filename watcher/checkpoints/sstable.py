"""Reads the table file that TensorFlow writes as a checkpoint's `.index`.

The format is LevelDB's table ("leveldb/doc/table_format.md"), as written by TensorFlow's own copy
of it (`tensorflow/tsl/lib/io`: `table_builder.cc`, `block_builder.cc`, `format.cc`):

    data blocks | metaindex block | index block | footer

- block: entries, then the restart offsets (uint32 each), then their count (uint32). After it one
  byte of compression type and four of masked crc32c over block and type.
- entry: varint32 bytes shared with the key before, varint32 further key bytes, varint32 value
  bytes, the key bytes, the value.
- index block: one entry a data block, its value a handle: varint64 offset, varint64 size.
- footer, 48 bytes: handle of the metaindex block, handle of the index block, zeros, magic number.

TensorFlow writes the blocks without compression and without a gap, so every byte is covered by a
checksum or has only one permitted value, and any change of one byte is found. Nothing here
allocates more than a small multiple of the input, whatever the input says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import google_crc32c

from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint

FOOTER_SIZE = 48
MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
MAX_ENTRIES = 50_000  # the largest models save some ten thousand tensors
MAX_KEY_SIZE = 16 * 1024
MAX_TOTAL_KEY_SIZE = 64 * 1024 * 1024
MAX_TOTAL_VALUE_SIZE = 4 * 1024 * 1024

_TRAILER_SIZE = 5
_MASK_DELTA = 0xA282EAD8


def unmask(masked: int) -> int:
    """Return the crc32c behind a stored one (`leveldb/util/crc32c.h`, `Unmask`)."""
    rotated = (masked - _MASK_DELTA) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def crc32c(data: bytes, start: int = 0) -> int:
    """Return the crc32c of `data`, continuing from the crc32c `start` of the bytes before it."""
    return int(google_crc32c.extend(start, data))


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Decode a base-128 varint of at most 64 bits, in its only permitted, shortest form.

    Args:
        data: Holds the varint.
        position: Where it begins.

    Returns:
        The value, below 2^64, and the position behind it.

    Raises:
        CorruptCheckpoint: `data` ends inside it, it is longer than need be or above 64 bits.
    """
    if position < len(data) and data[position] < 0x80:  # nearly all of them
        return data[position], position + 1
    value = shift = 0
    for byte in data[position : position + 10]:
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            if value > 0xFFFFFFFFFFFFFFFF or byte == 0:
                break
            return value, position
        shift += 7
    raise CorruptCheckpoint("index holds a malformed number")


def read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table in order, each block verified before its first entry.

    Args:
        data: The whole file.

    Yields:
        Key and value; keys strictly ascending, at most MAX_ENTRIES.

    Raises:
        IncompleteCheckpoint: there is no footer at the end, so the file is still being written
            or was cut.
        CorruptCheckpoint: a checksum, an offset or a limit is violated.
    """
    metaindex, index = _read_footer(data)
    position = count = key_bytes = value_bytes = 0
    last_key: bytes | None = None
    for _, value in _entries(_read_block(data, index)):
        handle, end = _read_handle(value, 0)
        if end != len(value) or handle[0] != position:
            raise CorruptCheckpoint("index does not list its blocks in order")
        position += handle[1] + _TRAILER_SIZE
        count_before = count
        for key, entry in _entries(_read_block(data, handle)):
            if last_key is not None and key <= last_key:
                raise CorruptCheckpoint("index keys are not in ascending order")
            count += 1
            key_bytes += len(key)
            value_bytes += len(entry)
            _check_limits(count, key_bytes, value_bytes)
            last_key = key
            yield key, entry
        if count == count_before:
            raise CorruptCheckpoint("index has an empty block, which TensorFlow never writes")
    if metaindex[0] != position:
        raise CorruptCheckpoint("index has bytes that belong to no block")
    _read_block(data, metaindex)


def _check_limits(count: int, key_bytes: int, value_bytes: int) -> None:
    if count > MAX_ENTRIES:
        raise CorruptCheckpoint(f"index lists more than {MAX_ENTRIES} tensors")
    if key_bytes > MAX_TOTAL_KEY_SIZE or value_bytes > MAX_TOTAL_VALUE_SIZE:
        raise CorruptCheckpoint(
            f"index has more than {MAX_TOTAL_KEY_SIZE} bytes of keys "
            f"or {MAX_TOTAL_VALUE_SIZE} bytes of values"
        )


def _read_footer(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the handles of the metaindex block and the index block."""
    if len(data) < FOOTER_SIZE:
        raise IncompleteCheckpoint(
            f"index has {len(data)} bytes, the shortest possible one has more than {FOOTER_SIZE}"
        )
    if data[-len(MAGIC) :] != MAGIC:
        raise IncompleteCheckpoint(
            f"index of {len(data)} bytes does not end in a table footer: unfinished or cut"
        )
    footer = data[-FOOTER_SIZE : -len(MAGIC)]
    metaindex, position = _read_handle(footer, 0)
    index, position = _read_handle(footer, position)
    if any(footer[position:]):
        raise CorruptCheckpoint("index footer is damaged")
    if index[0] != sum(metaindex) + _TRAILER_SIZE:
        raise CorruptCheckpoint("index footer does not point to the blocks before it")
    if sum(index) + _TRAILER_SIZE != len(data) - FOOTER_SIZE:
        raise CorruptCheckpoint(f"index of {len(data)} bytes does not have the length it states")
    return metaindex, index


def _read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """Decode a block handle (offset, size) and return the position behind it."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _read_block(data: bytes, handle: tuple[int, int]) -> bytes:
    """Return the content of a block after its checksum was found right."""
    offset, size = handle
    end = offset + size
    if end + _TRAILER_SIZE > len(data) - FOOTER_SIZE:
        raise CorruptCheckpoint(f"index block at {offset} reaches beyond the end of the file")
    content = data[offset : end + 1]
    (masked,) = struct.unpack_from("<I", data, end + 1)
    if crc32c(content) != unmask(masked):
        raise CorruptCheckpoint(f"index block at {offset} fails its checksum")
    if content[-1] == 1:
        raise CorruptCheckpoint("index is compressed with Snappy, which TensorFlow never writes")
    if content[-1] != 0:
        raise CorruptCheckpoint(f"index block has the unknown compression type {content[-1]}")
    return content[:-1]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of one block."""
    restarts = struct.unpack_from("<I", block, len(block) - 4)[0] if len(block) >= 4 else -1
    end = len(block) - 4 - 4 * restarts
    if restarts < 0 or end < 0:
        raise CorruptCheckpoint("index block is too short for its restart offsets")
    position, key = 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        value_size, position = read_varint(block, position)
        value_start = position + unshared
        if shared > len(key) or value_start + value_size > end:
            raise CorruptCheckpoint("index entry reaches beyond its block")
        if shared + unshared > MAX_KEY_SIZE:
            raise CorruptCheckpoint(f"index key is longer than {MAX_KEY_SIZE} bytes")
        key = key[:shared] + block[position:value_start]
        position = value_start + value_size
        yield key, block[value_start:position]
