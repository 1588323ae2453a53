"""A trainer without TensorFlow: writes checkpoints byte for byte and call for call as it does.

`write_checkpoint` and `Manager` are for tests that import this; as a program it trains nothing and
saves at an interval, so a test can have hundreds of real checkpoints in seconds:

    python tests/helpers/fake_trainer.py MODEL_DIR --saves 100 --interval 0.05 --max-to-keep 1

What it copies was read off `strace` of tf.train.CheckpointManager (TF 2.13): parts are written in
`ckpt-N_temp/` under a temporary name each, the data is renamed to where it belongs, the index is
opened with O_TRUNC and written in place, and `checkpoint` is replaced twice, with the deletion of
old checkpoints in between. Nothing is synced.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fake_bundle import (
    FLOAT,
    GRAPH_KEY,
    SUFFIX,
    Entry,
    Part,
    Tensor,
    build_index,
    int64,
    make_part,
    object_graph,
)

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
    saved: dict[str, Tensor] = {} if step is None else {f"step{SUFFIX}": int64(step)}
    saved[f"save_counter{SUFFIX}"] = int64(save_counter)
    saved.update(tensors)
    saved[GRAPH_KEY] = object_graph(key for key in saved if key.endswith(SUFFIX))
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
    # Parts that a killed trainer left keep the folder there; TensorFlow does not mind either
    # (save_restore_v2_ops.cc, MergeV2Checkpoints, only logs it).
    with contextlib.suppress(OSError):
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
        tensors[f"{key}{SUFFIX}"] = Tensor(FLOAT, (count,), data)
        tensors[f"{key}/.OPTIMIZER_SLOT/optimizer/momentum{SUFFIX}"] = Tensor(
            FLOAT, (count,), bytes(len(data))
        )
    return tensors


def train(arguments: argparse.Namespace) -> None:
    if arguments.forget_state:
        (arguments.model_dir / "checkpoint").unlink(missing_ok=True)
    manager = Manager(arguments.model_dir, arguments.max_to_keep or None)
    optimizer = {f"optimizer/iter{SUFFIX}": int64(0)}
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
