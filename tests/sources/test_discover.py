"""The scan lists checkpoints by strict names and touches nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from folder_source import scan

from watcher.errors import ModelDirError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")


def test_checkpoints_come_in_the_order_of_their_numbers(tmp_path: Path):
    touch(tmp_path, "ckpt-10.index", "ckpt-9.index", "ckpt-1.index")
    assert [found.name for found in scan(tmp_path)] == ["ckpt-1", "ckpt-9", "ckpt-10"]


def test_other_names_folders_links_and_pipes_are_passed_over(tmp_path: Path):
    touch(
        tmp_path,
        *("checkpoint", "ckpt-3.data-00000-of-00001", "ckpt-03.index", "ckpt-x.index"),
        *("ckpt-3.index.tmp", "model.ckpt-3.index", "ckpt--3.index", f"ckpt-{'9' * 30}.index"),
    )
    (tmp_path / "ckpt-4_temp").mkdir()
    (tmp_path / "ckpt-5.index").mkdir()
    (tmp_path / "ckpt-6.index").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "ckpt-7.index")
    assert scan(tmp_path) == []


def test_the_signature_changes_when_the_index_or_a_shard_does(tmp_path: Path):
    touch(tmp_path, "ckpt-1.index", "ckpt-1.data-00000-of-00001")
    before = scan(tmp_path)[0].signature
    assert scan(tmp_path)[0].signature == before
    os.utime(tmp_path / "ckpt-1.data-00000-of-00001", ns=(1, 1))
    changed = scan(tmp_path)[0].signature
    assert changed != before
    (tmp_path / "ckpt-1.index").write_bytes(b"longer")
    assert scan(tmp_path)[0].signature != changed


def test_a_missing_folder_is_an_error_with_a_hint(tmp_path: Path):
    with pytest.raises(ModelDirError, match="cannot list model_dir") as caught:
        scan(tmp_path / "none")
    assert caught.value.hint
