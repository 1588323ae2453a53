"""What workers leave in the temporary folder goes with them, however they and the watcher end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, alive, wait_until

from watcher.files.mounts import mount_now
from watcher.files.scratch import PREFIX, Scratch, base, is_within


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the test's processes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


def generated(temporary: Path) -> list[Path]:
    return list(temporary.rglob("__autograph_generated_file*"))


def pid_of(starts: Path) -> int:
    return int(wait_until(lambda: starts.exists() and starts.read_text(), "it starts").split()[-1])


def test_each_worker_has_a_temporary_folder_that_goes_with_it(
    watcher: Watcher, temporary: Path, tmp_path: Path
):
    starts = tmp_path / "starts"
    watcher.start("--retry-seconds", 0.2, STUB_LITTER=1, STUB_STARTS=starts)
    (first,) = wait_until(lambda: generated(temporary), "it leaves a file")
    os.kill(pid_of(starts), signal.SIGKILL)
    wait_until(lambda: not first.exists(), "the file goes with the killed worker")
    wait_until(lambda: generated(temporary), "the next one has a folder too")
    assert watcher.stop() == 0
    assert list(temporary.iterdir()) == []


def test_after_a_kill_of_both_the_next_start_removes_what_they_left(
    watcher: Watcher, temporary: Path, tmp_path: Path
):
    starts = tmp_path / "starts"
    daemon = watcher.start(STUB_LITTER=1, STUB_STARTS=starts)
    (left,) = wait_until(lambda: generated(temporary), "it leaves a file")
    daemon.kill()
    daemon.wait()
    wait_until(lambda: not alive(pid_of(starts)), "both are gone")
    assert left.exists()
    Manager(watcher.model_dir).save(100, model_tensors(1000, 1))
    assert watcher.run() == 0 and watcher.states() == {"ckpt-1": "scored"}
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_living_run_and_files_of_others_stay(temporary: Path):
    other = temporary / "somebody-elses"
    other.mkdir()
    with Scratch() as living:
        folder = living.take("worker")
        assert folder is not None
        with Scratch():
            assert folder.is_dir()
            assert len(list(temporary.iterdir())) == 3
        assert {path.name for path in folder.parent.parent.iterdir()} == {
            folder.parent.name,
            other.name,
        }
    assert list(temporary.iterdir()) == [other]


def test_a_worker_that_outlives_its_watcher_keeps_the_folder(temporary: Path):
    scratch = Scratch().__enter__()
    folder = scratch.take("worker")
    assert folder is not None and scratch.descriptor is not None
    worker = multiprocessing.get_context("fork").Process(target=signal.pause)
    worker.start()  # with the descriptor, as a worker has it
    try:
        os.close(scratch.descriptor)
        with Scratch():
            assert folder.is_dir()
    finally:
        worker.kill()
        worker.join()
    with Scratch():
        assert not folder.exists()


def test_what_the_tests_start_has_a_temporary_folder_that_goes_with_them(
    tmp_path_factory: pytest.TempPathFactory,
):
    assert tmp_path_factory.getbasetemp() in Path(tempfile.gettempdir()).parents
    assert os.environ["TMPDIR"] == tempfile.gettempdir()


def test_where_no_folder_can_be_made_workers_go_without(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(temporary / "missing"))
    with Scratch() as scratch:
        assert (scratch.take("worker"), scratch.artefacts(), scratch.descriptor) == (None,) * 3


def test_only_what_lies_in_such_a_folder_is_ours_to_remove(temporary: Path):
    ours = temporary / f"{PREFIX}x"
    assert is_within(ours / "artefacts" / "1") and is_within(ours / "1")
    for path in (ours, temporary / "other" / "1", temporary.parent / f"{PREFIX}x" / "1"):
        assert not is_within(path)


def test_it_lies_on_a_disk_where_the_usual_folder_is_memory_unless_somebody_chose_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    memory = Path("/dev/shm")
    if (mount := mount_now(memory)) is None or mount.kind != "tmpfs":
        pytest.skip("no memory is mounted here")
    for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(memory))
    assert base(tmp_path) == tmp_path
    assert base(tmp_path / "none") == memory
    monkeypatch.setenv("TMPDIR", str(memory))
    assert base(tmp_path) == memory
