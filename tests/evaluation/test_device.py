"""Which device is chosen, what the GPUs are asked, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from two_gpus import FAKE
from watching import cli

from watcher.config import load_settings
from watcher.errors import ConfigError
from watcher.evaluation.device import Choice, choose
from watcher.evaluation.gpus import Gpu, Listing
from watcher.launch.gpus import evaluation_device

GIB = 1 << 30
LOOK = "from watcher.evaluation.gpus import list_gpus; print(list_gpus())"


def gpu(index: int, free: int = 15, computing: set[int] | None = frozenset(), **more: bool) -> Gpu:
    uuid = f"GPU-{'abcdef'[index]}{index}"
    seen = None if computing is None else frozenset(computing)
    return Gpu(index, uuid, "H200", free * GIB, 16 * GIB, seen, **more)


def auto(*gpus: Gpu, **known: object) -> Choice:
    (choice,) = choose("auto", Listing(gpus), **known)  # type: ignore[arg-type]
    return choice


def test_auto_takes_the_gpu_with_most_free_memory_on_which_nobody_computes():
    choice = auto(gpu(0, 15, {7}), gpu(1, 12), gpu(2, 14), gpu(3, 15, {8, 9}))
    assert choice.device == "GPU-c2"
    assert choice.reason == "no process computes on it, and 14336 MiB of it are free"


def test_of_equal_gpus_auto_leaves_the_first_to_a_trainer_that_starts_later():
    assert auto(gpu(0), gpu(1), gpu(2)).device == "GPU-c2"


@pytest.mark.parametrize(
    ("only", "known", "why"),
    [
        (gpu(0, 15, {7}), {}, "process 7 computes on it"),
        (gpu(0, 15, {7, 8}), {}, "2 processes compute on it"),
        (gpu(0), {"taken": {"GPU-a0"}}, "the trainer's"),
        (gpu(0), {"visible": "1,2"}, "not in CUDA_VISIBLE_DEVICES"),
        (gpu(0), {"visible": "-1"}, "not in CUDA_VISIBLE_DEVICES"),
        (gpu(0, split=True), {}, "divided by MIG"),
        (gpu(0, 15, None), {}, "who computes on it cannot be told"),
        (gpu(0, 3), {}, "only 3072 of 16384 MiB are free"),
        (gpu(0, 15, {7, 8}), {"evaluators": {"GPU-a0": 7}}, "process 8 computes on it"),
    ],
)
def test_a_gpu_that_may_be_the_trainers_is_left_for_the_cpu_and_it_says_why(
    only: Gpu, known: dict[str, object], why: str
):
    choice = auto(only, **known)
    assert choice.device == "cpu" and not choice.is_gpu
    assert choice.reason.startswith("no GPU is free: gpu:0: ") and why in choice.reason


def test_without_any_gpu_the_cpu_is_taken_and_it_says_why():
    (choice,) = choose("auto", Listing(problem="there is no nvidia-smi"))
    assert choice == Choice("cpu", "no NVIDIA GPU is seen: there is no nvidia-smi")


def test_a_gpu_that_only_another_watcher_evaluates_on_is_shared_when_no_other_is_free():
    theirs = gpu(1, 3, {77})
    shared = auto(gpu(0, 9, {5}), theirs, evaluators={"GPU-b1": 77})
    assert shared.device == "GPU-b1" and "only another watcher evaluates on it" in shared.reason
    assert auto(gpu(0, 9), theirs, evaluators={"GPU-b1": 77}).device == "GPU-a0"


def test_named_gpus_become_their_uuids_in_the_order_given():
    listing = Listing((gpu(0), gpu(1, computing={5}), gpu(2)))
    two = choose("gpu:2,GPU-b", listing)
    assert [choice.device for choice in two] == ["GPU-c2", "GPU-b1"]
    assert two[0].label == "gpu:2 H200 (GPU-c2)"
    assert choose("cpu", Listing(), source="by default")[0].reason == "by default"
    assert two[1].reason == "as set; process 5 computes on it already"
    # What nothing lists is taken as it is: the worker refuses it if it is not there.
    assert [choice.device for choice in choose("gpu:3", Listing())] == ["gpu:3"]
    assert [choice.device for choice in choose("MIG-x", listing)] == ["MIG-x"]


@pytest.mark.parametrize("device", ["gpu:7", "GPU-zzz", "gpu:0,gpu:7", "gpu:0,GPU-a0"])
def test_a_gpu_that_is_not_there_or_named_twice_is_refused(device: str):
    with pytest.raises(ConfigError, match=r"is not there|names a GPU twice") as caught:
        choose(device, Listing((gpu(0), gpu(1))))
    assert caught.value.hint


@pytest.mark.parametrize("device", ["gpu", "gpu:1,", "cpu,gpu:1", "auto,gpu:1", "gpu:1 gpu:2", ""])
def test_what_is_no_device_is_refused_with_what_there_is(device: str):
    given = {"model_dir": "m", "pipeline_config": "p", "device": device}
    with pytest.raises(ConfigError, match="expected cpu, auto, gpu:N or a GPU's UUID"):
        load_settings(given, {}, None)


def test_each_of_several_gpus_is_held_against_the_trainers():
    gpus = [gpu(0), gpu(1), gpu(2)]
    assert evaluation_device("gpu:1,gpu:2", "0", None, gpus).device == "gpu:1,gpu:2"
    with pytest.raises(ConfigError, match=r"device \(gpu:2\) is a GPU that the trainer uses too"):
        evaluation_device("gpu:1,gpu:2", "0,2", None, gpus)
    assert evaluation_device("auto", "0", None, gpus).device == "GPU-c2"


# -- what the GPUs are asked


def look(**environment: object) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", LOOK],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )
    return ended.stdout


def nvidia_smi(folder: Path) -> str:
    """Put a program in a folder that answers as nvidia-smi does; returns a PATH that finds it."""
    program = folder / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$1" in\n'
        '*compute-apps*) echo "GPU-b1, 4242"; echo "GPU-b1, [N/A]";;\n'
        '*) echo "0, GPU-a0, H200, 15360, 16384, [N/A]";'
        ' echo "1, GPU-b1, H200, 9000, 16384, Enabled";;\nesac\n'
    )
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_nvml_is_asked_for_memory_processes_and_mig(tmp_path: Path):
    answers = tmp_path / "gpus.json"
    gpus = [
        {"uuid": "GPU-a0", "name": "H200", "total": 16 * GIB, "free": 15 * GIB, "computing": [7]},
        {"uuid": "GPU-b1", "name": "H200", "total": 16 * GIB, "computing": None, "mig": True},
    ]
    answers.write_text(json.dumps(gpus))
    expected = (gpu(0, 15, {7}), gpu(1, 16, None, split=True))
    assert look(PYTHONPATH=FAKE, FAKE_NVML=answers) == f"{Listing(expected)}\n"


def test_where_nvml_fails_nvidia_smi_is_asked(tmp_path: Path):
    answers = tmp_path / "gpus.json"
    answers.write_text('"Driver/library version mismatch"')
    seen = look(PYTHONPATH=FAKE, FAKE_NVML=answers, PATH=nvidia_smi(tmp_path))
    expected = Gpu(1, "GPU-b1", "H200", 9000 << 20, 16 * GIB, frozenset({4242, 0}), True)
    assert seen == f"{Listing((gpu(0), expected))}\n"
    assert "NVML: Driver/library version mismatch" in look(
        PYTHONPATH=FAKE, FAKE_NVML=answers, PATH=tmp_path / "empty"
    )


def test_an_nvidia_smi_that_fails_or_talks_nonsense_is_told(tmp_path: Path):
    path = nvidia_smi(tmp_path)
    for text in ("#!/bin/sh\nexit 9\n", "#!/bin/sh\necho Failed to initialize\n"):
        (tmp_path / "nvidia-smi").write_text(text)
        assert "nvidia-smi failed: " in look(PATH=path)


def test_the_real_nvidia_ml_py_reads_a_library_that_answers_as_nvml_does(tmp_path: Path):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, to make a library that nvidia-ml-py can load")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, FAKE / "nvml.c"], check=True)
    expected = (
        Gpu(0, "GPU-0", "Compiled GPU 0", 15 * GIB, 16 * GIB),
        Gpu(1, "GPU-1", "Compiled GPU 1", 4 * GIB, 16 * GIB, frozenset({4242, 4243})),
    )
    assert look(LD_LIBRARY_PATH=tmp_path) == f"{Listing(expected)}\n"


def test_a_gpu_that_is_not_there_ends_the_start_with_those_there_are(tmp_path: Path):
    answers, pipeline = tmp_path / "gpus.json", tmp_path / "pipeline.config"
    answers.write_text('[{"uuid": "GPU-a0", "name": "H200"}]')
    pipeline.touch()
    flags = ["--pipeline-config", pipeline, "--device", "gpu:1"]
    ended = cli("run", tmp_path, *flags, PYTHONPATH=str(FAKE), FAKE_NVML=str(answers))
    assert ended.returncode == 1
    assert "device (gpu:1) is not there" in ended.stderr
    assert "there are: gpu:0 H200 (GPU-a0)" in ended.stderr
