"""How a trainer counts its saves: which of them nobody saw, and which the queue policy takes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from fake_trainer import model_tensors, write_checkpoint

from watcher.checkpoints.bundle_format import OD_API, BundleFormat
from watcher.decision.queue_policy import parse_policy
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


BY_STEP = BundleFormat(OD_API.stem, counts_saves=False)


def test_where_the_number_is_the_step_nothing_is_taken_for_missed(tmp_path: Path):
    with closing(FactReader(look_at_two(tmp_path, BY_STEP))) as reader:
        assert [row["checkpoint"] for row in reader.history()] == ["ckpt-1000", "ckpt-2000"]
        assert reader.states() == {"pending": 2}


@pytest.mark.parametrize(
    ("written", "waiting"),
    [(BY_STEP, ["ckpt-2000", "ckpt-4000"]), (OD_API, [f"ckpt-{n}000" for n in range(1, 6)])],
)
def test_every_2_takes_every_second_save_whatever_the_number_in_a_name_counts(
    tmp_path: Path, written: BundleFormat, waiting: list[str]
):
    pins = tmp_path / "pins"
    pins.mkdir()
    with Store(tmp_path / "watcher.db", run="run", model_dir=tmp_path, now=0.0) as store:
        source, policy = LocalFolder(tmp_path, written), parse_policy("every-2")
        intake = Intake(source, pins, store.queue, grace_seconds=5, policy=policy)
        for at in range(1, 6):
            write_checkpoint(tmp_path, f"ckpt-{at}000", 1000 * at, model_tensors(100, at))
            intake.look(at, at)
            intake.write_down(at)
        names = [row["name"] for row in store.queue.pinned() if row["state"] == "pending"]
    assert names == waiting
    with closing(FactReader(tmp_path / "watcher.db")) as reader:
        skipped = {row["checkpoint"]: row["reason"] for row in reader.history() if row["reason"]}
    if written is BY_STEP:
        assert skipped["ckpt-3000"] == "queue policy every-2: 3 is not a multiple of 2"
