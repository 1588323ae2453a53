"""What an evaluation is set up from stays as it was when the run began, whatever is edited."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher, cli, wait_until

from evaluators import protocol
from evaluators.od_api.plugins import load
from evaluators.protocol import Refusal
from evaluators.snapshot import Snapshot as TakenByWorker
from watcher.config import Settings, load_settings
from watcher.config.evaluator import OdApiSettings
from watcher.evaluation.od_api import ObjectDetection
from watcher.evaluation.snapshot import Snapshot, take_snapshot


class Run:
    """A watcher whose worker says what it reads, and the user's files."""

    def __init__(self, watcher: Watcher, folder: Path) -> None:
        self.watcher = watcher
        self.read = folder / "read"
        self.files = [watcher.pipeline, folder / "mine.py", folder / "labels.pbtxt"]
        self.trainer = Manager(watcher.model_dir)
        self._saves = 0
        self.edit("first")

    def edit(self, text: str) -> None:
        for file in self.files:
            file.write_text(f"{text} {file.name}")

    def texts(self, text: str) -> list[str]:
        return [f"{text} {file.name}" for file in self.files]

    def start(self, **environment: object) -> None:
        flags = ["--rescan-seconds", 0.1, "--retry-seconds", 0.05]
        plugin = ["--metric-plugin", f"{self.files[1]}:mine"]
        steer = {"STUB_READ": self.read, "STUB_TAKE": self.files[2], **environment}
        self.watcher.start(*flags, *plugin, **steer)

    def save(self) -> None:
        """Save a checkpoint and wait for its score."""
        self._saves += 1
        self.trainer.save(100 * self._saves, model_tensors(1000, str(self._saves)))
        name = f"ckpt-{self._saves}"
        wait_until(lambda: self.watcher.states().get(name) == "scored", f"{name} is scored")

    def reads(self) -> list[list[str]]:
        """What each worker read at its start."""
        return [json.loads(line) for line in self.read.read_text().splitlines()]

    def differences(self) -> list[str]:
        told: list[str] = self.watcher.status().get("changed_files", [])
        return told


@pytest.fixture
def run(watcher: Watcher, tmp_path: Path) -> Run:
    return Run(watcher, tmp_path)


def test_what_is_edited_while_it_runs_counts_from_the_next_start_on_and_is_told(
    run: Run, tmp_path: Path
) -> None:
    run.start(STUB_CRASH="ckpt-2", STUB_ONCE=tmp_path)
    run.save()
    run.edit("second")
    wait_until(lambda: len(run.differences()) == 3, "the three files are told of")
    run.save()
    assert run.reads() == [run.texts("first")] * 2  # a worker that is replaced reads the same
    told = "was changed since this run started: evaluations go on with the one it started with"
    shown = " ".join(cli("status", run.watcher.model_dir).stdout.split())
    for file, what in zip(
        run.files, ["pipeline_config", "metric_plugin", "label map"], strict=True
    ):
        assert f"{what} ({file}) {told}" in " ".join(run.differences())
        assert f"{what} ({file}) {told}".replace(" ", "") in shown.replace(" ", "")
    events = run.watcher.query("SELECT message FROM events WHERE kind = 'files'")
    assert len(events) == 3
    assert run.watcher.log.read_text().count(told) == 3

    run.files[0].write_text(run.texts("first")[0])
    wait_until(lambda: len(run.differences()) == 2, "what is as it was is no difference")
    run.edit("third")
    assert run.watcher.stop() == 0
    run.start()
    run.save()
    assert run.reads()[2:] == [run.texts("third")]
    assert run.differences() == []


def test_a_metric_that_an_edited_pipeline_config_may_bring_is_left_to_the_worker(run: Run) -> None:
    """Though the file is older than the last score, that was made without it."""
    watcher = run.watcher
    watcher.start("--rescan-seconds", 0.1)
    run.save()
    watcher.pipeline.write_text("another metrics_set")
    run.save()
    assert watcher.stop() == 0
    assert watcher.run("--metric", "another", STUB_READ=run.read) == 1
    assert run.reads() == [["another metrics_set"]]
    assert "metric (another) is not reported" in watcher.log.read_text()


def test_a_start_that_is_refused_changes_nothing_of_what_the_next_one_is_compared_with(
    run: Run,
) -> None:
    watcher, good = run.watcher, run.files[0].read_text()
    steer = {"STUB_TAKE": run.files[2]}
    said = "changed since the last start, taken as it is now"
    run.trainer.save(100, model_tensors(1000, "1"))

    def told(*flags: object, code: int = 0, **environment: object) -> list[str]:
        before = len(watcher.log.read_text()) if watcher.log.exists() else 0
        assert watcher.run(*flags, **steer, **environment) == code
        lines = watcher.log.read_text()[before:].splitlines()
        return [line.split("file=")[1] for line in lines if said in line]

    assert told() == []
    watcher.pipeline.write_text("another model")
    assert told(code=1, STUB_REFUSE="val.record not found") == [str(watcher.pipeline)]
    assert told(code=1, STUB_REFUSE="val.record not found") == [str(watcher.pipeline)]
    watcher.pipeline.write_text(good)
    assert told() == []
    # And what no evaluation reports is refused without a worker, as if nothing had been between.
    assert told("--metric", "mAp", code=1, STUB_READ=run.read) == []
    assert not run.read.exists() and "did you mean mAP" in watcher.log.read_text()
    run.files[2].write_text("another label map")
    assert told() == [str(run.files[2])]
    assert told() == []


def test_a_pipeline_config_that_is_deleted_while_it_runs_is_told_and_costs_nothing(
    run: Run, tmp_path: Path
) -> None:
    run.start(STUB_CRASH="ckpt-2", STUB_ONCE=tmp_path)
    run.save()
    run.files[0].unlink()
    run.save()
    assert run.reads() == [run.texts("first")] * 2
    (told,) = wait_until(run.differences, "the loss is told")
    assert "is gone since this run started" in told
    assert "put it back before the next start" in told


# -- the daemon's side alone


def settings_of(folder: Path, *plugins: str) -> Settings:
    (folder / "watcher").mkdir(exist_ok=True)
    (folder / "pipeline.config").write_text("a")
    flags = {"model_dir": str(folder), "pipeline_config": str(folder / "pipeline.config")}
    return load_settings({**flags, "metric_plugin": plugins}, {}, None)


def snapshot_of(settings: Settings) -> Snapshot:
    run, carrier = settings.run, settings.carrier
    return take_snapshot(settings.evaluator, run.model_path, run.state_path, carrier.working_path)


def options_of(settings: Settings) -> dict[str, Any]:
    """What a worker of a run is told."""
    assert isinstance(settings.evaluator, OdApiSettings)
    snapshot = snapshot_of(settings)
    return ObjectDetection(settings.evaluator, settings.exports, "python", snapshot).options


def looked(snapshot: Snapshot) -> list[str]:
    """What it says after a look that is over."""
    snapshot.look()
    for thread in threading.enumerate():
        if thread.name == "snapshot":
            thread.join(5)
    return snapshot.differences()


def test_a_file_that_is_written_anew_with_the_same_content_is_no_difference(tmp_path: Path) -> None:
    snapshot = snapshot_of(settings_of(tmp_path))
    assert looked(snapshot) == []
    (tmp_path / "pipeline.config").unlink()
    assert len(looked(snapshot)) == 1
    (tmp_path / "pipeline.config").write_text("a")
    assert looked(snapshot) == []
    (tmp_path / "pipeline.config").write_text("b")
    assert len(looked(snapshot)) == 1


def test_a_start_takes_the_place_of_an_earlier_one_and_touches_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("1")
    (tmp_path / "two.py").write_text("2")
    folder = tmp_path / "watcher" / "snapshot"
    plugins = [f"{tmp_path}/one.py:f", f"{tmp_path}/two.py:f", f"{tmp_path}/one.py:g", "installed"]
    snapshot_of(settings_of(tmp_path, *plugins))
    (folder / "label_map.pbtxt").write_text("of the run before")
    (folder / "notes.txt").write_text("the user's")
    before = (folder / "pipeline.config").stat().st_ino
    settings = settings_of(tmp_path, plugins[1])
    request = options_of(settings)
    held = {path.name: path.read_text() for path in folder.iterdir()}
    assert held == {"pipeline.config": "a", "plugin-0.py": "2", "notes.txt": "the user's"}
    assert request["metric_plugins"] == [f"{folder}/plugin-0.py:f"]
    assert (folder / "pipeline.config").stat().st_ino == before  # the same, so not written anew
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "plugin-0.py")} == {
        0o700,
        0o600,
    }


def test_a_plugin_that_is_not_there_is_left_to_the_worker_to_refuse(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "none.py:mine", "installed")
    request = options_of(settings)
    assert request["metric_plugins"] == [f"{Path.cwd()}/none.py:mine", "installed"]


# -- the worker's side alone


def given(folder: Path, originals: dict[str, str] | None = None) -> TakenByWorker:
    return TakenByWorker({"folder": str(folder), "originals": originals or {}})


def test_the_first_worker_takes_the_label_map_and_every_other_one_reads_that(
    tmp_path: Path,
) -> None:
    folder, label_map = tmp_path / "snapshot", tmp_path / "labels.pbtxt"
    folder.mkdir()
    label_map.write_text("first")
    copy = given(folder).take(str(label_map), "label_map.pbtxt")
    label_map.write_text("second")
    later = given(folder)
    assert later.take(str(label_map), "label_map.pbtxt") == copy
    label_map.unlink()
    assert given(folder).take(str(label_map), "label_map.pbtxt") == copy
    assert Path(copy).read_text() == "first"
    assert later.taken == {str(label_map): copy}
    assert list(folder.iterdir()) == [Path(copy)]


def test_what_is_no_local_file_is_read_where_it_is(tmp_path: Path) -> None:
    for path in ("gs://bucket/labels.pbtxt", str(tmp_path / "none.pbtxt")):
        snapshot = given(tmp_path)
        assert snapshot.take(path, "label_map.pbtxt") == path
        assert snapshot.taken == {}
    assert TakenByWorker().take("labels.pbtxt", "label_map.pbtxt") == "labels.pbtxt"


def test_messages_about_copies_name_the_files_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "labels.pbtxt").write_text("item {")
    snapshot = given(tmp_path, {"/state/pipeline.config": "mine.config"})
    copy = snapshot.take(str(tmp_path / "labels.pbtxt"), "label_map.pbtxt")
    reader, writer = os.pipe()
    replies = protocol.Replies(writer)
    replies.named = snapshot.named
    replies.refuse(Refusal("bad", f"/state/pipeline.config names {copy}", f"look at {copy}"))
    reply = json.loads(os.read(reader, 4096))
    os.close(reader)
    os.close(writer)
    assert reply["message"] == f"mine.config names {tmp_path}/labels.pbtxt"
    assert reply["hint"] == f"look at {tmp_path}/labels.pbtxt"


def test_a_copied_plugin_runs_as_if_it_lay_where_the_user_has_it(tmp_path: Path) -> None:
    home, copy = tmp_path / "home", tmp_path / "plugin-0.py"
    home.mkdir()
    (home / "threshold.txt").write_text("0.5")
    (home / "mine.py").write_text("def mine(*_): return 0.9")
    copy.write_text(
        "import pathlib\n"
        "HERE = pathlib.Path(__file__).with_name('threshold.txt')\n"
        "def mine(*_): return float(HERE.read_text())\n"
        "def bad(*_): return 1 / 0\n"
    )
    snapshot = given(tmp_path, {str(copy): str(home / "mine.py")})
    mine, bad = load([f"{copy}:mine", f"{copy}:bad"], snapshot)
    mine.try_out([], {})
    assert mine.compute([], {})[0] == {"mine": 0.5}
    with pytest.raises(Refusal) as caught:
        bad.try_out([], {})
    assert f"metric_plugin ({home}/mine.py:bad) failed" in caught.value.message
    assert "(mine.py, line 4)" in caught.value.message
