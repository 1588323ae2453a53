"""A pin is private, verified and whole, or it is not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors, write_checkpoint
from folder_source import scan

from watcher.checkpoints.bundle import verify
from watcher.checkpoints.bundle_format import OD_API
from watcher.checkpoints.pin import has_all_files, identify, pin, release, sweep
from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint, PinError


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    folder = tmp_path / "pins"
    folder.mkdir()
    return folder


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return tmp_path / "model_dir"


def save(model_dir: Path, seed: str = "0", **options: object) -> Path:
    return write_checkpoint(model_dir, "ckpt-2", 100, model_tensors(50_000, seed), **options)


def test_data_is_linked_and_the_index_copied(model_dir: Path, pins: Path):
    prefix = save(model_dir, shards=2)
    taken = pin(scan(model_dir)[0], pins, OD_API)
    assert taken.method == "link"
    assert taken.global_step == 100 and taken.model_variables == 8
    for shard in range(2):
        name = f"ckpt-2.data-{shard:05d}-of-00002"
        assert (taken.prefix.parent / name).samefile(model_dir / name)
    index = taken.prefix.with_name("ckpt-2.index")
    assert not index.samefile(prefix.with_name("ckpt-2.index"))
    assert taken.prefix.parent.name == taken.sha256 == identify(scan(model_dir)[0])


def test_a_pin_outlives_rotation(model_dir: Path, pins: Path):
    manager = Manager(model_dir, max_to_keep=1)
    manager.save(100, model_tensors(50_000, "a"))
    taken = pin(scan(model_dir)[0], pins, OD_API)
    manager.save(200, model_tensors(50_000, "b"))
    assert [found.name for found in scan(model_dir)] == ["ckpt-2"]
    assert verify(taken.prefix).global_step == 100


def test_a_pin_is_unchanged_when_the_trainer_reuses_the_name_and_the_inode(
    model_dir: Path, pins: Path
):
    save(model_dir, "first run")
    inode = (model_dir / "ckpt-2.index").stat().st_ino
    first = pin(scan(model_dir)[0], pins, OD_API)
    save(model_dir, "second run")
    assert (model_dir / "ckpt-2.index").stat().st_ino == inode
    second = pin(scan(model_dir)[0], pins, OD_API)
    assert first.sha256 != second.sha256
    assert verify(first.prefix).sha256 == first.sha256
    assert verify(second.prefix).sha256 == second.sha256


def test_pinning_twice_gives_the_same_pin(model_dir: Path, pins: Path):
    save(model_dir)
    assert pin(scan(model_dir)[0], pins, OD_API) == pin(scan(model_dir)[0], pins, OD_API)
    assert len(list(pins.iterdir())) == 1


def test_the_same_content_under_another_name_leaves_the_pin_of_the_first_as_it_is(
    model_dir: Path, pins: Path
):
    save(model_dir)
    first = pin(scan(model_dir)[0], pins, OD_API)
    for path in model_dir.glob("ckpt-2.*"):
        path.rename(path.with_name(path.name.replace("ckpt-2", "ckpt-3")))
    again = pin(scan(model_dir)[0], pins, OD_API)
    assert again == first and verify(first.prefix).sha256 == first.sha256


def test_a_bit_flipped_in_the_data_is_found_and_leaves_no_pin(model_dir: Path, pins: Path):
    data = save(model_dir).with_name("ckpt-2.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match="fails its checksum"):
        pin(scan(model_dir)[0], pins, OD_API)
    assert list(pins.iterdir()) == []


def test_a_half_written_index_is_incomplete_and_leaves_no_pin(model_dir: Path, pins: Path):
    with pytest.raises(SystemExit):
        save(model_dir, die_at="index")
    with pytest.raises(IncompleteCheckpoint):
        pin(scan(model_dir)[0], pins, OD_API)
    assert list(pins.iterdir()) == []


def test_a_checkpoint_deleted_meanwhile_is_gone_and_leaves_no_pin(model_dir: Path, pins: Path):
    prefix = save(model_dir)
    found = scan(model_dir)[0]
    prefix.with_name("ckpt-2.index").unlink()
    with pytest.raises(FileNotFoundError):
        pin(found, pins, OD_API)
    assert list(pins.iterdir()) == []


def test_a_shard_that_is_a_symlink_out_of_model_dir_is_refused(
    model_dir: Path, pins: Path, tmp_path: Path
):
    data = save(model_dir).with_name("ckpt-2.data-00000-of-00001")
    outside = data.rename(tmp_path / "outside")
    data.symlink_to(outside)
    with pytest.raises(CorruptCheckpoint, match="symbolic link"):
        pin(scan(model_dir)[0], pins, OD_API)
    assert list(pins.iterdir()) == []
    assert outside.exists()


def test_on_another_file_system_the_data_is_copied(model_dir: Path, tmp_path: Path):
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    save(model_dir)
    elsewhere = shm / f"pins-{os.getpid()}"
    elsewhere.mkdir()
    try:
        taken = pin(scan(model_dir)[0], elsewhere, OD_API)
        assert taken.method in ("copy", "reflink")
        assert verify(taken.prefix).sha256 == taken.sha256
    finally:
        release(taken.prefix, elsewhere)
        elsewhere.rmdir()


@pytest.mark.parametrize("code", ["EIO", "ENOSYS", "ENOTSUP", "EPERM", "EMLINK", "EXDEV"])
def test_a_mount_that_refuses_links_in_whatever_way_gets_copies(
    model_dir: Path, pins: Path, monkeypatch: pytest.MonkeyPatch, code: str
):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(getattr(errno, code), code)

    save(model_dir)
    monkeypatch.setattr(os, "link", refuse)
    taken = pin(scan(model_dir)[0], pins, OD_API)
    assert taken.method in ("copy", "reflink")
    assert verify(taken.prefix).global_step == 100


def test_pins_that_were_deleted_with_their_folder_get_a_new_one(model_dir: Path, pins: Path):
    pins.rmdir()
    save(model_dir)
    assert pin(scan(model_dir)[0], pins, OD_API).prefix.is_relative_to(pins)


def test_a_pins_folder_that_is_none_is_no_fault_of_the_checkpoints(model_dir: Path, pins: Path):
    pins.rmdir()
    pins.touch()
    save(model_dir)
    with pytest.raises(PinError, match="cannot pin ckpt-2: Not a directory"):
        pin(scan(model_dir)[0], pins, OD_API)


def test_sweep_removes_what_a_crash_left_and_nothing_else(model_dir: Path, pins: Path):
    save(model_dir)
    kept = pin(scan(model_dir)[0], pins, OD_API)
    (pins / ".new-abc").mkdir()
    (pins / ("0" * 64)).mkdir()
    (pins / "README").write_text("a person's note")
    sweep(pins, keep={kept.sha256})
    assert {path.name for path in pins.iterdir()} == {kept.sha256, "README"}


def test_release_deletes_a_pin_and_leaves_the_trainers_files(model_dir: Path, pins: Path):
    save(model_dir)
    taken = pin(scan(model_dir)[0], pins, OD_API)
    release(taken.prefix, pins)
    assert list(pins.iterdir()) == []
    assert verify(model_dir / "ckpt-2").sha256 == taken.sha256


@pytest.mark.parametrize("part", ["index", "data-00001-of-00002"])
def test_a_pin_that_somebody_deleted_a_part_of_is_replaced(model_dir: Path, pins: Path, part: str):
    save(model_dir, shards=2)
    found = scan(model_dir)[0]
    taken = pin(found, pins, OD_API)
    assert has_all_files(taken.prefix)
    taken.prefix.with_name(f"ckpt-2.{part}").unlink()
    assert not has_all_files(taken.prefix)
    assert pin(found, pins, OD_API).prefix == taken.prefix
    verify(taken.prefix)
    assert [entry.name for entry in pins.iterdir()] == [taken.sha256]
