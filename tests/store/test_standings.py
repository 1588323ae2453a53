"""Intervals, standings and differences in the database, where some cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from made_runs import MAP, NOW, learning
from noisy_runs import make_noisy

from watcher.decision.board import MAIN_BOARD, Board
from watcher.decision.metric import parse_metric
from watcher.decision.rank import RankPolicy
from watcher.promotion.standings import Standings
from watcher.store import Store
from watcher.store.database_file import DATABASE_NAME
from watcher.store.facts import FactReader


def open_store(model_dir: Path) -> Store:
    return Store(model_dir / "watcher" / DATABASE_NAME, run="run", model_dir=model_dir, now=NOW)


def test_a_score_that_has_no_interval_is_looked_at_once_and_hides_no_other(tmp_path: Path):
    metric = parse_metric("mAP - 0.001 * loss")
    make_noisy(tmp_path, learning(40), metric=metric.text)
    with open_store(tmp_path) as store:
        board = Board(MAIN_BOARD, tmp_path / "best", metric, RankPolicy())
        standings = Standings(board, store)
        best = store.ledger.scored()[0]
        for _ in range(2):
            standings.update(best)
        with closing(store.ledger._sqlite.cursor()):
            before = store.ledger._sqlite.total_changes
        standings.update(best)
        assert store.ledger._sqlite.total_changes == before
        # Another metric, whose scores have one.
        store.ledger.set_policy(parse_metric(MAP), "max", NOW)
        board = Board(MAIN_BOARD, tmp_path / "best", parse_metric(MAP), RankPolicy())
        standings = Standings(board, store)
        for _ in range(2):
            standings.update(best)
        assert store.ledger.value("SELECT count(*) FROM evaluations WHERE low IS NULL") == 0


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[FactReader]:
    """Of four, the second has no replicates, and the fourth is far better than the first."""
    make_noisy(tmp_path, learning(4), without={2})
    with FactReader(tmp_path / "watcher" / DATABASE_NAME) as opened:
        yield opened


def test_a_best_is_compared_with_the_one_told_of_as_long_as_anything_is_known_of_that(
    reader: FactReader,
):
    of = {row.name: row.sha256 for row in reader.scored()}
    assert reader.surely_better(of["ckpt-4"], of["ckpt-1"])
    assert not reader.surely_better(of["ckpt-1"], of["ckpt-4"])
    # Its replicates are still to come: not yet.
    assert not reader.surely_better(of["ckpt-2"], of["ckpt-1"])
    # Those of the one told of are dropped, or it was never measured in this evaluation.
    assert reader.surely_better(of["ckpt-3"], of["ckpt-2"])
    assert reader.surely_better(of["ckpt-3"], "f" * 64)
