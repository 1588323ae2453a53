"""Averages in the database: what is to be averaged, and how sure a gain is."""

from __future__ import annotations

import io
from array import array
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console
from stores import MAP, NOW, add, found_and_pinned

from watcher.config.ranking import RankingSettings
from watcher.decision.metric import parse_metric
from watcher.promotion.averaging import Averaging
from watcher.store import Store
from watcher.store.reading import open_reader
from watcher.types import Evaluation, Replicated, Replicates
from watcher.view.look import Looker, as_data
from watcher.view.overview import Overview, runs_table

FINGERPRINT = "a" * 64


def score(store: Store, value: float, replicates: list[float] | None = None) -> str:
    lease = store.queue.lease_next(NOW, 60)
    assert lease is not None
    evaluation = Evaluation(FINGERPRINT, 8, {MAP: value})
    store.ledger.record_score(lease, evaluation, value, started=NOW, now=NOW)
    if replicates:
        drawn = array("f", replicates).tobytes()
        metric = Replicated(MAP, "", 9, min(replicates), max(replicates), drawn)
        said = Replicates("drawn so", 8, len(replicates), 0.95, (metric,))
        store.replicates.record(lease.checkpoint_id, FINGERPRINT, said)
    return lease.name


@pytest.fixture
def averaged(store: Store) -> Store:
    """Three checkpoints, and the average of the last two."""
    store.ledger.set_policy(parse_metric(MAP), "max", NOW)
    store.ledger.set_fingerprint(FINGERPRINT, NOW)
    for number in (1, 2, 3):
        add(store, number)
        score(store, number / 10, [number / 10 + n / 1000 for n in range(40)])
    store.averages.ask("ckpt-2,ckpt-3", [3, 2], [3, 2], NOW)
    return store


def write(store: Store) -> None:
    job = store.averages.waiting()
    assert job
    _, pin = found_and_pinned(9, step=300)
    store.averages.record(job, replace(pin, method="average"), NOW)


def test_parents_are_needed_until_the_average_has_its_score(averaged: Store):
    assert averaged.averages.needed() == {2, 3}
    assert averaged.queue.open_count() == 1
    write(averaged)
    assert averaged.averages.needed() == {2, 3}
    assert score(averaged, 0.4) == "ckpt-3-average1"
    assert averaged.averages.needed() == set()
    assert averaged.queue.open_count() == 0


def test_an_average_that_is_written_again_is_the_one_of_before_and_has_its_files_again(
    averaged: Store,
):
    write(averaged)
    score(averaged, 0.4)
    (row,) = averaged.ledger.scored_averages()
    averaged.queue.forget_pin(row.checkpoint_id)
    averaged.averages.ask("again", [3, 2], [2, 3], NOW)
    write(averaged)
    (again,) = averaged.ledger.scored_averages()
    assert (again.checkpoint_id, again.score) == (row.checkpoint_id, 0.4)
    assert again.pin is not None
    assert averaged.queue.open_count() == 0


def test_an_average_is_evaluated_after_all_that_the_trainer_saved(averaged: Store):
    write(averaged)
    add(averaged, 4)
    assert [score(averaged, 0.1), score(averaged, 0.1)] == ["ckpt-4", "ckpt-3-average1"]


def test_an_average_is_found_by_its_name_alone_and_is_no_score_of_the_run(averaged: Store):
    write(averaged)
    score(averaged, 0.9)
    ledger = averaged.ledger
    assert [row.name for row in ledger.scored()] == ["ckpt-1", "ckpt-2", "ckpt-3"]
    assert [row.name for row in ledger.scored_averages()] == ["ckpt-3-average1"]
    assert ledger.last_scored(2) == {2, 3}
    for wanted, name in [("300", "ckpt-3"), ("last", "ckpt-3"), ("ckpt-3-average1",) * 2]:
        found = ledger.find(wanted)
        assert found and found["name"] == name
    last = averaged.queue.last_save()
    assert last and (last.counter, last.step) == (3, 300)


@pytest.mark.parametrize(
    ("shift", "mode", "deserves"),
    [
        (lambda n: 0.02, "max", True),
        (lambda n: 0.02 if n % 10 else -0.01, "max", False),  # one draw of ten goes against it
        (lambda n: 0.02, "min", False),
        (lambda n: -0.25, "min", True),
        (None, "max", False),
    ],
)
def test_an_average_is_confirmed_by_its_paired_difference_to_the_best(
    averaged: Store, shift, mode, deserves
):
    ledger = averaged.ledger
    ledger.set_policy(parse_metric(MAP), mode, NOW)
    write(averaged)
    best = 0.3 if mode == "max" else 0.1
    value = best + (shift(1) if shift else 0.02)
    drawn = [best + n / 1000 + shift(n) for n in range(40)] if shift else None
    score(averaged, value, drawn)
    settings = RankingSettings(metric=MAP, mode=mode)
    averaging = Averaging(settings, parse_metric(MAP), averaged)
    found = averaging.deserving(ledger.scored_averages(), ledger.scored())
    assert [row.name for row in found] == ["ckpt-3-average1"] * deserves


def test_what_was_missed_at_the_start_of_a_new_life_is_of_it_though_an_average_came_between(
    averaged: Store,
):
    missed, _ = found_and_pinned(1)
    averaged.queue.record_missed(replace(missed, signature=((1, 10, 20 * 10**9),)), "gone", NOW)
    write(averaged)
    found, pin = found_and_pinned(2, step=200)
    found = replace(found, signature=((2, 10, 21 * 10**9),))
    averaged.queue.record_pin(found, replace(pin, sha256="b" * 64), NOW)
    rows = averaged.ledger.all("SELECT name, generation FROM checkpoints WHERE id > 3")
    assert rows == [{"name": "ckpt-1", "generation": 2}, {"name": "ckpt-2", "generation": 2}]


def test_status_counts_the_averages_that_wait(averaged: Store, tmp_path: Path):
    def seen() -> tuple[int, str]:
        with open_reader(tmp_path) as reader:
            look = Looker(reader).look()
        file = io.StringIO()
        Console(file=file, width=120).print(Overview(look), runs_table([(tmp_path, look)]))
        return as_data(look, tmp_path)["averages_waiting"], file.getvalue()

    count, shown = seen()
    assert count == 1 and "1 average waits" in shown and "empty" not in shown
    lines = shown.splitlines()
    head = next(n for n, line in enumerate(lines) if {"now", "queue", "score"} <= {*line.split()})
    assert lines[head + 2][: lines[head].index("queue") + len("queue")].endswith(" 1")
    write(averaged)
    assert seen()[0] == 1
    lease = averaged.queue.lease_next(NOW, 60)
    assert lease
    assert seen()[0] == 0
