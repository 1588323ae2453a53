"""Events wake the loop; when they cannot, the watch says so."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager

from watcher.watch import Watch


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


@pytest.fixture
def watch(tmp_path: Path, woken: threading.Event) -> Iterator[Watch]:
    folder = tmp_path / "model_dir"
    folder.mkdir()
    watch = Watch(folder, woken.set)
    watch.ensure()
    yield watch
    watch.close()


def test_a_finished_checkpoint_wakes_the_loop(watch: Watch, woken: threading.Event):
    Manager(watch.folder).save(100, {})
    assert woken.wait(5)
    assert watch.degraded is None


def test_other_files_and_our_own_reading_do_not_wake_it(watch: Watch, woken: threading.Event):
    Manager(watch.folder).save(100, {})
    assert woken.wait(5)
    woken.clear()
    (watch.folder / "ckpt-1.index").read_bytes()
    (watch.folder / "events.out").write_text("x")
    assert not woken.wait(0.5)


def test_a_folder_deleted_and_made_again_is_watched_again(watch: Watch, woken: threading.Event):
    shutil.rmtree(watch.folder)
    watch.ensure()
    assert "No such file" in (watch.degraded or "")
    watch.folder.mkdir()
    watch.ensure()
    assert watch.degraded is None
    woken.clear()
    Manager(watch.folder).save(100, {})
    assert woken.wait(5)
