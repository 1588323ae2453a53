"""Event files for TensorBoard: what is in them, and that TensorBoard's readers see it.

Those readers run in the training environment, without TensorFlow. That the values and pictures are
the OD API's own is tested with the real trainer, in test_main_job.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from drawn import png
from fake_trainer import Manager, model_tensors
from faults import Child, Rounds, at, calls_of, need_strace, now
from forks import Fork
from tensorboards import MAP, ON, event_files, read, steps, tensorboard
from watching import Watcher, alive, wait_until

from watcher.config import Settings
from watcher.config.exports import ExportSettings
from watcher.doctor.event_files import event_files as event_files_of
from watcher.store import Store
from watcher.tensorboard.__main__ import update
from watcher.tensorboard.event_file import write_event_file
from watcher.tensorboard.folder import arrange
from watcher.tensorboard.points import Content, Point
from watcher.types import Evaluation

KILLED = -9


def save(watcher: Watcher, *steps: int) -> None:
    manager = Manager(watcher.model_dir)
    for step in steps:
        manager.save(step, model_tensors(1000, f"{step}"))


def evaluate(watcher: Watcher, *flags: object, **environment: object) -> None:
    assert watcher.run(*flags, **{**ON, **environment}) == 0, watcher.log.read_text()


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures for the stub to give; its scratch is in the test's own folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in (0, 2, 10):
        (folder / f"eval_side_by_side_{number}_0.png").write_bytes(png(8, 4, number))
    return folder


class Curves:
    """A folder of event files, filled without a daemon, at a time that the test says."""

    def __init__(self, folder: Path, pictures: Path | None = None) -> None:
        self.folder = folder
        self.pictures = str(pictures) if pictures else None
        self.seconds = 1_800_000_000
        self.written: list[int] = []

    def point(self, step: int, score: float = 0.5, earlier: str = "", name: str = "") -> Point:
        identity = hashlib.sha256(f"{step} {score} {name}".encode()).hexdigest()[:16]
        return Point("val", earlier, step, identity, round(1000 * score), 1.8e9 + step)

    def show(self, *points: Point, after_seconds: int = 0) -> int:
        self.seconds += after_seconds
        return arrange(self.folder, points, self._write, self.seconds)

    def _write(self, point: Point, path: Path) -> None:
        self.written.append(point.step)
        values = {MAP: point.evaluation_id / 1000, "Loss/total_loss": float("nan")}
        write_event_file(path, point, Content(values, self.pictures), pictures=True)

    def curve(self, earlier: str = "") -> dict[int, float]:
        return {step: value for step, tag, value in read(self.folder / earlier) if tag == MAP}


# -- which files there are


def test_steps_that_come_in_order_leave_what_is_there_untouched(tmp_path: Path):
    curves = Curves(tmp_path / "val")
    first = curves.point(100)
    assert curves.show(first) == 1
    before = event_files(curves.folder)
    assert curves.show(first, curves.point(200)) == 1
    assert event_files(curves.folder)[:1] == before
    assert curves.show(first, curves.point(200), after_seconds=1000) == 0
    assert curves.written == [100, 200]
    assert list(curves.curve()) == [100, 200]


def test_an_earlier_step_comes_before_the_later_ones_which_are_not_written_again(tmp_path: Path):
    curves = Curves(tmp_path / "val")
    late = [curves.point(200), curves.point(300)]
    curves.show(*late)
    curves.show(curves.point(100), *late)
    assert list(curves.curve()) == [100, 200, 300]
    assert curves.written == [200, 300, 100]
    assert len(event_files(curves.folder)) == 5, "an open TensorBoard may still be at the old ones"
    curves.show(curves.point(100), *late, after_seconds=120)
    assert len(event_files(curves.folder)) == 3
    assert list(curves.curve()) == [100, 200, 300]


def test_where_there_are_no_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    curves = Curves(tmp_path / "val")
    late = curves.point(200)
    curves.show(late)
    monkeypatch.setattr(os, "link", refuse)
    curves.show(curves.point(100), late)
    assert list(curves.curve()) == [100, 200]
    assert curves.written == [200, 100]


def test_of_two_evaluations_of_a_step_the_new_one_is_shown(tmp_path: Path):
    curves = Curves(tmp_path / "val")
    curves.show(curves.point(100, 0.1), curves.point(200))
    for _ in range(2):
        curves.show(curves.point(100, 0.9), curves.point(200), after_seconds=120)
        assert curves.curve() == pytest.approx({100: 0.9, 200: 0.5})
    assert len(event_files(curves.folder)) == 2


def test_points_of_another_evaluation_become_a_curve_of_their_own(tmp_path: Path):
    curves = Curves(tmp_path / "val")
    old = [curves.point(100, 0.1), curves.point(200, 0.2)]
    curves.show(*old)
    moved = [curves.point(100, 0.1, "earlier-ffff"), curves.point(200, 0.2, "earlier-ffff")]
    curves.show(*moved, curves.point(200, 0.9), after_seconds=120)
    curves.show(*moved, curves.point(200, 0.9), after_seconds=120)
    assert curves.curve("earlier-ffff") == pytest.approx({100: 0.1, 200: 0.2})
    assert curves.curve() == pytest.approx({200: 0.9})
    back = [*old, curves.point(200, 0.9, "earlier-eeee")]
    curves.show(*back, after_seconds=120)
    curves.show(*back, after_seconds=120)
    assert curves.curve() == pytest.approx({100: 0.1, 200: 0.2}), "and back again"
    assert curves.curve("earlier-eeee") == pytest.approx({200: 0.9})
    assert curves.written == [100, 200, 200], "nothing is drawn twice"


def test_files_of_others_stay_as_they_are_and_come_before_ours(tmp_path: Path):
    curves = Curves(tmp_path / "val")
    curves.folder.mkdir()
    theirs = curves.folder / "events.out.tfevents.2999999998.host.1.0.v2"
    theirs.write_bytes(b"")
    curves.show(curves.point(100), curves.point(200))
    assert event_files(curves.folder)[0] == theirs and theirs.read_bytes() == b""
    assert list(curves.curve()) == [100, 200]


def test_files_that_the_database_does_not_know_any_more_stay(tmp_path: Path):
    curves = Curves(tmp_path / "val")
    curves.show(curves.point(100), curves.point(300))
    curves.show(curves.point(200), after_seconds=120)
    curves.show(curves.point(200), after_seconds=120)
    assert list(curves.curve()) == [100, 200, 300]


# -- which evaluations are shown, and how


class Recorded(Rounds):
    """A run whose evaluations tell what the worker tells of its eval input and its pictures."""

    details: ClassVar[dict[str, Any]] = {"eval_name": "val"}
    fingerprint = "f" * 64
    more: ClassVar[dict[str, float | None]] = {}
    by_category: tuple[tuple[str, str, float | None], ...] = ()
    categories = False

    def score_all(self, store: Store) -> None:
        store.ledger.set_fingerprint(self.fingerprint, now())
        while lease := store.queue.lease_next(now(), 60):
            metrics = {MAP: lease.global_step / 1000, "PascalBoxes/empty": None, "latency_ms": 3.0}
            measured = Evaluation(
                fingerprint=self.fingerprint,
                images=8,
                metrics=metrics | self.more,
                category_metrics=self.by_category,
                details=self.details,
            )
            store.ledger.record_score(lease, measured, 0.5, started=now(), now=now())

    def evaluate(self, *steps: int, late: bool = False) -> None:
        manager = Manager(self.settings.run.model_path)
        for step in steps:
            saved = manager.save(step, model_tensors(1000, f"{step}"))
            for file in saved.parent.glob(f"{saved.name}.*" if late else "none"):
                os.utime(file, (0, 0))  # older than what was found before it
        with self.open() as store:
            intake, _ = self.begin(store)
            intake.look(now(), time.monotonic())
            intake.write_down(now())
            self.score_all(store)

    def update(self) -> int:
        categories = self.categories
        return update(self.state_dir, self.settings.run.eval_path, categories=categories)


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    folder = tmp_path / "model_dir"
    folder.mkdir()
    return Recorded(folder)


def test_what_the_od_api_does_not_have_is_under_a_name_of_ours_and_null_is_nan(recorded: Recorded):
    recorded.evaluate(100)
    assert recorded.update() == 1
    found = {tag: value for _, tag, value in read(recorded.settings.run.eval_path / "val")}
    assert found.keys() == {MAP, "PascalBoxes/empty", "checkpoint_watcher/latency_ms"}
    assert math.isnan(found["PascalBoxes/empty"])
    assert found["checkpoint_watcher/latency_ms"] == 3


def test_what_had_nothing_to_measure_is_no_point_and_never_a_flat_chart(recorded: Recorded):
    small = "DetectionBoxes_Precision/mAP (small)"
    recorded.details = {"eval_name": "val", "own_metrics": ["latency_ms", "balance"]}
    recorded.more = {small: -1.0, "Loss/total_loss": -1.0, "balance": -1.0}
    recorded.evaluate(100)
    recorded.update()
    folder = recorded.settings.run.eval_path / "val"
    assert steps(folder, small) == []
    assert steps(folder, "checkpoint_watcher/balance") == [100], "of a plugin it is a number"
    assert steps(folder, "Loss/total_loss") == [100]
    recorded.more = {small: 0.0}
    recorded.evaluate(200)
    recorded.update()
    assert [point for point in read(folder) if point[1] == small] == [(200, small, 0.0)]
    assert steps(folder) == [100, 200]


def test_categories_are_written_when_asked_for_under_the_od_apis_name(recorded: Recorded):
    by = "DetectionBoxes_PerformanceByCategory/mAP"
    recorded.by_category = (
        (MAP, "traffic light", 0.25),
        (MAP, "cat", -1.0),
        ("DetectionBoxes_Recall/AR@100", "cat", 0.5),
    )
    recorded.evaluate(100)
    recorded.update()
    folder = recorded.settings.run.eval_path / "val"
    assert not [tag for _, tag, _ in read(folder) if "Category" in tag]
    recorded.categories = True
    recorded.evaluate(200)
    recorded.update()
    found = [point for point in read(folder) if "Category" in point[1]]
    assert found == [(200, f"{by}/traffic light", 0.25)]
    (first, _) = event_files(folder)
    first.unlink()
    recorded.update()
    assert sorted(steps(folder, f"{by}/traffic light")) == [100, 200], "deleted, it is written anew"


@pytest.mark.parametrize(
    ("details", "folder"),
    [
        ({"eval_name": ""}, "eval"),
        ({"eval_name": "a/b"}, "eval/a/b"),
        ({"eval_input": "val"}, "eval/val"),  # as it was recorded before
        ({"eval_input": "0"}, "eval"),
    ],
)
def test_the_folder_has_the_name_of_the_eval_input(
    recorded: Recorded, details: dict[str, Any], folder: str
):
    recorded.details = details
    recorded.evaluate(100)
    assert recorded.update() == 1
    assert len(event_files(recorded.settings.run.model_path / folder)) == 1


@pytest.mark.parametrize("name", ["../best", "/tmp", "a/../../b"])
def test_a_name_that_leads_out_of_the_folder_gets_none(recorded: Recorded, name: str):
    recorded.details = {"eval_name": name}
    recorded.evaluate(100)
    assert recorded.update() == 0
    assert not list(recorded.settings.run.model_path.rglob("*tfevents*"))


def test_two_eval_inputs_have_a_folder_each(recorded: Recorded):
    recorded.evaluate(100, 200)
    recorded.details, recorded.fingerprint = {"eval_name": "test"}, "e" * 64
    recorded.evaluate(300)
    assert recorded.update() == 3 + 2, "what waits to be promoted is evaluated on both"
    folder = recorded.settings.run.eval_path
    assert {path.name for path in folder.iterdir()} == {"val", "test"}
    assert steps(folder / "val") == [100, 200]
    assert steps(folder / "test") == [100, 200, 300]
    assert not [path for path in (folder / "val").iterdir() if path.is_dir()]


def test_of_an_input_the_present_evaluation_has_the_curve(recorded: Recorded):
    recorded.evaluate(100, 200)
    recorded.update()
    recorded.fingerprint = "e" * 64
    recorded.evaluate(300)
    recorded.update()
    folder = recorded.settings.run.eval_path / "val"
    assert steps(folder) == [100, 200, 300]
    assert steps(folder / "earlier-ffffffff") == [100, 200]


def test_the_life_of_a_trainer_that_started_over_has_the_curve(recorded: Recorded):
    recorded.evaluate(100, 200)
    recorded.update()
    (recorded.settings.run.model_path / "checkpoint").unlink()
    recorded.evaluate(50)
    recorded.update()
    folder = recorded.settings.run.eval_path / "val"
    assert steps(folder) == [50]
    assert steps(folder / "earlier-generation-1") == [100, 200]


def test_where_the_disk_is_nearly_full_there_are_curves_and_no_pictures(
    recorded: Recorded, pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    recorded.details = {"eval_name": "val", "visualizations": str(pictures)}
    recorded.evaluate(100)
    monkeypatch.setattr("watcher.tensorboard.__main__._ROOM_BYTES", 1 << 60)
    recorded.update()
    assert {tag for _, tag, _ in read(recorded.settings.run.eval_path / "val")} >= {MAP}
    assert not [tag for _, tag, _ in read(recorded.settings.run.eval_path / "val") if "side" in tag]
    assert pictures.exists(), "only what a worker left in its scratch is removed"


def test_pictures_of_all_that_waited_to_be_written_go_once_they_are(
    recorded: Recorded, pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(pictures.parent / "scratch"))
    scratch = pictures.parent / "scratch" / "checkpoint-watcher-scratch-x"
    for number in range(1, 11):
        shutil.copytree(pictures, scratch / str(number))
        recorded.details = {"eval_name": "val", "visualizations": str(scratch / str(number))}
        recorded.evaluate(100 * number)
    recorded.update()
    read_steps = {step for step, tag, _ in read(recorded.settings.run.eval_path / "val")}
    assert len(read_steps) == 10
    assert list(scratch.iterdir()) == []


# -- crashes and faults


@pytest.mark.slow
def test_after_a_kill_at_any_call_nothing_is_missing_and_nothing_twice(
    recorded: Recorded, pictures: Path, tmp_path: Path
):
    """One file is written, and one gets another name since it must come after that."""
    need_strace()
    recorded.evaluate(200)
    recorded.update()
    drawn = tmp_path / "scratch" / "checkpoint-watcher-scratch-x" / "1"
    recorded.details = {"eval_name": "val", "visualizations": str(drawn)}
    recorded.evaluate(100, late=True)
    trial, scratch = tmp_path / "eval", str(drawn.parent.parent)
    work = {"state_dir": str(recorded.state_dir), "eval_dir": str(trial), "temporary": scratch}

    def begin() -> None:
        for folder, original in ((trial, recorded.settings.run.eval_path), (drawn, pictures)):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(original, folder)

    begin()
    made = calls_of(Fork("event files", **work), tmp_path / "calls.log")
    assert {"write", "fsync", "rename", "link", "unlink", "unlinkat"} <= {name for name, _ in made}
    for call in made:
        begin()
        assert Child(Fork("event files", **work), [at(call, "signal=KILL")]).wait() == KILLED
        again = Fork("event files", **work)
        again.go()
        assert again.wait() == 0
        found = [(step, tag) for step, tag, _ in read(trial / "val")]
        assert steps(trial / "val") == [100, 200] and len(found) == 3 + 3 + 3, (call, found)
        assert set((trial / "val").iterdir()) == set(event_files(trial / "val")), call
        assert not drawn.exists(), call


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO"])
def test_calls_that_fail_leave_nothing_half(recorded: Recorded, tmp_path: Path, fault: str):
    need_strace()
    recorded.evaluate(100)
    work = {
        "state_dir": str(recorded.state_dir),
        "eval_dir": str(tmp_path / "eval"),
        "temporary": str(tmp_path),
    }
    faults = [f"{name}:error={fault}" for name in ("write", "fsync", "rename")]
    child = Child(Fork("event files", **work), faults)
    assert child.wait() == 1
    assert not list((tmp_path / "eval" / "val").iterdir())


# -- the daemon


def test_each_evaluation_is_a_point_with_its_pictures_also_from_before_it_was_switched_on(
    watcher: Watcher, pictures: Path
):
    save(watcher, 100)
    assert watcher.run("--no-tensorboard") == 0
    assert not (watcher.model_dir / "eval").exists()
    save(watcher, 200)
    evaluate(watcher, STUB_PICTURES=pictures)
    folder = watcher.model_dir / "eval" / "val"
    assert steps(folder) == [100, 200]
    rounded = struct.unpack("<f", struct.pack("<f", 0.002))[0]
    assert (200, MAP, rounded) in read(folder)
    images = [(tag, value) for _, tag, value in read(folder) if isinstance(value, bytes)]
    assert images == [(f"eval_side_by_side_{number}_0", png(8, 4, number)) for number in (0, 2, 10)]
    assert list((pictures.parent / "scratch").glob("*/*")) == [], "pictures are taken away"
    before = [(path, path.stat().st_mtime_ns) for path in event_files(folder)]
    evaluate(watcher)
    assert [(path, path.stat().st_mtime_ns) for path in event_files(folder)] == before
    save(watcher, 300)
    evaluate(watcher, "--tensorboard-categories", STUB_CATEGORY_METRIC=MAP)
    assert steps(folder, "DetectionBoxes_PerformanceByCategory/mAP/rectangle") == [300]
    assert steps(folder) == [100, 200, 300]


def test_a_folder_that_cannot_be_written_is_told_and_costs_no_evaluation(watcher: Watcher):
    blocked = watcher.model_dir / "eval"
    blocked.write_text("a file where the folder should be\n")
    save(watcher, 100)
    watcher.start("--rescan-seconds", 0.2, **ON)
    problem = wait_until(lambda: watcher.status().get("tensorboard"), "it is told")
    assert str(blocked) in problem
    assert watcher.states() == {"ckpt-1": "scored"}
    assert "no event files for TensorBoard" in watcher.log.read_text()
    blocked.unlink()
    wait_until(lambda: event_files(blocked / "val"), "it is written when it can be")
    wait_until(lambda: watcher.status()["tensorboard"] is None, "all is well again")
    assert watcher.stop() == 0


def test_doctor_says_where_event_files_go_and_what_keeps_them_from_there(tmp_path: Path):
    settings = Settings.of(model_dir=str(tmp_path), pipeline_config="none")
    (found,) = event_files_of(settings.exports, settings.run.eval_path)
    assert (found.severity, found.message) == (
        "ok",
        f"evaluations are written into {tmp_path}/eval",
    )
    (tmp_path / "eval").touch()
    (found,) = event_files_of(settings.exports, settings.run.eval_path)
    assert found.severity == "warning" and "is not a folder" in found.message
    assert event_files_of(ExportSettings(tensorboard=False), Path("x")) == []


def library(tmp_path: Path, text: str) -> dict[str, str]:
    """An environment in which another module is found in place of tensorboardX."""
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "tensorboardX.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


def test_without_the_library_all_else_works(watcher: Watcher, tmp_path: Path):
    save(watcher, 100)
    missing = library(tmp_path, "raise ImportError('no module of this name')\n")
    evaluate(watcher, **missing)
    assert watcher.states() == {"ckpt-1": "scored"}
    assert watcher.leaderboard() == ["ckpt-1"]
    assert "tensorboardX cannot be imported" in watcher.log.read_text()


def test_a_writer_that_hangs_keeps_nothing_waiting(watcher: Watcher, tmp_path: Path):
    save(watcher, 100)
    mark = tmp_path / "pid"
    text = f"import os, pathlib, time\npathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\n"
    watcher.start(**ON, **library(tmp_path, f"{text}time.sleep(600)\n"))
    wait_until(lambda: mark.exists() and mark.read_text(), "it hangs")
    save(watcher, 200)
    wait_until(lambda: watcher.states().get("ckpt-2") == "scored", "the next is scored")
    wait_until(lambda: watcher.leaderboard() == ["ckpt-2", "ckpt-1"], "and promoted")
    assert watcher.stop() == 0
    assert not alive(int(mark.read_text()))


def test_a_killed_daemon_has_its_points_written_after_the_restart(watcher: Watcher):
    save(watcher, 100, 200)
    daemon = watcher.start(**ON)
    wait_until(lambda: "scored" in watcher.states().values(), "one is scored")
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    evaluate(watcher, "--eval-dir", watcher.model_dir / "elsewhere")
    assert steps(watcher.model_dir / "elsewhere" / "val") == [100, 200]


# -- as TensorBoard sees it


@pytest.mark.slow
def test_a_tensorboard_that_is_open_sees_every_step_once_in_whatever_order_they_come(
    tmp_path: Path, pictures: Path, od_python: str
):
    curves = Curves(tmp_path / "eval" / "val", pictures)
    image = "eval_side_by_side_2_0"
    points: dict[int, Point] = {}

    def check(look: Callable[[], dict[str, Any]], **scores: float) -> None:
        """Show more points, one after the other, and see what is seen then."""
        for name, score in scores.items():
            points[int(name[1:])] = curves.point(int(name[1:]), score)
            curves.show(*points.values())
        for name, found in look().items():
            curve = found["scalars"]["eval/val"][MAP]
            expected = [[step, points[step].evaluation_id / 1000] for step in sorted(points)]
            assert curve == expected, name
            shown = found["images"]["eval/val"][image]
            assert [step for step, *_ in shown] == sorted(points), name
            assert all(size == [8, 4] for _, *size, _ in shown), name

    with tensorboard(od_python, tmp_path) as look:
        check(look, s200=0.25, s400=0.5)
        check(look, s500=0.125, s300=0.75)
        check(look, s500=0.875)  # evaluated anew
        curves.seconds += 120
        check(look, s100=0.0, s600=1.0)
    with tensorboard(od_python, tmp_path) as look:
        check(look)
