"""init: a settings file with what was found, which `run` takes as it is and with every line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click import Context
from fake_trainer import Manager, model_tensors
from watching import ROOT, STUB, Watcher, cli

from watcher.cli import cli as commands
from watcher.config import (
    FILE_ONLY,
    LaunchSettings,
    Settings,
    describe,
    load_as,
    load_settings,
    names,
)
from watcher.config.settings import own_names
from watcher.errors import ConfigError
from watcher.evaluation.gpus import Gpu, Listing
from watcher.launch.od_trainer import OdTrainer
from watcher.launch.processes import Trainer
from watcher.setup.look import find_device
from watcher.setup.settings_file import Outlook

FACTS = {
    "versions": {"python": "3.11.7", "tensorflow": "2.13.1"},
    "num_steps": 30000,
    "images": 500,
    "coco_backend": "numpy",
    "metrics_sets": ["pascal_voc_detection_metrics"],
    "eval_inputs": ["val", "test"],
}


def environment(folder: Path, **changed: object) -> Path:
    """A training environment that has all that is looked for, and its interpreter."""
    facts = {**FACTS, **changed}
    lines = [{"type": "fact", "name": name, "value": value} for name, value in facts.items()]
    text = "\n".join(json.dumps(line) for line in [*lines, {"type": "done"}])
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ncat > /dev/null\ncat <<'EOF'\n{text}\nEOF\n")
    python.chmod(0o755)
    return python


def broken(folder: Path) -> Path:
    """An environment that has the packages, and cannot import them."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\necho no libcuda >&2; exit 1\n')
    python.chmod(0o755)
    return python


@pytest.fixture
def init(watcher: Watcher, tmp_path: Path):
    """Run init where nothing of this machine is found; returns the finished process."""

    def run(*words: object, model_dir: Path | None = None, **variables: str):
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        given = [model_dir or watcher.model_dir, *words]
        return subprocess.run(
            [sys.executable, "-m", "watcher", "init", *map(str, given)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={
                "PATH": path,
                "HOME": str(tmp_path / "home"),
                "PYTHONPATH": str(ROOT),
                **variables,
            },
            timeout=60,
        )

    return run


def test_what_is_found_is_set_and_run_takes_the_file_as_it_is(
    init, watcher: Watcher, tmp_path: Path
):
    broken(tmp_path / "venv-broken")
    python = environment(tmp_path / "venv-tf")
    ended = init()
    assert ended.returncode == 0, ended.stderr
    settings = load_settings({}, {}, tmp_path / "checkpoint-watcher.toml")
    assert settings.run.model_path == watcher.model_dir
    assert settings.evaluator.pipeline_config == str(watcher.pipeline)
    assert settings.carrier.python == str(python)
    assert settings.stopping.patience == 6  # a fifth of 30 checkpoints
    assert settings.ranking.metric == "mAP50"  # what Pascal VOC's metrics are found by
    text = (tmp_path / "checkpoint-watcher.toml").read_text()
    assert "There are: val, test." in text and "auto takes numpy there." in text
    doctor, run = ended.stderr.splitlines()[-2:]
    # Which take the file of the folder that they are started in.
    assert doctor.split() == ["checkpoint-watcher", "doctor"]
    assert run.split() == ["checkpoint-watcher", "run"]
    assert not list(watcher.model_dir.iterdir())  # nothing of the trainer's is touched
    words = ["--config", tmp_path / "checkpoint-watcher.toml", "--exit-when-idle", 0.2]
    assert cli("run", *words, "--python", STUB, "--metric", "mAP").returncode == 0


def test_the_header_names_the_commands_that_take_a_file_of_another_name(init):
    every = {name: commands.get_command(Context(commands), name) for name in commands.names}
    taking = {
        name
        for name, command in every.items()
        if any("--config" in parameter.opts for parameter in command.params)
    }
    said = init("-o", "-").stdout.replace("\n# ", " ")
    named = re.search(r"it; ([\w, ]+) take one of another place or name with `--config", said)
    assert named and set(re.split(", | and ", named[1])) == taking


def test_every_setting_is_there_once_and_each_line_loads(init, watcher: Watcher, tmp_path: Path):
    text = init("-o", "-").stdout
    found = re.findall(r"^#?(\w+) = ", text.split("# ---- Boards")[0], re.MULTILINE)
    every = set(names(LaunchSettings)) - FILE_ONLY - own_names("model-garden")
    assert sorted(found) == sorted(every)
    file = tmp_path / "all.toml"
    file.write_text(re.sub(r"^#(\w+ = |\[\[)", r"\1", text, flags=re.MULTILINE))
    load_as(LaunchSettings, {}, {}, file)
    loaded = load_settings({}, {}, file)
    for setting in describe(Settings):
        if setting.default not in (None, "") and setting.name in every - {"metric"}:
            assert loaded.value(setting.name) == setting.default, setting.name
    for line in text.splitlines():
        assert (len(line) <= 100 or "/" in line) and line.strip() == line, line
    own = [one for one in describe(LaunchSettings) if one.name not in names(Settings)]
    for setting in (*describe(Settings), *own):
        flat = re.sub(r"\n# ", " ", text)
        assert setting.about in flat or setting.name in own_names("model-garden"), setting.name


def test_one_line_at_a_time_can_be_made_active(init, tmp_path: Path):
    text = init("-o", "-", "--pipeline-config", "pipeline.config").stdout
    file = tmp_path / "one.toml"
    inactive = re.findall(r"^#\w+ = .*$", text.split("# ---- Boards")[0], re.MULTILINE)
    assert len(inactive) > 50
    for line in inactive:
        file.write_text(text.replace(f"\n{line}\n", f"\n{line[1:]}\n", 1))
        load_settings({}, {}, file)


def test_gaps_are_marked_and_run_names_the_first_of_them(init, watcher: Watcher, tmp_path: Path):
    watcher.pipeline.unlink()
    ended = init("-o", "gaps.toml")
    assert ended.returncode == 0
    text = (tmp_path / "gaps.toml").read_text()
    assert re.search(r"^# TO FILL IN: the file .*\n(# .*\n)*#pipeline_config = ", text, re.M)
    assert re.search(r"^# TO FILL IN: the interpreter .*\n(# .*\n)*#python = ", text, re.M)
    assert ended.stderr.count("TO FILL IN") == 2
    lines = ended.stderr.splitlines()
    assert lines[-4] == "wrote gaps.toml. Next:"
    assert lines[-3].strip() == (
        "fill in pipeline_config and python in gaps.toml"
        " (or run init again with --pipeline-config and --python, and --force)"
    )
    with pytest.raises(ConfigError, match="pipeline_config is not set"):
        load_settings({}, {}, tmp_path / "gaps.toml")


def test_an_environment_that_cannot_import_is_said_to_be_so(init, tmp_path: Path):
    broken(tmp_path / "env")
    ended = init("-o", "-")
    assert "no libcuda" in ended.stderr and "no libcuda" in re.sub(r"\n# ", " ", ended.stdout)
    assert re.search(r"^#python = ", ended.stdout, re.MULTILINE)


def test_the_patience_fits_the_checkpoints_that_lie_there(init, watcher: Watcher, tmp_path: Path):
    environment(tmp_path / "env", num_steps=5000)
    manager = Manager(watcher.model_dir)
    for number in range(1, 5):
        manager.save(100 * number, model_tensors(1000, str(number)))
    ended = init()
    assert load_settings({}, {}, tmp_path / "checkpoint-watcher.toml").stopping.patience == 10
    assert "50 checkpoints in 5000 steps, one every 100 (as the" in ended.stderr


def test_the_file_is_its_owners_alone_since_passwords_may_come_into_it(init, tmp_path: Path):
    file = tmp_path / "own.toml"
    assert init("-o", file).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    assert init("-o", file, "--force").returncode == 0
    assert file.stat().st_mode & 0o777 == 0o644  # which somebody wanted


def test_nothing_is_overwritten_unless_forced(init, tmp_path: Path):
    file = tmp_path / "checkpoint-watcher.toml"
    file.write_text("mine")
    ended = init()
    assert ended.returncode == 1 and file.read_text() == "mine"
    assert ended.stderr.splitlines() == [
        "error: checkpoint-watcher.toml is there already",
        "hint: name another one with -o, or overwrite with --force",
    ]
    assert init("-o", ".", "--force").stderr.splitlines() == [
        "error: . is a folder",
        "hint: name the file to write, -o checkpoint-watcher.toml say",
    ]
    assert init("--force").returncode == 0
    assert file.read_text() != "mine"


def test_a_model_dir_that_is_yet_to_come_is_waited_for_and_a_wrong_one_refused(
    init, watcher: Watcher, tmp_path: Path
):
    environment(tmp_path / "env")
    shutil.rmtree(watcher.model_dir)
    ended = init("-o", "later.toml")
    assert ended.returncode == 0
    assert load_settings({}, {}, tmp_path / "later.toml").source.wait_for_model_dir
    for wrong in (tmp_path / "no" / "run", watcher.pipeline):
        ended = init(model_dir=wrong)
        error, _ = ended.stderr.splitlines()
        assert ended.returncode == 1 and error.startswith("error: model_dir"), error
    ended = init("-o", "/nowhere/file.toml")
    assert ended.stderr.splitlines()[-2].startswith("error: cannot write /nowhere/file.toml")


def test_a_mistyped_model_dir_is_answered_with_the_one_beside_it_and_waited_for_all_the_same(
    init, watcher: Watcher, tmp_path: Path
):
    environment(tmp_path / "env")
    ended = init("-o", "typo.toml", model_dir=tmp_path / "modle_dir")
    meant = f"{tmp_path / 'modle_dir'} does not exist yet: did you mean {watcher.model_dir}?"
    assert ended.returncode == 0 and f"warning: {meant}\n" in ended.stderr
    assert "did you mean" not in init("-o", "right.toml").stderr
    other = init("-o", "other.toml", model_dir=tmp_path / "unlike")
    assert "did you mean" not in other.stderr


def test_after_a_run_its_settings_are_the_ones_that_were_found(
    init, watcher: Watcher, tmp_path: Path
):
    Manager(watcher.model_dir).save(100, model_tensors(1000, "a"))
    watcher.run("--top-k", 5, "--tie-break", "loss", "--notify", "json://secret@host")
    ended = init("--python", environment(tmp_path / "env"), "-o", "again.toml")
    assert ended.returncode == 0, ended.stderr
    again = load_settings({}, {}, tmp_path / "again.toml")
    assert (again.ranking.top_k, again.ranking.tie_break, again.service.notify) == (
        5,
        ("loss",),
        (),
    )
    text = (tmp_path / "again.toml").read_text()
    assert "secret" not in text
    assert "#veto = " in text  # the default, an empty list, is nothing that was found
    assert re.findall(r"^(\w+) = ", text, re.MULTILINE) == [
        *("model_dir", "pipeline_config", "python", "working_directory", "peace", "metric"),
        *("top_k", "tie_break", "patience", "evict_seconds", "tensorboard"),
    ]


def test_a_running_trainer_tells_its_pipeline(init, watcher: Watcher, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    watcher.pipeline.rename(elsewhere / "ssd.config")
    program = elsewhere / "model_main_tf2.py"
    program.write_text("print('ready', flush=True)\nimport time\ntime.sleep(60)\n")
    flags = [f"--model_dir={watcher.model_dir}", "--pipeline_config_path", "ssd.config"]
    with subprocess.Popen(
        [sys.executable, program, *flags], stdout=subprocess.PIPE, cwd=elsewhere
    ) as trainer:
        try:
            assert trainer.stdout and trainer.stdout.readline()
            ended = init("-o", "-")
        finally:
            trainer.kill()
    assert f'\npipeline_config = "{elsewhere}/ssd.config"\n' in ended.stdout
    assert f"Found: trainer {trainer.pid} was started with it." in ended.stdout


GIB = 1 << 30


def gpu(index: int, free: int = 10, *pids: int) -> Gpu:
    """A GPU of 10 GiB."""
    name = f"GPU-{index}"
    return Gpu(index, name, "H100", free * GIB, 10 * GIB, frozenset(pids))


def trainer_on(visible: str | None) -> Trainer:
    return Trainer(4711, Path("/runs/a"), OdTrainer(), (), visible)


@pytest.mark.parametrize(
    ("gpus", "running", "device", "note"),
    [
        ((), [], None, "No NVIDIA GPU is seen"),
        ((gpu(0),), [], None, "the trainer will take"),
        ((gpu(0), gpu(1)), [], "gpu:1", "Keep the trainer off it"),
        ((gpu(0, 1, 4711), gpu(1)), [trainer_on("0")], "gpu:1", ""),
        ((gpu(0), gpu(1)), [trainer_on("1")], "gpu:0", ""),
        ((gpu(0, 1, 4711),), [trainer_on(None)], None, "no GPU is free"),
    ],
)
def test_a_gpu_is_set_where_one_is_free_and_not_the_trainers(gpus, running, device, note):
    outlook = Outlook()
    find_device(outlook, Listing(gpus), running)
    found = outlook.found.get("device")
    assert (found.value if found else None) == device
    assert note in outlook.notes.get("device", "")


def test_a_run_in_a_bucket_gets_a_folder_here(init, tmp_path: Path):
    pipeline = tmp_path / "pipeline.config"
    python = environment(tmp_path / "env")
    done = init(
        "--pipeline-config", pipeline, "--python", python, model_dir="gs://bucket/exp/run-7"
    )
    assert done.returncode == 0, done.stderr
    file = next(tmp_path.rglob("checkpoint-watcher.toml"))
    run = load_settings({}, {}, file).run
    assert run.model_dir == "gs://bucket/exp/run-7"
    assert run.state_path == file.parent / "run-7-watcher"
    assert "wait_for_model_dir = true" not in file.read_text()
    wrong = init("--force", model_dir="gs:/bucket/run-7")
    assert "did you mean gs://bucket/run-7?" in wrong.stderr
