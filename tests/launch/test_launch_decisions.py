"""What the launcher decides, on values alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from fake_trainer import Killed, Manager, model_tensors, write_checkpoint
from folder_source import source_of
from watching import wait_until

from watcher.errors import ConfigError
from watcher.evaluation.device import visible_to_cuda
from watcher.evaluation.gpus import Gpu
from watcher.launch.command import flag_value, interpreter, visible_devices
from watcher.launch.companion import Companion
from watcher.launch.decide import Attempts, describe, exit_code, is_crash
from watcher.launch.garden_trainer import GardenTrainer
from watcher.launch.gpus import evaluation_device
from watcher.launch.saves import Checkpoints, SaveWatch
from watcher.launch.sentinel import judge, run_identity

TRAINER = ["python", "-m", "object_detection.model_main_tf2"]
GPUS = [Gpu(0, "GPU-aaa-1", "H"), Gpu(1, "GPU-bbb-2", "H"), Gpu(2, "GPU-ccc-3", "H")]
MIXED = [Gpu(0, "GPU-aaa-1", "slow"), Gpu(1, "GPU-bbb-2", "fast")]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--model_dir=M"], "M"),
        (["--model_dir", "M"], "M"),
        (["-model_dir", "M", "--other", "x"], "M"),
        (["--model_dir=A", "--model_dir=B"], "B"),
        (["--model_dir=a=b"], "a=b"),
        (["--model_dir_x=M", "model_dir=M"], None),
        (["--model_dir"], None),
    ],
)
def test_a_flag_is_read_as_absl_reads_it(words: list[str], value: str | None):
    assert flag_value([*TRAINER, *words], "model_dir") == value


def test_the_interpreter_is_found_behind_other_programs():
    assert interpreter(TRAINER) == "python"
    assert (
        interpreter(["nice", "-n", "5", "/env/bin/python3.9", "train.py"]) == "/env/bin/python3.9"
    )
    assert interpreter(["./train.sh", "pythonic"]) is None


def test_the_trainers_devices_are_those_of_its_own_environment():
    assert visible_devices(TRAINER, {}) is None
    assert visible_devices(TRAINER, {"CUDA_VISIBLE_DEVICES": "0"}) == "0"
    given = ["env", "CUDA_VISIBLE_DEVICES=1", *TRAINER, "CUDA_VISIBLE_DEVICES=2"]
    assert visible_devices(given, {"CUDA_VISIBLE_DEVICES": "0"}) == "1"


@pytest.mark.parametrize(
    ("visible", "used"),
    [
        (None, {"GPU-aaa-1", "GPU-bbb-2", "GPU-ccc-3"}),
        ("", set()),
        ("-1", set()),
        ("0,2", {"GPU-aaa-1", "GPU-ccc-3"}),
        ("1,-1,2", {"GPU-bbb-2"}),
        ("GPU-bbb", {"GPU-bbb-2"}),
        ("MIG-x", {"MIG-x"}),
    ],
)
def test_the_trainers_gpus_are_those_that_cuda_leaves_it(visible: str | None, used: set[str]):
    assert visible_to_cuda(visible, GPUS) == used


@pytest.mark.parametrize(
    ("device", "visible"),
    [("gpu:1", None), ("gpu:1", "1"), ("gpu:1", "GPU-bbb"), ("GPU-bbb-2", "0,1")],
)
def test_a_gpu_of_the_trainers_is_refused(device: str, visible: str | None):
    with pytest.raises(ConfigError, match="a GPU that the trainer uses too") as caught:
        evaluation_device(device, visible, None, GPUS)
    assert "CUDA_VISIBLE_DEVICES=0" in (caught.value.hint or "")


def test_another_gpu_the_cpu_or_a_trainer_on_the_cpu_are_no_conflict():
    assert evaluation_device("cpu", None, None, GPUS).device == "cpu"
    assert evaluation_device("gpu:1", "0", None, GPUS).device == "gpu:1"
    assert evaluation_device("gpu:1", "-1", None, GPUS).device == "gpu:1"
    assert evaluation_device("gpu:0", None, None, []).device == "gpu:0"  # the worker will refuse it


def test_auto_takes_no_gpu_where_the_trainer_may_use_each():
    choice = evaluation_device("auto", None, None, GPUS)
    assert (choice.device, choice.reason) == ("cpu", "the trainer may use every GPU")


def test_numbers_that_mean_different_gpus_to_cuda_are_refused():
    for device in ("gpu:1", "auto"):
        with pytest.raises(ConfigError, match="may mean another GPU to the trainer"):
            evaluation_device(device, "0", None, MIXED)
    assert evaluation_device("gpu:1", "0", "PCI_BUS_ID", MIXED).device == "gpu:1"
    assert evaluation_device("gpu:1", "GPU-aaa", None, MIXED).device == "gpu:1"


@pytest.mark.parametrize(
    ("content", "identity", "is_new", "kind"),
    [
        (None, "me", True, "none"),
        ({"run": "me"}, "me", False, "valid"),
        ({"run": "other"}, "me", True, "stale"),
        ({"run": "other"}, None, True, "valid"),
        ({"run": "other"}, None, False, "stale"),
        ({}, "me", True, "stale"),
        ({"run": 5}, None, True, "stale"),
    ],
)
def test_only_a_sentinel_of_this_run_counts(content, identity, is_new: bool, kind: str):
    assert judge(content, identity, is_new=is_new).kind == kind


def test_the_identity_comes_from_best_json_where_the_database_is_closed_to_us(tmp_path: Path):
    assert run_identity(tmp_path / "watcher", tmp_path / "best") is None
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text('{"run_uuid": "me"}')
    assert run_identity(tmp_path / "watcher", tmp_path / "best") == "me"
    (tmp_path / "best" / "best.json").write_text("[1]")
    assert run_identity(tmp_path / "watcher", tmp_path / "best") is None


def test_a_crash_is_what_nobody_asked_for():
    assert not is_crash(0)
    assert all(is_crash(code) for code in (1, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT))
    assert not any(is_crash(-number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    assert (exit_code(3), exit_code(-9)) == (3, 137)
    assert [describe(code) for code in (1, -9, -40)] == [
        *("ended with code 1", "was ended by SIGKILL", "was ended by signal 40")
    ]


def test_delays_double_up_to_five_minutes_and_progress_begins_them_anew():
    attempts, waits = Attempts(limit=9, first_seconds=5), []
    for _ in range(10):
        attempts, pause = attempts.after(progressed=False)
        waits.append(pause)
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300, None]
    attempts, pause = attempts.after(progressed=True)
    assert (attempts.made, pause) == (1, 5)


def checkpoints(model_dir: Path) -> Checkpoints:
    return Checkpoints(source_of(model_dir), model_dir)


@pytest.mark.parametrize("stage", ["temp", "data", "index"])
def test_each_stage_of_a_save_is_seen_until_it_does_not_change_for_long(tmp_path: Path, stage: str):
    saves = SaveWatch(checkpoints(tmp_path), patience_seconds=30)
    manager = Manager(tmp_path)
    manager.save(100, model_tensors(1000, "1"))
    assert not saves.in_progress(now=0)
    with pytest.raises(Killed):
        manager.save(200, model_tensors(1000, "2"), die_at=stage)
    assert saves.in_progress(now=10) and saves.in_progress(now=39)
    assert not saves.in_progress(now=40)
    assert not SaveWatch(checkpoints(tmp_path), patience_seconds=30).in_progress(
        now=0
    )  # the next trainer
    assert checkpoints(tmp_path).complete().keys() == {"ckpt-1"}


@pytest.mark.parametrize("folder", GardenTrainer.side_folders)
def test_a_save_of_model_garden_into_a_folder_of_its_own_is_waited_for(tmp_path: Path, folder: str):
    Manager(tmp_path).save(100, model_tensors(1000, "1"))
    looked = Checkpoints(source_of(tmp_path), tmp_path, GardenTrainer.side_folders)
    saves = SaveWatch(looked, patience_seconds=30)
    Manager(tmp_path / folder).save(100, model_tensors(1000, "1"))
    assert not saves.in_progress(now=0)
    with pytest.raises(Killed):
        Manager(tmp_path / folder).save(200, model_tensors(1000, "2"), die_at="index")
    assert saves.in_progress(now=0) and not saves.in_progress(now=31)
    assert looked.complete().keys() == {"ckpt-1"}


def test_a_save_ends_when_the_state_file_names_it(tmp_path: Path):
    manager = Manager(tmp_path, max_to_keep=1)
    manager.save(100, model_tensors(1000, "1"))
    state = (tmp_path / "checkpoint").read_text()
    manager.save(200, model_tensors(1000, "2"))
    assert checkpoints(tmp_path).unfinished() == frozenset()
    (tmp_path / "checkpoint").write_text(state)
    assert SaveWatch(checkpoints(tmp_path / "none"), 30).in_progress(0) is False
    assert len(checkpoints(tmp_path).unfinished()) == 1
    (tmp_path / "checkpoint").unlink()
    assert len(checkpoints(tmp_path).unfinished()) == 1


@pytest.mark.parametrize("named_before", [False, True])
def test_a_whole_checkpoint_is_waited_for_to_be_named_only_where_this_trainer_names_them(
    tmp_path: Path, named_before: bool
):
    if named_before:
        Manager(tmp_path).save(100, model_tensors(1000, "1"))
    saves = SaveWatch(checkpoints(tmp_path), patience_seconds=30)
    write_checkpoint(tmp_path, "ckpt-8", 200, model_tensors(1000, "2"))
    assert saves.in_progress(now=0)  # it may yet be named
    assert not saves.in_progress(now=11)
    write_checkpoint(tmp_path, "ckpt-9", 300, model_tensors(1000, "3"))
    assert not saves.in_progress(now=12)
    Manager(tmp_path).save(400, model_tensors(1000, "4"))
    write_checkpoint(tmp_path, "ckpt-12", 500, model_tensors(1000, "5"))
    assert saves.in_progress(now=13) and saves.in_progress(now=42)
    assert not saves.in_progress(now=43)


def test_a_trainer_that_named_one_save_and_no_other_is_not_waited_for_at_each_of_them(
    tmp_path: Path,
):
    saves = SaveWatch(checkpoints(tmp_path), patience_seconds=30)
    Manager(tmp_path).save(100, model_tensors(1000, "1"))
    for number in range(2, 6):
        write_checkpoint(tmp_path, f"ckpt-{number}", 100 * number, model_tensors(1000, number))
        assert saves.in_progress(now=10 * number) == (number < 5)


def tend_through(companion: Companion, now: float) -> None:
    """Tend until what runs has ended, at one time."""
    companion.tend(now)
    wait_until(lambda: companion.tend(now) or companion.pid is None, "it ended")


def test_a_watcher_that_does_not_last_is_started_again_for_as_long_as_the_trainer_runs(
    tmp_path: Path,
):
    said: list[str] = []
    starts, well = tmp_path / "starts", tmp_path / "well"
    program = f"echo >> {starts}; test -e {well} && exec sleep 60; exit 1"
    companion = Companion(["sh", "-c", program], said.append)
    for now in range(0, 3600, 25):
        tend_through(companion, now)
    assert companion.in_trouble and not companion.given_up
    # After 1 s, 2 s and so on: within an hour 9 times, and then every 300 s.
    count = len(starts.read_text().splitlines())
    assert 15 <= count <= 20
    assert said == [
        "the watcher ended with code 1; it is started again, after 1 s",
        "the watcher ended with code 1, and does not last: it is started again as long as the"
        " trainer runs, at most 300 s later each time",
    ]
    well.touch()
    companion.tend(now + 300)
    wait_until(lambda: len(starts.read_text().splitlines()) > count, "it is started once more")
    assert companion.pid
    companion.stop()


def test_a_watcher_that_does_not_last_after_the_training_is_given_up_and_its_command_told():
    said: list[str] = []
    companion = Companion(["false", "--flag"], said.append)
    for now in range(0, 1000, 100):
        tend_through(companion, now)
    said.clear()
    companion.finish()
    now = 1000.0
    while not companion.given_up:
        tend_through(companion, now)
        now += 1.0
    assert [text for text in said if "started again" in text] == [
        f"the watcher ended with code 1; it is started again, after {pause} s"
        for pause in (1, 2, 4)
    ]
    assert said[-1] == "false --flag"


def test_a_watcher_that_is_refused_is_given_up_at_once():
    said: list[str] = []
    companion = Companion(["sh", "-c", "exit 2"], said.append)
    tend_through(companion, 0.0)
    assert companion.given_up and len(said) == 1


def test_a_watcher_that_somebody_stopped_ends_when_it_is_asked_to(tmp_path: Path):
    ready, ended = tmp_path / "ready", tmp_path / "ended"
    # A shell that is stopped while it starts a program in the foreground waits for that by vfork,
    # and is not stopped for the kernel.
    program = f"trap 'touch {ended}; exit' TERM; sleep 60 & touch {ready}; wait"
    companion = Companion(["sh", "-c", program], lambda text: None)
    companion.tend(0.0)
    wait_until(ready.exists, "it heeds SIGTERM")
    pid = companion.pid
    assert pid
    os.killpg(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", "it is stopped")
    companion.stop()
    assert ended.exists()
