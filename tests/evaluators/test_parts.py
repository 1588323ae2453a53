"""The files in which workers hand over what they found in parts of an eval set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.od_api import parts
from evaluators.protocol import Failure

Found = tuple[dict[str, Any], dict[str, Any]]


def found_in(batches: int, *, ragged: bool = False) -> list[Found]:
    """What a model might find: of every third batch another number of detections."""
    draw = np.random.default_rng(4)
    found = []
    for number in range(batches):
        count = 5 + (number % 3 if ragged else 0)
        losses = {"Loss/a": np.float32(draw.random()), "Loss/b": np.float32(np.nan)}
        boxes = draw.random((1, count, 4), np.float32)
        detections = {"detection_boxes": boxes, "num_detections": np.array([float(count)])}
        found.append((losses, detections))
    return found


def written(path: Path, found: list[Found]) -> str:
    with parts.Writer(str(path)) as writer:
        for losses, detections in found:
            raw = {"raw_detection_scores": np.ones((1, 50_000, 90), np.float32)}
            writer.add(losses, {**detections, **raw})
    return str(path)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batches", [1, parts.TOGETHER, 2 * parts.TOGETHER + 3])
def test_what_is_read_has_the_bits_of_what_was_written_but_not_of_every_anchor(
    tmp_path: Path, batches: int, ragged: bool
):
    found = found_in(batches, ragged=ragged)
    path = written(tmp_path / "part.npz", found)
    again = list(parts.read(path, batches))
    assert len(again) == batches
    for before, after in zip(found, again, strict=True):
        for one, other in zip(before, after, strict=True):
            assert one.keys() == other.keys()
            assert all(np.asarray(v).tobytes() == other[n].tobytes() for n, v in one.items())
            assert all(np.asarray(v).dtype == other[n].dtype for n, v in one.items())
    assert Path(path).stat().st_size < 2000 * batches + 4000
    assert list(tmp_path.iterdir()) == [Path(path)]


def test_a_file_that_is_no_good_gives_what_comes_before_the_fault_and_no_more(tmp_path: Path):
    found = found_in(3 * parts.TOGETHER)
    path = written(tmp_path / "part.npz", found)
    assert len(list(parts.read(path, len(found) + 1))) == len(found)
    content = bytearray(Path(path).read_bytes())
    at = content.index(b"1/detections/all/detection_boxes.npy") + 200
    content[at] ^= 0xFF
    Path(path).write_bytes(content)
    assert len(list(parts.read(path, len(found)))) == parts.TOGETHER
    Path(path).write_bytes(content[: len(content) // 2])
    assert list(parts.read(path, len(found))) == []
    assert list(parts.read(str(tmp_path / "none.npz"), 3)) == list(parts.read(None, 3)) == []


def test_a_part_that_breaks_off_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(KeyError), parts.Writer(str(tmp_path / "part.npz")) as writer:
        writer.add(*found_in(1)[0])
        raise KeyError
    monkeypatch.setattr(parts, "LEFT_BYTES", 1 << 60)
    with pytest.raises(Failure, match="has no room for a part"):
        written(tmp_path / "part.npz", found_in(1))
    assert list(tmp_path.iterdir()) == []
