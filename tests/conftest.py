"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import MAP, NOW
from watching import ROOT, Watcher

from watcher.decision.metric import parse_metric
from watcher.store import Store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process waits for the other at the end."""
    items.sort(key=lambda item: _SLOW.index(item.path.name) if item.path.name in _SLOW else 99)


_SLOW = ("test_evaluator_families.py", "test_main_job.py", "test_evaluator_exact.py")


@pytest.fixture(scope="session")
def od_python() -> str:
    """The interpreter of a training environment: TensorFlow and the OD API are in it."""
    path = os.environ.get("CHECKPOINT_WATCHER_OD_PYTHON", str(ROOT / ".venv-od" / "bin" / "python"))
    if not Path(path).exists():
        pytest.fail(f"no training environment at {path}: run `make test`, which installs it")
    return path


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    """A run in a temporary folder, with the stub evaluator; its processes end with the test."""
    run = Watcher(tmp_path)
    yield run
    run.end()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of `store` lies."""
    return tmp_path / "watcher.db"


@pytest.fixture
def store(path: Path, tmp_path: Path) -> Iterator[Store]:
    """The writing side of a run whose first evaluation is about to be recorded."""
    with Store(path, run="run", model_dir=tmp_path, now=NOW) as opened:
        opened.ledger.set_policy(parse_metric(MAP), "max", NOW)
        opened.ledger.set_fingerprint("a" * 64, NOW)
        yield opened
