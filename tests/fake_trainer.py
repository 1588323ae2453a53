"""A trainer without TensorFlow: writes checkpoints byte for byte and call for call as it does.

`write_checkpoint` and `Manager` are for tests that import this; as a program it trains nothing and
saves at an interval, so a test can have hundreds of real checkpoints in seconds:

    python tests/fake_trainer.py MODEL_DIR --saves 100 --interval 0.05 --max-to-keep 1

What it copies was read off `strace` of tf.train.CheckpointManager (TF 2.13): parts are written in
`ckpt-N_temp/` under a temporary name each, the data is renamed to where it belongs, the index is
opened with O_TRUNC and written in place, and `checkpoint` is replaced twice, with the deletion of
old checkpoints in between. Nothing is synced.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

FLOAT, STRING, INT64 = 1, 7, 9
_BLOCK_SIZE = 262_144  # tsl/lib/io/table_options.h
_RESTART_INTERVAL = 16
_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


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


# -- the index -----------------------------------------------------------------------------------


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
    pending = _Block(_RESTART_INTERVAL)
    flushed: tuple[bytes, bytes] | None = None
    for key, value in rows:
        if flushed is not None:
            handles.append((_separator(flushed[0], key), flushed[1]))
            flushed = None
        pending.add(key, value)
        if pending.size() >= block_size:
            flushed = key, _append_block(table, pending.finish())
            pending = _Block(_RESTART_INTERVAL)
    if pending.last_key is not None:
        flushed = pending.last_key, _append_block(table, pending.finish())
    metaindex = _append_block(table, _Block(_RESTART_INTERVAL).finish())
    if flushed is not None:
        handles.append((_successor(flushed[0]), flushed[1]))
    index = _Block(1)
    for key, handle in handles:
        index.add(key, handle)
    footer = metaindex + _append_block(table, index.finish())
    return bytes(table) + footer.ljust(40, b"\0") + _MAGIC


class _Block:
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


def _append_block(table: bytearray, content: bytes) -> bytes:
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


# -- the data ------------------------------------------------------------------------------------


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
        for name in key.removesuffix(_SUFFIX).split("/"):
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


# -- one save ------------------------------------------------------------------------------------


class Killed(SystemExit):
    """Raised at the stage of a save at which the trainer was told to die."""


def write_checkpoint(
    directory: Path,
    name: str,
    step: int | None,
    tensors: Mapping[str, Tensor],
    *,
    shards: int = 1,
    save_counter: int = 1,
    index_pause: float = 0.0,
    die_at: str | None = None,
) -> Path:
    """Save tensors as `directory/name`, the way CheckpointManager.save() does up to its state file.

    Args:
        step: Saved as the global step; None saves none.
        shards: Number of data files; the tensors are dealt out to them in turn.
        index_pause: Seconds between the two halves of the index, an index seen half-written.
        die_at: `temp` (parts written), `data` (data in place), `index` (half the index written).

    Returns:
        The checkpoint prefix.
    """
    directory.mkdir(parents=True, exist_ok=True)
    saved: dict[str, Tensor] = {} if step is None else {f"step{_SUFFIX}": int64(step)}
    saved[f"save_counter{_SUFFIX}"] = int64(save_counter)
    saved.update(tensors)
    saved[_GRAPH_KEY] = object_graph(key for key in saved if key.endswith(_SUFFIX))
    keys = list(saved)
    parts = [make_part({key: saved[key] for key in keys[n::shards]}) for n in range(shards)]
    temporary = directory / f"{name}_temp"
    temporary.mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        _write_part(temporary / f"part-{number:05d}-of-{shards:05d}", part)
    _die_if(die_at, "temp")
    _merge(directory / name, temporary, parts, index_pause, die_at)
    return directory / name


def _write_part(prefix: Path, part: Part) -> None:
    for suffix, content in (
        ("data-00000-of-00001", part.data),
        ("index", build_index(1, part.entries)),
    ):
        final = prefix.with_name(f"{prefix.name}.{suffix}")
        unfinished = final.with_name(f"{final.name}.tempstate{random.getrandbits(64)}")
        with unfinished.open("wb", buffering=0) as file:
            _write_all(file, content)
        unfinished.rename(final)


def _merge(
    prefix: Path, temporary: Path, parts: list[Part], pause: float, die_at: str | None
) -> None:
    """tensor_bundle.cc, MergeBundles: data by rename, then the index in place."""
    shards = len(parts)
    merged: dict[str | bytes, Entry] = {}
    for number, part in enumerate(parts):
        for key, entry in part.entries.items():
            merged[key] = Entry(**{**vars(entry), "shard": number})
    names = [f"part-{number:05d}-of-{shards:05d}" for number in range(shards)]
    for number, name in enumerate(names):
        final = prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{shards:05d}")
        (temporary / f"{name}.data-00000-of-00001").rename(final)
    _die_if(die_at, "data")
    index = build_index(shards, merged)
    with prefix.with_name(f"{prefix.name}.index").open("wb", buffering=0) as file:
        half = len(index) // 2 if pause or die_at == "index" else 0
        _write_all(file, index[:half])
        _die_if(die_at, "index")
        time.sleep(pause)
        _write_all(file, index[half:])
    for name in names:
        (temporary / f"{name}.index").unlink()
    temporary.rmdir()


def _write_all(file, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _die_if(die_at: str | None, stage: str) -> None:
    if die_at == stage:
        raise Killed(f"died at {stage}, as asked")


class Manager:
    """tf.train.CheckpointManager: rotation and the state file.

    A manager made where a `checkpoint` file lies goes on from there, one made where there is none
    begins again at ckpt-1 and reuses names, as the real one does.
    """

    def __init__(self, directory: Path, max_to_keep: int | None = 7) -> None:
        self.directory = directory
        self.max_to_keep = max_to_keep
        self.kept: dict[str, float] = {}
        self._created = time.time()
        state = directory / "checkpoint"
        if state.is_file():
            lines = [line.split(": ", 1) for line in state.read_text().splitlines()]
            names = [text.strip('"') for key, text in lines if key.endswith("_checkpoint_paths")]
            times = [float(text) for key, text in lines if key.endswith("_timestamps")]
            self.kept = dict(zip(names, times, strict=True))

    @property
    def save_counter(self) -> int:
        """Number of the latest save, 0 when there is none."""
        return int(list(self.kept)[-1].removeprefix("ckpt-")) if self.kept else 0

    def save(self, step: int | None, tensors: Mapping[str, Tensor], **options) -> Path:
        """Save as the next number, then rotate; `options` are those of write_checkpoint."""
        number = self.save_counter + 1
        prefix = write_checkpoint(
            self.directory, f"ckpt-{number}", step, tensors, save_counter=number, **options
        )
        self.kept.pop(prefix.name, None)
        self.kept[prefix.name] = time.time()
        self._write_state()
        while self.max_to_keep and len(self.kept) > self.max_to_keep:
            oldest = next(iter(self.kept))
            del self.kept[oldest]
            (self.directory / f"{oldest}.index").unlink(missing_ok=True)
            for shard in sorted(self.directory.glob(f"{oldest}.data-*-of-*")):
                shard.unlink(missing_ok=True)
        self._write_state()
        return prefix

    def _write_state(self) -> None:
        lines = [f'model_checkpoint_path: "{list(self.kept)[-1]}"']
        lines += [f'all_model_checkpoint_paths: "{name}"' for name in self.kept]
        lines += [f"all_model_checkpoint_timestamps: {when!r}" for when in self.kept.values()]
        lines.append(f"last_preserved_timestamp: {self._created!r}")
        unfinished = self.directory / f"checkpoint.tmp{random.getrandbits(128):032x}"
        unfinished.write_text("\n".join(lines) + "\n")
        unfinished.rename(self.directory / "checkpoint")


# -- the program ---------------------------------------------------------------------------------


def model_tensors(size_bytes: int, seed: int | str, variables: int = 8) -> dict[str, Tensor]:
    """Variables of a model and their optimizer slots, finite floats that differ by seed."""
    numbers = random.Random(seed)
    tensors: dict[str, Tensor] = {}
    for number in range(variables):
        block = struct.pack("<1024f", *(numbers.uniform(-1, 1) for _ in range(1024)))
        count = max(size_bytes // (2 * variables), 4) // 4
        data = (block * (4 * count // len(block) + 1))[: 4 * count]
        key = f"model/_feature_extractor/layer-{number}/kernel"
        tensors[f"{key}{_SUFFIX}"] = Tensor(FLOAT, (count,), data)
        tensors[f"{key}/.OPTIMIZER_SLOT/optimizer/momentum{_SUFFIX}"] = Tensor(
            FLOAT, (count,), bytes(len(data))
        )
    return tensors


def train(arguments: argparse.Namespace) -> None:
    if arguments.forget_state:
        (arguments.model_dir / "checkpoint").unlink(missing_ok=True)
    manager = Manager(arguments.model_dir, arguments.max_to_keep or None)
    optimizer = {f"optimizer/iter{_SUFFIX}": int64(0)}
    step = arguments.first_step
    if step is None:
        trained = max(manager.save_counter - arguments.untrained_first, 0)
        step = trained * arguments.steps_per_save
    last = manager.save_counter + arguments.saves
    for number in range(manager.save_counter + 1, last + 1):
        untrained = number == 1 and arguments.untrained_first
        step += 0 if untrained else arguments.steps_per_save
        tensors = (
            optimizer
            if untrained
            else optimizer
            | model_tensors(int(arguments.megabytes * 1_000_000), f"{arguments.seed}/{number}")
        )
        manager.save(
            step,
            tensors,
            shards=arguments.shards,
            index_pause=arguments.index_pause,
            die_at=arguments.die_at if number == last else None,
        )
        print(f"ckpt-{number} step {step} at {time.time():.6f}", flush=True)
        if number < last:
            time.sleep(arguments.interval)


def parser() -> argparse.ArgumentParser:
    program = argparse.ArgumentParser(description="Save checkpoints as TensorFlow does.")
    add = program.add_argument
    add("model_dir", type=Path)
    add("--saves", type=int, default=5, help="checkpoints to save in this run")
    add("--interval", type=float, default=0.1, help="seconds between two saves")
    add("--max-to-keep", type=int, default=7, help="0 keeps all")
    add("--megabytes", type=float, default=0.05, help="size of a checkpoint")
    add("--shards", type=int, default=1)
    add("--steps-per-save", type=int, default=100)
    add("--first-step", type=int, help="steps done before this run, instead of counting saves")
    add(
        "--untrained-first",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="save ckpt-1 at step 0 without the model, as model_main_tf2 does",
    )
    add(
        "--forget-state",
        action="store_true",
        help="delete the checkpoint file first: names are used again, indexes rewritten in place",
    )
    add("--seed", default="0", help="other seeds give other values under the same names")
    add("--index-pause", type=float, default=0.0, help="seconds for which an index is half there")
    add("--die-at", choices=("temp", "data", "index"), help="die there during the last save")
    return program


if __name__ == "__main__":
    train(parser().parse_args(sys.argv[1:]))
