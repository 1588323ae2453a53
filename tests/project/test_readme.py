"""The pages' commands do what they say: each is typed as it stands there, beside a run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from pages import DOCS, README, shell_blocks
from watching import ROOT, STUB, Watcher

NAME = "checkpoint-watcher "
# What the help texts have for examples parses (test_help), and is about runs of their own.
PAGES = [README, *(path for path in DOCS if path.name != "commands.md")]

# What cannot be typed here as it stands: an elided command, and what runs until it is stopped.
ELIDED = " ... "
ENDLESS = {"web": "--port 0", "status --watch": ""}
# What a test machine has not: a second GPU, a training environment, a person in the records.
INSTEAD = (
    (r"--device (gpu:\d|cpu,gpu-box-2/gpu:1)", "--device cpu"),
    (r"CUDA_VISIBLE_DEVICES=0 ", ""),
    (r"/path/to/training/env/bin/python|/opt/od/bin/python|\.venv-od/bin/python", str(STUB)),
    (r"build/demo/model_dir|(?<![-\w/])(model_dir|finer)(?=\s|$)", "MODEL_DIR"),
    (r"(?<![-\w/])(pipeline|finer)\.config", "PIPELINE.config"),
    # There is no bucket here: tests/runtime/test_bucket_run.py has one.
    (r" --publish \S+", " --pipeline-config PIPELINE.config"),
    (r"gs://bucket/run|~/(watcher|train)/run(?= )", "MODEL_DIR"),
    (r"~/watcher/run$", "MODEL_DIR"),
    (r" --state-dir MODEL_DIR", ""),
    # A state folder elsewhere is for a run that has none yet.
    (
        r"(checkpoint-watcher run )MODEL_DIR(.* --state-dir )~\S*",
        r"mkdir new && cp MODEL_DIR/ckpt-* new && \1new\2elsewhere",
    ),
    (r"(checkpoint-watcher install-units )", r"\1--dry-run "),
    # What the stub does not measure.
    (r"AP\[person\]|mAP75", "mAP"),
    (r"latency_ms", "loss"),
    (r"(checkpoint-watcher run\b)", r"\1 --exit-when-idle 0.2"),
    (
        r"(checkpoint-watcher rebuild )MODEL_DIR",
        r"cp -r runs/cats lost && rm lost/watcher/watcher.db* && \1lost",
    ),
    # All stays in best/, so that the commands' order does not matter.
    (r"--top-k 3", "--top-k -1"),
    (r"(checkpoint-watcher init )", r"\1--force -o found.toml "),
)
# A finding is no fault of the command; nor is it that the trainer here is not TensorFlow's.
FINDINGS = ("doctor",)


def commands() -> list[str]:
    """Every command of ours in the pages, once."""
    found = {}
    for block in (block for page in PAGES for block in shell_blocks(page.read_text())):
        for line in block.splitlines():
            command = re.sub(r"\s+#.*|\s*&$", "", line).strip()
            if re.match(rf"(\w+=\S* )*{NAME}", command) and "  ranked by" not in command:
                found[" ".join(command.split())] = True
    return list(found)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages' reader has it: a run, two more, and the programs on the path."""
    folder = tmp_path_factory.mktemp("desk")
    for name, saves in (("MODEL_DIR", 31), ("runs/cats", 3), ("runs/dogs", 3)):
        parent = folder / name
        parent.mkdir(parents=True)
        watcher = Watcher(parent)
        manager = Manager(watcher.model_dir, max_to_keep=None)
        for number in range(saves):
            manager.save(100 * number, model_tensors(1000, number))
        assert watcher.run("--run-name", Path(name).name, "--top-k", -1) == 0
        # Their MODEL_DIR is the folder itself.
        (parent / "model_dir").rename(folder / "here")
        (parent / "pipeline.config").replace(folder / "PIPELINE.config")
        for left in parent.iterdir():
            left.unlink()
        parent.rmdir()
        (folder / "here").rename(parent)
    # As init would write it, in a training environment.
    (folder / "checkpoint-watcher.toml").write_text(
        f'model_dir = "MODEL_DIR"\npipeline_config = "PIPELINE.config"\npython = "{STUB}"\n'
    )
    programs = folder / "bin"
    programs.mkdir()
    (programs / "checkpoint-watcher").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m watcher "$@"\n'
    )
    trainer = (
        f"{sys.executable} {ROOT / 'tests' / 'helpers' / 'fake_trainer.py'} MODEL_DIR --saves 2"
    )
    (programs / "python").write_text(
        f'#!/bin/sh\n[ "$1" = -m ] && exec {trainer}\nexec {STUB} "$@"\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    # The same for a reader who trains with Model Garden.
    (folder / "garden" / "MODEL_DIR").mkdir(parents=True)
    for file in ("MODEL_DIR/params.yaml", "retinanet.yaml"):
        (folder / "garden" / file).write_text("trainer: {train_steps: 200}\n")
    return folder


def environment(desk: Path) -> dict[str, str]:
    datasette = ROOT / ".venv-web" / "bin" / "python"
    return {
        **os.environ,
        "PATH": f"{desk / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "BROWSER": "true",
        "STUB_PYTHON": sys.executable,
        "COLUMNS": "100",
        "CHECKPOINT_WATCHER_DATASETTE": str(datasette),
        "CHECKPOINT_WATCHER_EVICT_SECONDS": "0",
        "CHECKPOINT_WATCHER_TOP_K": "-1",
    }


@pytest.mark.parametrize("command", [one for one in commands() if ELIDED not in f"{one} "])
def test_a_command_of_the_pages_runs(desk: Path, command: str) -> None:
    for pattern, replacement in INSTEAD:
        command = re.sub(pattern, replacement, command)
    name = command.split(NAME, 1)[1].split()[0]
    cwd = desk / "garden" if "--experiment" in command else desk
    if name in ENDLESS and "--export" not in command:
        runs_until_it_is_stopped(desk, f"{command} {ENDLESS[name]}")
        return
    ran = subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env=environment(desk),
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = [line for line in ran.stderr.splitlines() if line.startswith(("error:", "Usage:"))]
    assert not told, f"{command}\n{ran.stderr}"
    assert ran.returncode in ((0, 1) if name in FINDINGS else (0,)), ran.stderr
    assert "Traceback" not in ran.stderr


def runs_until_it_is_stopped(desk: Path, command: str) -> None:
    started = subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=desk,
        env=environment(desk),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout and started.stdout.readline(), started.communicate()[1]
        started.send_signal(signal.SIGINT)
        assert started.wait(timeout=60) in (0, 130)
    finally:
        started.kill()
        started.communicate()


def test_the_pages_show_every_kind_of_use() -> None:
    """So that the test above does not go empty when the pages' form changes."""
    shown = {command.split(NAME, 1)[1].split()[0] for command in commands()}
    assert {"run", "train", "status", "best", "compare", "doctor", "explain", "plot"} <= shown
    assert len(commands()) > 20
    assert sum(ELIDED in f"{one} " for one in commands()) < 4
