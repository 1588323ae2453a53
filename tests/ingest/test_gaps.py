"""Saves that nobody saw are told of in one row, with their number."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from fake_trainer import model_tensors, write_checkpoint

from watcher.checkpoints.bundle_format import OD_API, BundleFormat
from watcher.ingest.intake import Intake
from watcher.sources.local import LocalFolder
from watcher.store import Store
from watcher.store.facts import FactReader

COUNTED = "999 checkpoints: saved and rotated away while nobody looked"


def look_at_two(tmp_path: Path, written: BundleFormat) -> Path:
    """Look at `ckpt-1000`, and at `ckpt-2000` when the other is gone; returns the database."""
    database, pins = tmp_path / "watcher.db", tmp_path / "pins"
    pins.mkdir()
    with Store(database, run="run", model_dir=tmp_path, now=0.0) as store:
        intake = Intake(LocalFolder(tmp_path, written), pins, store.queue, grace_seconds=5)
        for at, number in enumerate((1000, 2000), start=1):
            for file in tmp_path.glob("ckpt-*"):
                file.unlink() if file.is_file() else file.rmdir()
            write_checkpoint(tmp_path, f"ckpt-{number}", number, model_tensors(100, number))
            intake.look(at, at)
            intake.write_down(at)
    return database


def test_saves_that_nobody_saw_are_one_row_and_all_of_them_are_counted(tmp_path: Path):
    with closing(FactReader(look_at_two(tmp_path, OD_API))) as reader:
        rows = [(row["checkpoint"], row["state"], row["reason"]) for row in reader.history()]
        assert rows == [
            ("ckpt-1000", "pending", None),
            ("ckpt-1001..ckpt-1999", "missed", COUNTED),
            ("ckpt-2000", "pending", None),
        ]
        assert reader.states() == {"pending": 2, "missed": 999}
        assert reader.facts().states["missed"] == 999, "as the metrics have it"


@pytest.mark.parametrize("name", ["ckpt-1001", "ckpt-1500", "ckpt-1999", "ckpt-1001..ckpt-1999"])
def test_each_of_them_is_found_by_its_own_name(tmp_path: Path, name: str):
    with closing(FactReader(look_at_two(tmp_path, OD_API))) as reader:
        found = reader.find(name)
        assert found and (found["state"], found["reason"]) == ("missed", COUNTED)
        assert reader.find("ckpt-999") is None
        assert reader.find("ckpt-2001") is None
        assert (reader.find("ckpt-2000") or {})["state"] == "pending"


def test_where_the_number_is_the_step_nothing_is_taken_for_missed(tmp_path: Path):
    by_step = BundleFormat(OD_API.stem, counts_saves=False)
    with closing(FactReader(look_at_two(tmp_path, by_step))) as reader:
        assert [row["checkpoint"] for row in reader.history()] == ["ckpt-1000", "ckpt-2000"]
        assert reader.states() == {"pending": 2}
