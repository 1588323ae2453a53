"""Checkpoints verified without TensorFlow: whole ones, damaged ones, and ones made to hurt."""

import hashlib
import os
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import fake_trainer as fake
import pytest
from fake_trainer import FLOAT, INT64, STRING, Entry, build_index, build_table, floats, int64
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from watcher import bundle, bundle_index, sstable
from watcher.bundle import model_variables, parse_index, read_index, shard_sizes, verify
from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
DATA = "ckpt-7.data-00000-of-00001"


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    tensors = {
        "model/kernel" + SUFFIX: floats([1.0, 2.0, 3.0]),
        "model/kernel/.OPTIMIZER_SLOT/optimizer/momentum" + SUFFIX: floats([0.0, 0.0, 0.0]),
        "model/name" + SUFFIX: fake.strings([b"one", b"", b"x" * 200]),
        "optimizer/iter" + SUFFIX: int64(1200),
    }
    return fake.write_checkpoint(tmp_path, "ckpt-7", 1200, tensors)


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.parent.glob(checkpoint.name + ".*"))


def reason(action: Callable[[], object]) -> str:
    with pytest.raises(CorruptCheckpoint) as caught:
        action()
    message = str(caught.value)
    assert len(message) < 500
    assert message.isascii()
    assert message.isprintable()
    return message


def index_of(entries: dict[str | bytes, Entry], num_shards: int = 1) -> bytes:
    return build_index(num_shards, entries)


def refusal(entry: Entry, num_shards: int = 1) -> str:
    return reason(lambda: parse_index(index_of({"tensor": entry}, num_shards)))


# -- whole checkpoints ---------------------------------------------------------------------------


def test_facts_of_a_whole_checkpoint(prefix: Path) -> None:
    index = prefix.with_name("ckpt-7.index").read_bytes()
    facts = verify(prefix)
    assert facts.sha256 == hashlib.sha256(index).hexdigest()
    assert facts.global_step == 1200
    assert facts.num_shards == 1
    assert facts.size_bytes == sum(path.stat().st_size for path in files_of(prefix))
    assert facts.model_variables == 2
    assert verify(prefix, index) == facts


def test_slots_and_other_objects_are_no_model_variables(prefix: Path) -> None:
    assert model_variables(parse_index(read_index(prefix))) == [
        "model/kernel" + SUFFIX,
        "model/name" + SUFFIX,
    ]


def test_global_step_is_none_when_it_was_not_saved_as_an_int64_scalar(tmp_path: Path) -> None:
    without = fake.write_checkpoint(tmp_path, "without", None, {"model/a": floats([1])})
    vector = fake.write_checkpoint(tmp_path, "vector", None, {"step" + SUFFIX: floats([1])})
    assert verify(without).global_step is None
    assert verify(vector).global_step is None


@pytest.mark.parametrize("step", [0, 1, 2**62, -1])
def test_global_step_is_read_from_any_shard(tmp_path: Path, step: int) -> None:
    tensors = {f"model/{n}{SUFFIX}": floats([n] * 50) for n in range(9)}
    checkpoint = fake.write_checkpoint(tmp_path, "ckpt-1", step, tensors, shards=4)
    facts = verify(checkpoint)
    assert (facts.global_step, facts.num_shards, facts.model_variables) == (step, 4, 9)


def test_index_may_be_given_while_the_file_is_elsewhere(prefix: Path) -> None:
    index = read_index(prefix)
    bundle.index_path(prefix).unlink()
    assert verify(prefix, index).global_step == 1200


def test_long_verification_reports_every_read_and_can_be_ended(tmp_path: Path) -> None:
    tensors = {"model/big": fake.Tensor(FLOAT, (1_000_000,), bytes(4_000_000))}
    checkpoint = fake.write_checkpoint(tmp_path, "ckpt-1", 1, tensors)
    seen: list[int] = []
    verify(checkpoint, on_read=seen.append)
    assert max(seen) <= bundle.CHUNK_BYTES
    assert sum(seen) >= 4_000_000

    def stop(size: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        verify(checkpoint, on_read=stop)


def test_memory_stays_bounded_however_large_the_tensor(tmp_path: Path) -> None:
    tensors = {"model/big": fake.Tensor(FLOAT, (8_000_000,), bytes(32_000_000))}
    checkpoint = fake.write_checkpoint(tmp_path, "ckpt-1", 1, tensors)
    tracemalloc.start()
    try:
        verify(checkpoint)
        assert tracemalloc.get_traced_memory()[1] < 5 * bundle.CHUNK_BYTES
    finally:
        tracemalloc.stop()


def test_big_endian_bundles_are_read_too(tmp_path: Path) -> None:
    step, text = struct.pack(">q", 77), b"hello"
    length = struct.pack(">I", len(text))
    stored = struct.pack(">I", fake.mask(sstable.crc32c(length)))
    words = bytes((len(text),)) + stored + text
    entries = {
        "step" + SUFFIX: Entry(INT64, (), 0, 0, 8, sstable.crc32c(step)),
        "word": Entry(STRING, (), 0, 8, len(words), sstable.crc32c(length + stored + text)),
    }
    rows = [(key.encode(), entry.proto()) for key, entry in entries.items()]
    table = build_table([(b"", fake.header_proto(1, endianness=1)), *rows])
    (tmp_path / "big.index").write_bytes(table)
    (tmp_path / "big.data-00000-of-00001").write_bytes(step + words)
    assert verify(tmp_path / "big").global_step == 77


# -- damage --------------------------------------------------------------------------------------


def test_truncated_and_padded_shards_are_named_with_both_sizes(prefix: Path) -> None:
    data = prefix.with_name(DATA)
    whole = data.read_bytes()
    for content in (whole[:-1], whole[:10], b"", whole + b"\0"):
        data.write_bytes(content)
        assert reason(lambda: verify(prefix)) == (
            f"{DATA} has {len(content)} bytes, {len(whole)} needed"
        )


def test_missing_shard_beside_an_index_is_incomplete(prefix: Path) -> None:
    prefix.with_name(DATA).unlink()
    with pytest.raises(IncompleteCheckpoint, match=f"{DATA} is missing, [0-9]+ bytes needed"):
        verify(prefix)


def test_checkpoint_deleted_meanwhile_is_gone_and_not_corrupt(prefix: Path) -> None:
    index = read_index(prefix)
    for path in files_of(prefix):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        verify(prefix)
    with pytest.raises(FileNotFoundError):
        verify(prefix, index)


def test_wrong_shard_count_is_found_by_the_missing_name(prefix: Path) -> None:
    entries = parse_index(read_index(prefix)).entries
    changed = {
        k: Entry(e.dtype, e.shape, 0, e.offset, e.size, e.crc32c) for k, e in entries.items()
    }
    bundle.index_path(prefix).write_bytes(index_of(changed, num_shards=2))
    assert "ckpt-7.data-00000-of-00002 is missing" in reason(lambda: verify(prefix))


def test_flipped_bit_in_a_tensor_names_the_tensor(prefix: Path) -> None:
    entry = parse_index(read_index(prefix)).entries["model/kernel" + SUFFIX]
    data = prefix.with_name(DATA)
    content = bytearray(data.read_bytes())
    content[entry.offset] ^= 1
    data.write_bytes(content)
    assert f"model/kernel{SUFFIX} fails its checksum (12 bytes" in reason(lambda: verify(prefix))


def test_shard_that_shrinks_while_it_is_read_is_corrupt(tmp_path: Path) -> None:
    tensors = {"model/big": fake.Tensor(FLOAT, (2_000_000,), bytes(8_000_000))}
    checkpoint = fake.write_checkpoint(tmp_path, "ckpt-1", 1, tensors)
    shard = tmp_path / "ckpt-1.data-00000-of-00001"
    assert "too soon" in reason(
        lambda: verify(checkpoint, on_read=lambda _: os.truncate(shard, 99))
    )


def test_index_cut_at_any_length_is_incomplete(prefix: Path) -> None:
    index = read_index(prefix)
    for length in range(len(index)):
        with pytest.raises(IncompleteCheckpoint):
            verify(prefix, index[:length])


@pytest.mark.parametrize("kind", ["index", "data-00000-of-00001"])
def test_only_regular_files_are_read(prefix: Path, kind: str) -> None:
    path = prefix.with_name(f"ckpt-7.{kind}")
    kept = path.rename(path.with_name("kept"))
    path.symlink_to(kept)
    assert reason(lambda: verify(prefix)) == f"{path.name} is a symbolic link"
    path.unlink()
    os.mkfifo(path)
    assert reason(lambda: verify(prefix)) == f"{path.name} is not a regular file"
    path.unlink()
    path.mkdir()
    assert reason(lambda: verify(prefix)) == f"{path.name} is not a regular file"
    path.rmdir()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(path.parent)  # the whole path may be too long for a socket
        listener.bind(path.name)
        assert reason(lambda: verify(prefix)) == f"{path.name} is not a regular file"


def test_index_larger_than_any_index_is_not_read(prefix: Path) -> None:
    with bundle.index_path(prefix).open("wb") as file:
        file.truncate(1 << 40)
    started = time.monotonic()
    assert "larger than" in reason(lambda: verify(prefix))
    assert time.monotonic() - started < 5


@settings(max_examples=300, deadline=2000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_damage_is_always_reported_and_never_accepted(
    prefix: Path, data: st.DataObject
) -> None:
    index = read_index(prefix)
    damaged = bytearray(index)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged)))
        kind = data.draw(st.sampled_from(["flip", "insert", "delete", "overwrite"]))
        if kind == "flip" and position < len(damaged):
            damaged[position] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "insert":
            damaged[position:position] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del damaged[position : position + data.draw(st.integers(1, 40))]
        else:
            new = data.draw(st.binary(min_size=1, max_size=9))
            damaged[position : position + len(new)] = new
    if bytes(damaged) == index:
        return
    with pytest.raises(CorruptCheckpoint):
        verify(prefix, bytes(damaged))


# -- hostile indexes: every checksum right, every content wrong ------------------------------------


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
    handles = [fake._append_block(table, block) for block in blocks]
    meta = fake._append_block(table, struct.pack("<II", 0, 1))
    index = fake._Block(1)
    for row in index_rows or [(bytes((n,)), handle) for n, handle in enumerate(handles)]:
        index.add(*row)
    footer = meta + fake._append_block(table, index.finish())
    return bytes(table) + footer.ljust(40, b"\0") + sstable.MAGIC


@settings(max_examples=300, deadline=2000)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_any_bytes_for_a_block_end_in_a_reason(blocks: list[bytes]) -> None:
    with pytest.raises(CorruptCheckpoint):
        parse_index(blocks_to_file(blocks))


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
        parsed = parse_index(index_of({"key": entry}))
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
    assert "unknown rank" in reason(lambda: parse_index(table))


def test_tensors_that_share_bytes_are_refused_so_each_byte_is_read_once() -> None:
    entries = {f"t{n}": Entry(FLOAT, (9,), 0, 4 * n, 36, 0) for n in range(3)}
    assert "t1 overlap another" in reason(lambda: parse_index(index_of(entries)))


def test_newer_format_is_refused() -> None:
    for version in (fake.field(2, 2), fake.field(3, 1), fake.field(3, b"\x05\x01")):
        header = fake.field(1, 1) + fake.field(3, fake.field(1, 2) + version)
        assert "newer format" in reason(lambda h=header: parse_index(build_table([(b"", h)])))


def test_table_without_a_header_is_refused() -> None:
    entry = Entry(FLOAT, (), size=4).proto()
    assert "no header" in reason(lambda: parse_index(build_table([(b"tensor", entry)])))
    assert "no header" in reason(lambda: parse_index(build_table([])))


def test_snappy_is_refused_by_name() -> None:
    content = b"any\x01"
    block = content + struct.pack("<I", fake.mask(sstable.crc32c(content)))
    footer = b"\x00\x03" + b"\x08\x03"
    table = block + block + footer.ljust(40, b"\0") + sstable.MAGIC
    assert "Snappy" in reason(lambda: parse_index(table))


def test_keys_must_ascend() -> None:
    entry = Entry(FLOAT, (), size=4).proto()
    rows = [(b"", fake.header_proto(1)), (b"b", entry), (b"a", entry)]
    assert "ascending" in reason(lambda: parse_index(build_table(rows)))
    assert "ascending" in reason(lambda: parse_index(build_table([*rows[:2], rows[1]])))


def test_block_listed_twice_is_refused() -> None:
    block = struct.pack("<II", 0, 1)
    handle = b"\x00\x08"
    table = blocks_to_file([block], [(b"a", handle), (b"b", handle)])
    assert "empty block" in reason(lambda: parse_index(table))
    full = fake._Block(16)
    full.add(b"", fake.header_proto(1))
    size = bytes((len(full.finish()),))
    table = blocks_to_file([full.finish()], [(b"a", b"\x00" + size), (b"b", b"\x00" + size)])
    assert "in order" in reason(lambda: parse_index(table))


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
    return index_of({"key": Entry(STRING, (2**40,), size=2**42, crc=0)})


def hostile_blocks() -> bytes:
    """As many blocks as fit, nothing in them."""
    rows = [(n.to_bytes(3, "big"), fake.varint(9 * n) + b"\x04") for n in range(60_000)]
    return blocks_to_file([struct.pack("<I", 0)] * 60_000, rows)


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
    try:
        started = time.process_time()
        with pytest.raises(CorruptCheckpoint):
            parse_index(index)
        # Tracing slows it several times over; the bound is against minutes, not for speed.
        assert time.process_time() - started < 30
        assert tracemalloc.get_traced_memory()[1] < 160 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_string_lengths_that_lie_are_found(tmp_path: Path) -> None:
    lengths = struct.pack("<I", 3)
    stored = struct.pack("<I", fake.mask(sstable.crc32c(lengths)))
    for words in (
        b"\x03" + stored + b"abcd",  # longer than its lengths say
        b"\x04" + stored + b"abc",  # the checksum of the lengths is wrong
        b"\x83\x80\x80\x80\x00" + b"abc",  # the lengths leave no room for their checksum
        b"\xff" * 8,  # no end
        b"\xff" * 9 + b"\x7f" + stored,  # beyond 64 bits
    ):
        crc = sstable.crc32c(lengths + stored + words[5:])
        index = index_of({"word": Entry(STRING, (), 0, 0, len(words), crc)})
        (tmp_path / "w.index").write_bytes(index)
        (tmp_path / "w.data-00000-of-00001").write_bytes(words)
        reason(lambda: verify(tmp_path / "w"))


# -- slices --------------------------------------------------------------------------------------


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
    return index_of(entries)


def test_slices_must_be_there_and_add_up() -> None:
    assert len(parse_index(sliced_index([100, 200], [0, 100])).entries) == 3
    assert "slices of 250 elements" in reason(
        lambda: parse_index(sliced_index([100, 150], [0, 100]))
    )
    assert "lacks a slice" in reason(lambda: parse_index(sliced_index([100, 200], [0, 150])))
    lonely = Entry(FLOAT, (300,), slices=(extent(0, 100), extent(100, 200)))
    assert "lacks a slice of tensor" in refusal(lonely)


@settings(max_examples=200)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=20))
def test_slice_numbers_keep_their_order_when_encoded(numbers: list[int]) -> None:
    # The property OrderedCode is named for; one wrong bit in the encoding breaks it.
    encoded = sorted(bundle_index._ordered_signed(number) for number in numbers)
    assert encoded == [bundle_index._ordered_signed(number) for number in sorted(numbers)]


# -- a trainer at work ---------------------------------------------------------------------------


def test_looking_while_a_trainer_saves_and_rotates_finds_only_whole_or_gone(tmp_path: Path) -> None:
    manager = fake.Manager(tmp_path, max_to_keep=1)
    manager.save(0, {})
    done = threading.Event()

    def train() -> None:
        for number in range(60):
            manager.save(number, fake.model_tensors(20_000, number))
        done.set()

    trainer = threading.Thread(target=train)
    trainer.start()
    verified = 0
    while not done.is_set():
        for index in tmp_path.glob("ckpt-*.index"):
            try:
                verified += bool(verify(index.with_suffix("")))
            except (FileNotFoundError, IncompleteCheckpoint):
                continue
    trainer.join()
    assert verified
