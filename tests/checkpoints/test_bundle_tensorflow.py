"""TensorFlow itself, the verifier and the fake trainer agree on the bytes of checkpoints."""

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import FLOAT, INT64, STRING, Entry, build_index, floats, int64, strings
from fake_trainer import write_checkpoint

from watcher.checkpoints.bundle import (
    OD_API_LAYOUT,
    model_variables,
    parse_index,
    read_index,
    verify,
)
from watcher.errors import CorruptCheckpoint

pytestmark = pytest.mark.tensorflow

PROGRAM = Path(__file__).parents[1] / "od" / "tf_bundle.py"
DTYPES = {1: "float32", 2: "float64", 6: "int8", 7: "string", 8: "complex64", 9: "int64"}
DTYPES |= {10: "bool", 14: "bfloat16", 19: "float16", 22: "uint32"}
TENSORS = {
    "model/kernel/.ATTRIBUTES/VARIABLE_VALUE": floats([1.5, -2.5, 3.25]),
    "model/square": floats([1, 2, 3, 4], (2, 2)),
    "model/empty": floats([], (0, 3)),
    "model/text": strings([b"a", b"", b"x" * 300, b"\0\xff"], (2, 2)),
    "model/no_text": strings([]),
    "counter": int64(-(1 << 60)),
}


@dataclass
class World:
    """Checkpoints by TensorFlow and by the fake trainer, and what TensorFlow reads in them."""

    tensorflow: Path
    fake: list[Path]
    answer: dict[str, Any]


@pytest.fixture(scope="module")
def world(od_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    theirs, ours = tmp_path_factory.mktemp("tensorflow"), tmp_path_factory.mktemp("fake")
    prefixes = [
        write_checkpoint(ours, "one", 1200, TENSORS),
        write_checkpoint(ours, "three", 1200, TENSORS, shards=3),
    ]
    command = [od_python, str(PROGRAM), str(theirs), *map(str, prefixes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (answer,) = re.findall(r"^ANSWER (.*)$", done.stdout, re.MULTILINE)
    yield World(theirs, prefixes, json.loads(answer))


def test_what_tensorflow_saved_verifies(world: World) -> None:
    first, second = (verify(world.tensorflow / "objects" / f"ckpt-{n}") for n in (1, 2))
    assert (first.global_step, first.model_variables) == (0, 0)
    assert (second.global_step, second.model_variables) == (12, world.answer["variables"])
    assert verify(world.tensorflow / "sliced").num_shards == 2
    assert verify(world.tensorflow / "variant").global_step is None
    wide = parse_index(read_index(world.tensorflow / "wide"))
    assert len(model_variables(wide, OD_API_LAYOUT)) == 0
    assert len(wide.entries) == 9000


@pytest.mark.parametrize("name", ["objects/ckpt-2", "sliced"])
def test_tensorflow_and_the_index_agree_on_dtypes_and_shapes(world: World, name: str) -> None:
    prefix = world.tensorflow / name
    entries = parse_index(read_index(prefix)).entries.values()
    ours = {e.key: (DTYPES[e.dtype], list(e.shape)) for e in entries if e.key[0] != "\0"}
    theirs = world.answer["values"][str(prefix)]
    assert ours == {key: (dtype, shape) for key, (dtype, shape, _) in theirs.items()}


@pytest.mark.parametrize("name", ["objects/ckpt-2", "sliced"])
def test_each_changed_byte_of_tensorflows_files_is_found(
    world: World, tmp_path: Path, name: str
) -> None:
    source = world.tensorflow / name
    copy = tmp_path / source.name
    for path in source.parent.glob(source.name + ".*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        for position in range(len(whole)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            path.write_bytes(damaged)
            with pytest.raises(CorruptCheckpoint):
                verify(copy)
        path.write_bytes(whole)
    verify(copy)


@pytest.mark.parametrize("name", ["objects/ckpt-1", "objects/ckpt-2", "wide"])
def test_fake_index_has_the_same_bytes_as_tensorflows(world: World, name: str) -> None:
    index = read_index(world.tensorflow / name)
    bundle = parse_index(index)
    entries: dict[str | bytes, Entry] = {
        key: Entry(entry.dtype, entry.shape, entry.shard, entry.offset, entry.size, entry.crc32c)
        for key, entry in bundle.entries.items()
    }
    assert build_index(bundle.num_shards, entries) == index


@pytest.mark.parametrize("number", [0, 1])
def test_tensorflow_reads_the_values_that_the_fake_wrote(world: World, number: int) -> None:
    values = dict(world.answer["values"][str(world.fake[number])])
    assert values.pop("_CHECKPOINTABLE_OBJECT_GRAPH")[0] == "string"
    saved = TENSORS | {
        "step/.ATTRIBUTES/VARIABLE_VALUE": int64(1200),
        "save_counter/.ATTRIBUTES/VARIABLE_VALUE": int64(1),
    }
    names = {FLOAT: "float32", INT64: "int64", STRING: "string"}
    assert values == {
        key: [
            names[tensor.dtype],
            list(tensor.shape),
            [text.hex() for text in tensor.strings]
            if tensor.dtype == STRING
            else tensor.data.hex(),
        ]
        for key, tensor in saved.items()
    }


def test_tensorflow_restores_objects_from_what_the_fake_wrote(world: World) -> None:
    for prefix in world.fake:
        restored = world.answer["restored"][str(prefix)]
        assert restored == {"step": 1200, "kernel": [1.5, -2.5, 3.25]}
