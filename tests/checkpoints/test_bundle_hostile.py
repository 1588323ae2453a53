"""Indexes made to hurt: every checksum is right, so the parser sees what is wrong behind it."""

import struct
import time
import tracemalloc
from collections.abc import Callable

import fake_bundle as fake
import pytest
from fake_bundle import FLOAT, STRING, Entry, build_index, build_table
from hypothesis import example, given, settings
from hypothesis import strategies as st

from watcher.checkpoints import bundle_index, sstable
from watcher.checkpoints.bundle import parse_index, shard_sizes
from watcher.errors import CorruptCheckpoint


def refused(index: bytes) -> str:
    """The reason for which an index is refused."""
    with pytest.raises(CorruptCheckpoint) as caught:
        parse_index(index)
    return str(caught.value)


def refusal(entry: Entry, num_shards: int = 1) -> str:
    return refused(build_index(num_shards, {"tensor": entry}))


@settings(max_examples=300, deadline=2000)
@given(st.binary(max_size=400), st.binary(max_size=80))
@example(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"")
def test_any_bytes_for_a_header_and_an_entry_end_in_a_reason(entry: bytes, header: bytes) -> None:
    for rows in (
        [(b"", fake.header_proto(1)), (b"key", entry)],
        [(b"", header), (b"key", Entry(FLOAT, (1,), size=4, crc=0).proto())],
    ):
        try:
            parse_index(build_table(rows))
        except CorruptCheckpoint as error:
            assert str(error).isascii()


def blocks_to_file(
    blocks: list[bytes], index_rows: list[tuple[bytes, bytes]] | None = None
) -> bytes:
    """A table of given blocks with right checksums, so that the parser sees what is in them."""
    table = bytearray()
    handles = [fake.append_block(table, block) for block in blocks]
    meta = fake.append_block(table, struct.pack("<II", 0, 1))
    index = fake.Block(1)
    for row in index_rows or [(bytes((n,)), handle) for n, handle in enumerate(handles)]:
        index.add(*row)
    footer = meta + fake.append_block(table, index.finish())
    return bytes(table) + footer.ljust(40, b"\0") + sstable.MAGIC


@pytest.mark.slow
@settings(max_examples=300, deadline=2000)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_any_bytes_for_a_block_end_in_a_reason(blocks: list[bytes]) -> None:
    with pytest.raises(CorruptCheckpoint):
        parse_index(blocks_to_file(blocks))


@pytest.mark.slow
@settings(max_examples=300, deadline=2000)
@given(
    dtype=st.integers(0, 40),
    shape=st.lists(st.integers(0, 2**63), max_size=5),
    shard=st.integers(0, 2**64 - 1),
    offset=st.integers(0, 2**64 - 1),
    size=st.integers(0, 2**64 - 1),
    slices=st.lists(st.binary(max_size=30), max_size=3),
)
def test_any_numbers_for_an_entry_end_in_a_reason(
    dtype: int, shape: list[int], shard: int, offset: int, size: int, slices: list[bytes]
) -> None:
    entry = Entry(dtype, tuple(shape), shard, offset, size, 0, tuple(slices))
    try:
        parsed = parse_index(build_index(1, {"key": entry}))
    except CorruptCheckpoint as error:
        assert str(error).isascii()
    else:
        assert all(0 <= size < 2**63 for size in shard_sizes(parsed))


def test_entries_that_do_not_fit_are_refused_with_what_is_wrong() -> None:
    assert "does not fit its dtype 1 and its 3 elements" in refusal(Entry(FLOAT, (3,), size=8))
    assert "does not fit its dtype 7" in refusal(Entry(STRING, (3,), size=6))
    assert "the dtype 20" in refusal(Entry(20, (), size=4))
    assert "the dtype 101" in refusal(Entry(101, (), size=4))
    assert "shard 1 of 1" in refusal(Entry(FLOAT, (), shard=1, size=4))
    assert "impossible shape" in refusal(Entry(FLOAT, (2**62,) * 254, size=4))
    assert "below zero" in refusal(Entry(FLOAT, (2**64 - 1,), size=4))
    assert "at offset 9223372036854775807" in refusal(Entry(FLOAT, (), offset=2**63 - 1, size=4))
    assert "too many dimensions" in refusal(Entry(FLOAT, (1,) * 255, size=4))
    assert "0 shards" in refusal(Entry(FLOAT, (), size=4), num_shards=0)
    assert "9999999 shards" in refusal(Entry(FLOAT, (), size=4), num_shards=9_999_999)
    unknown_rank = fake.field(1, FLOAT) + fake.field(2, fake.field(3, 1)) + fake.field(5, 4)
    table = build_table([(b"", fake.header_proto(1)), (b"tensor", unknown_rank)])
    assert "unknown rank" in refused(table)


def test_tensors_that_share_bytes_are_refused_so_each_byte_is_read_once() -> None:
    entries = {f"t{n}": Entry(FLOAT, (9,), 0, 4 * n, 36, 0) for n in range(3)}
    assert "t1 overlap another" in refused(build_index(1, entries))


def test_newer_format_is_refused() -> None:
    for version in (fake.field(2, 2), fake.field(3, 1), fake.field(3, b"\x05\x01")):
        header = fake.field(1, 1) + fake.field(3, fake.field(1, 2) + version)
        assert "newer format" in refused(build_table([(b"", header)]))


def test_table_without_a_header_is_refused() -> None:
    entry = Entry(FLOAT, (), size=4).proto()
    assert "no header" in refused(build_table([(b"tensor", entry)]))
    assert "no header" in refused(build_table([]))


def test_snappy_is_refused_by_name() -> None:
    content = b"any\x01"
    block = content + struct.pack("<I", fake.mask(sstable.crc32c(content)))
    footer = b"\x00\x03" + b"\x08\x03"
    table = block + block + footer.ljust(40, b"\0") + sstable.MAGIC
    assert "Snappy" in refused(table)


def test_keys_must_ascend() -> None:
    entry = Entry(FLOAT, (), size=4).proto()
    rows = [(b"", fake.header_proto(1)), (b"b", entry), (b"a", entry)]
    assert "ascending" in refused(build_table(rows))
    assert "ascending" in refused(build_table([*rows[:2], rows[1]]))


def test_block_listed_twice_is_refused() -> None:
    block = struct.pack("<II", 0, 1)
    handle = b"\x00\x08"
    table = blocks_to_file([block], [(b"a", handle), (b"b", handle)])
    assert "empty block" in refused(table)
    full = fake.Block(16)
    full.add(b"", fake.header_proto(1))
    size = bytes((len(full.finish()),))
    table = blocks_to_file([full.finish()], [(b"a", b"\x00" + size), (b"b", b"\x00" + size)])
    assert "in order" in refused(table)


def hostile_keys() -> bytes:
    """Each entry a few bytes in the file and 16 KiB of key in memory."""
    block = bytearray(b"\x00\x00" + bytes((len(fake.header_proto(1)),)) + fake.header_proto(1))
    entry = Entry(FLOAT, (0,), crc=0).proto()
    block += b"\x00" + fake.varint(16_000) + bytes((len(entry),)) + b"a" * 16_000 + entry
    for number in range(20_000):
        block += fake.varint(16_000) + b"\x03" + bytes((len(entry),))
        block += number.to_bytes(3, "big") + entry
    return blocks_to_file([bytes(block) + struct.pack("<II", 0, 1)])


def hostile_fields() -> bytes:
    """A message of millions of empty fields."""
    return build_table([(b"", fake.header_proto(1)), (b"key", b"\x48\x00" * 2_000_000)])


def hostile_dimensions() -> bytes:
    entry = fake.field(1, FLOAT) + fake.field(2, b"\x12\x00" * 2_000_000)
    return build_table([(b"", fake.header_proto(1)), (b"key", entry)])


def hostile_slices() -> bytes:
    entry = fake.field(1, FLOAT) + fake.field(2, b"") + b"\x3a\x00" * 2_000_000
    return build_table([(b"", fake.header_proto(1)), (b"key", entry)])


def hostile_extents() -> bytes:
    part = b"\x0a\x02\x08\x05" * 250
    parts = fake.field(7, part) * 4_000
    return build_table([(b"", fake.header_proto(1)), (b"key", fake.field(1, FLOAT) + parts)])


def hostile_count() -> bytes:
    entry = Entry(FLOAT, (0,), crc=0).proto()
    rows = ((f"{number:07d}".encode(), entry) for number in range(60_000))
    return build_table([(b"", fake.header_proto(1)), *rows])


def hostile_strings() -> bytes:
    return build_index(1, {"key": Entry(STRING, (2**40,), size=2**42, crc=0)})


def hostile_blocks() -> bytes:
    """As many blocks as fit, nothing in them."""
    rows = [(n.to_bytes(3, "big"), fake.varint(9 * n) + b"\x04") for n in range(60_000)]
    return blocks_to_file([struct.pack("<I", 0)] * 60_000, rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        hostile_keys,
        hostile_fields,
        hostile_dimensions,
        hostile_slices,
        hostile_extents,
        hostile_count,
        hostile_strings,
        hostile_blocks,
    ],
)
def test_hostile_index_is_bounded_in_time_and_memory(make: Callable[[], bytes]) -> None:
    index = make()
    tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        started = time.process_time()
        with pytest.raises(CorruptCheckpoint):
            parse_index(index)
        # Tracing slows it several times over; the bound is against minutes, not for speed.
        assert time.process_time() - started < 30
        assert tracemalloc.get_traced_memory()[1] < 160 * 1024 * 1024
    finally:
        tracemalloc.stop()


def extent(start: int, length: int | None) -> bytes:
    encoded = fake.field(1, start)
    if length is not None:
        encoded += b"\x10" + fake.varint(length)
    return fake.field(1, encoded)


def sliced_index(lengths: list[int], starts: list[int]) -> bytes:
    parts = tuple(extent(s, n) for s, n in zip(starts, lengths, strict=True))
    entries: dict[str | bytes, Entry] = {"row": Entry(FLOAT, (300,), slices=parts)}
    offset = 0
    for start, length in zip(starts, lengths, strict=True):
        key = bundle_index._slice_key(b"row", ((start, length),))
        entries[key] = Entry(FLOAT, (length,), 0, offset, 4 * length, 0)
        offset += 4 * length
    return build_index(1, entries)


def test_slices_must_be_there_and_add_up() -> None:
    assert len(parse_index(sliced_index([100, 200], [0, 100])).entries) == 3
    assert "slices of 250 elements" in refused(sliced_index([100, 150], [0, 100]))
    assert "lacks a slice" in refused(sliced_index([100, 200], [0, 150]))
    lonely = Entry(FLOAT, (300,), slices=(extent(0, 100), extent(100, 200)))
    assert "lacks a slice of tensor" in refusal(lonely)


@settings(max_examples=200)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=20))
def test_slice_numbers_keep_their_order_when_encoded(numbers: list[int]) -> None:
    # The property OrderedCode is named for; one wrong bit in the encoding breaks it.
    encoded = sorted(bundle_index._ordered_signed(number) for number in numbers)
    assert encoded == [bundle_index._ordered_signed(number) for number in sorted(numbers)]
