"""Replicates are kept as long as they are of use, so that a long run's database stays small."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import FINGERPRINT, MAP, NOW, make_run, scores

from watcher.store import Store
from watcher.store.replicates import draws_of, image_names, influences_of, intervals_of
from watcher.types import Replicated, Replicates

PLACED, COUNT = (3, 7, 9), 30
EVERY = range(1, COUNT + 1)


def given(checkpoint_id: int) -> Replicates:
    values = array("f", [checkpoint_id, checkpoint_id + 1]).tobytes()
    rows = [(MAP, ""), (MAP, "car"), (MAP, "bus"), ("DetectionBoxes_Precision/mAP@.50IOU", "")]
    metrics = tuple(Replicated(*key, 5, 0.1, 0.2, values) for key in rows)
    influences = array("f", [0.5, -0.5]).tobytes()
    return Replicates("images-1", 2, 2, 0.95, metrics, influences, ("a.png", "b.png"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A run of 30 evaluations, of which three have a place."""
    best = {step - 1: 0.9 for step in PLACED}
    make_run(tmp_path, scores(*(best.get(place, 0.1) for place in range(COUNT))))
    path = tmp_path / "watcher" / "watcher.db"
    with Store(path, run="run", model_dir=tmp_path, now=NOW) as opened:
        yield opened


def test_of_categories_and_images_those_of_the_last_and_of_what_has_a_place_stay(store: Store):
    for number in EVERY:
        store.replicates.record(number, FINGERPRINT, given(number), {(MAP, "bus")})
    stay = {*PLACED, *range(COUNT - 19, COUNT + 1)}
    drawn = draws_of(store.ledger, EVERY)
    assert {id_ for id_, one in drawn.items() if (MAP, "car") in one.values} == stay
    assert {id_ for id_ in EVERY if influences_of(store.ledger, id_) is not None} == stay
    # What a board ranks by stays like an overall metric, and intervals stay for good.
    assert all((MAP, "bus") in one.values and (MAP, "") in one.values for one in drawn.values())
    assert all(len(intervals_of(store.ledger, id_)) == 4 for id_ in EVERY)
    assert list(drawn[1].values[MAP, ""]) == [1, 2]
    assert image_names(store.ledger, FINGERPRINT) == ["a.png", "b.png"]


def test_of_overall_metrics_those_go_that_are_earlier_than_the_last_thousand(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("watcher.store.replicates.KEPT", 10)
    for number in EVERY:
        store.replicates.record(number, FINGERPRINT, given(number))
    # The eleventh from the end goes at each; here all thirty were evaluated before.
    gone = set(EVERY) - draws_of(store.ledger, EVERY, [(MAP, "")]).keys()
    assert gone == {COUNT - 10}


def test_replicates_of_what_was_not_recorded_are_left_out(store: Store):
    assert store.replicates.record(COUNT + 1, FINGERPRINT, given(1)) is None
    assert store.replicates.record(1, "another", given(1)) is None
    assert draws_of(store.ledger, EVERY) == {}


def test_those_of_the_same_evaluation_again_replace_the_first(store: Store):
    for _ in range(2):
        store.replicates.record(1, FINGERPRINT, given(1))
    assert store.ledger.value("SELECT count(*) FROM replicates") == 4
