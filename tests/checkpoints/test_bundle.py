"""Checkpoints verified without TensorFlow: whole ones, damaged ones, and ones still at work."""

import hashlib
import os
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_bundle import (
    FLOAT,
    INT64,
    STRING,
    SUFFIX,
    Entry,
    Tensor,
    build_index,
    build_table,
    floats,
    header_proto,
    int64,
    mask,
    strings,
)
from fake_trainer import Manager, model_tensors, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from watcher.checkpoints import bundle
from watcher.checkpoints.bundle import (
    OD_API_LAYOUT,
    model_variables,
    parse_index,
    read_index,
    verify,
)
from watcher.checkpoints.sstable import crc32c
from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint

DATA = "ckpt-7.data-00000-of-00001"


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    tensors = {
        "model/kernel" + SUFFIX: floats([1.0, 2.0, 3.0]),
        "model/kernel/.OPTIMIZER_SLOT/optimizer/momentum" + SUFFIX: floats([0.0, 0.0, 0.0]),
        "model/name" + SUFFIX: strings([b"one", b"", b"x" * 200]),
        "optimizer/iter" + SUFFIX: int64(1200),
    }
    return write_checkpoint(tmp_path, "ckpt-7", 1200, tensors)


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
    assert model_variables(parse_index(read_index(prefix)), OD_API_LAYOUT) == [
        "model/kernel" + SUFFIX,
        "model/name" + SUFFIX,
    ]


def test_global_step_is_none_when_it_was_not_saved_as_an_int64_scalar(tmp_path: Path) -> None:
    without = write_checkpoint(tmp_path, "without", None, {"model/a": floats([1])})
    vector = write_checkpoint(tmp_path, "vector", None, {"step" + SUFFIX: floats([1])})
    assert verify(without).global_step is None
    assert verify(vector).global_step is None


@pytest.mark.parametrize("step", [0, 1, 2**62, -1])
def test_global_step_is_read_from_any_shard(tmp_path: Path, step: int) -> None:
    tensors = {f"model/{n}{SUFFIX}": floats([n] * 50) for n in range(9)}
    checkpoint = write_checkpoint(tmp_path, "ckpt-1", step, tensors, shards=4)
    facts = verify(checkpoint)
    assert (facts.global_step, facts.num_shards, facts.model_variables) == (step, 4, 9)


def test_index_may_be_given_while_the_file_is_elsewhere(prefix: Path) -> None:
    index = read_index(prefix)
    bundle.index_path(prefix).unlink()
    assert verify(prefix, index).global_step == 1200


def test_long_verification_reports_every_read_and_can_be_ended(tmp_path: Path) -> None:
    tensors = {"model/big": Tensor(FLOAT, (1_000_000,), bytes(4_000_000))}
    checkpoint = write_checkpoint(tmp_path, "ckpt-1", 1, tensors)
    seen: list[int] = []
    verify(checkpoint, on_read=seen.append)
    assert max(seen) <= bundle.CHUNK_BYTES
    assert sum(seen) >= 4_000_000

    def stop(size: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        verify(checkpoint, on_read=stop)


def test_memory_stays_bounded_however_large_the_tensor(tmp_path: Path) -> None:
    tensors = {"model/big": Tensor(FLOAT, (8_000_000,), bytes(32_000_000))}
    checkpoint = write_checkpoint(tmp_path, "ckpt-1", 1, tensors)
    tracemalloc.start()
    tracemalloc.reset_peak()
    try:
        verify(checkpoint)
        assert tracemalloc.get_traced_memory()[1] < 5 * bundle.CHUNK_BYTES
    finally:
        tracemalloc.stop()


def test_big_endian_bundles_are_read_too(tmp_path: Path) -> None:
    step, text = struct.pack(">q", 77), b"hello"
    length = struct.pack(">I", len(text))
    stored = struct.pack(">I", mask(crc32c(length)))
    words = bytes((len(text),)) + stored + text
    entries = {
        "step" + SUFFIX: Entry(INT64, (), 0, 0, 8, crc32c(step)),
        "word": Entry(STRING, (), 0, 8, len(words), crc32c(length + stored + text)),
    }
    rows = [(key.encode(), entry.proto()) for key, entry in entries.items()]
    table = build_table([(b"", header_proto(1, endianness=1)), *rows])
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
    bundle.index_path(prefix).write_bytes(build_index(2, changed))
    assert "ckpt-7.data-00000-of-00002 is missing" in reason(lambda: verify(prefix))


def test_flipped_bit_in_a_tensor_names_the_tensor(prefix: Path) -> None:
    entry = parse_index(read_index(prefix)).entries["model/kernel" + SUFFIX]
    data = prefix.with_name(DATA)
    content = bytearray(data.read_bytes())
    content[entry.offset] ^= 1
    data.write_bytes(content)
    assert f"model/kernel{SUFFIX} fails its checksum (12 bytes" in reason(lambda: verify(prefix))


def test_shard_that_shrinks_while_it_is_read_is_corrupt(tmp_path: Path) -> None:
    tensors = {"model/big": Tensor(FLOAT, (2_000_000,), bytes(8_000_000))}
    checkpoint = write_checkpoint(tmp_path, "ckpt-1", 1, tensors)
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
    assert time.monotonic() - started < 60


@pytest.mark.slow
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


def test_string_lengths_that_lie_are_found(tmp_path: Path) -> None:
    lengths = struct.pack("<I", 3)
    stored = struct.pack("<I", mask(crc32c(lengths)))
    for words in (
        b"\x03" + stored + b"abcd",  # longer than its lengths say
        b"\x04" + stored + b"abc",  # the checksum of the lengths is wrong
        b"\x83\x80\x80\x80\x00" + b"abc",  # the lengths leave no room for their checksum
        b"\xff" * 8,  # no end
        b"\xff" * 9 + b"\x7f" + stored,  # beyond 64 bits
    ):
        crc = crc32c(lengths + stored + words[5:])
        index = build_index(1, {"word": Entry(STRING, (), 0, 0, len(words), crc)})
        (tmp_path / "w.index").write_bytes(index)
        (tmp_path / "w.data-00000-of-00001").write_bytes(words)
        reason(lambda: verify(tmp_path / "w"))


# -- a trainer at work ---------------------------------------------------------------------------


@pytest.mark.slow
def test_looking_while_a_trainer_saves_and_rotates_finds_only_whole_or_gone(tmp_path: Path) -> None:
    manager = Manager(tmp_path, max_to_keep=1)
    manager.save(0, {})
    done = threading.Event()

    def train() -> None:
        for number in range(60):
            manager.save(number, model_tensors(20_000, number))
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
