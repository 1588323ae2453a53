"""What `train` tells of an OD API trainer's command before it starts it, and of what was lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import FAKE_TRAINER, Launch
from paces import od_pace
from watching import STUB, cli

from watcher.doctor import cadence
from watcher.launch.modules import found_interpreter
from watcher.launch.od_trainer import missing, mistyped, num_steps, read_pipeline
from watcher.setup.interpreters import as_found

pytestmark = pytest.mark.slow


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    run = Launch(tmp_path)
    run.pipeline.write_text("train_config {\n  # num_steps: 7\n  num_steps: 300\n}\n")
    yield run
    run.end()


def od_trainer(launch: Launch, saves: int, *flags: object) -> list[str]:
    """A `python` that saves as model_main_tf2 does, whatever it is told."""
    script = launch.folder / "bin" / "python"
    script.parent.mkdir(exist_ok=True)
    saving = f"{launch.model_dir} --saves {saves} --interval 0"
    run = f"exec {sys.executable} {FAKE_TRAINER} {saving}"
    script.write_text(f'#!/bin/sh\n[ "$2" = -c ] || {run if saves else "exit 0"}\n')
    script.chmod(0o755)
    given = ["--model_dir", launch.model_dir, "--pipeline_config_path", launch.pipeline, *flags]
    return [str(script), "-u", "model_main_tf2.py", *map(str, given)]


# -- what is never saved


def test_a_training_that_ends_before_the_first_save_is_told_before_and_after(launch: Launch):
    assert launch.run(trainer=od_trainer(launch, 1)) == 0
    before, after = launch.said().splitlines()
    remedy = "set num_steps to 1000, or --checkpoint_every_n to a multiple of 100 that divides 300"
    assert before == (
        "training ends at step 300, before the first save at step 1000: no trained checkpoint is"
        f" saved (a save every 1000 steps, the OD API's default): {remedy}"
    )
    assert after == f"no trained checkpoint was saved; {remedy}"


def test_the_trainers_own_flags_count_before_pipeline_config(launch: Launch):
    flags = ["--checkpoint_every_n=1000", "--num_train_steps", 1500]
    assert launch.run(trainer=od_trainer(launch, 2, *flags)) == 0
    before, after = launch.said().splitlines()
    assert "step 1500, and the last checkpoint will be that of step 1000" in before
    assert after == (
        "the last 500 steps were not saved; set --num_train_steps to 1000 or 2000, or"
        " --checkpoint_every_n to a multiple of 100 that divides 1500"
    )


@pytest.mark.parametrize(
    ("saves", "flags"),
    [
        (4, ["--checkpoint_every_n=100"]),  # all is saved
        (2, ["--num_train_steps=25500"]),  # the last 500 of so many are few
        (1, ["--checkpoint_dir=m"]),  # only evaluates
    ],
)
def test_nothing_is_said_of_a_training_that_saves_what_it_does(
    launch: Launch, saves: int, flags: list[str]
):
    launch.run(trainer=od_trainer(launch, saves, *flags))
    said = launch.said()
    assert "never saved" not in said and "not saved" not in said
    assert ("no trained checkpoint" in said) == (saves == 1)


def test_a_training_that_goes_on_saves_from_the_step_that_it_has_reached(launch: Launch):
    assert launch.run(trainer=od_trainer(launch, 3, "--checkpoint_every_n=100")) == 0
    assert launch.run(trainer=od_trainer(launch, 0)) == 0  # from step 200 to 300
    before, after = launch.said().splitlines()
    assert "training ends at step 300, before the first save at step 1200" in before
    assert after.startswith("no trained checkpoint was saved; set num_steps to 1200, or")
    launch.run(trainer=od_trainer(launch, 0, "--num_train_steps=200"))
    assert "training is at step 200 already, and --num_train_steps is 200" in launch.said()


def test_of_another_trainer_its_checkpoint_from_before_the_first_step_tells(launch: Launch):
    assert launch.run(trainer=launch.saving("--saves", 1)) == 0
    assert launch.said() == "no trained checkpoint was saved"
    assert launch.run(trainer=["true"]) == 0
    assert launch.said() == ""


def test_a_plan_begins_where_training_goes_on():
    assert cadence.plan(od_pace(1000)) is None
    known = cadence.plan(od_pace(1000, 2900, begun=500))
    assert known and (known.ends, known.saves, known.lost) == (2900, 2, 400)
    assert known.remedy.startswith("set num_steps to 2500 or 3500, or")


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("train_config { batch_size: 4 num_steps : 250 }", 250),
        ("train_config {\n#num_steps: 9\n}", None),
        ("num_steps: 1\nnum_steps: 2", None),
        ("train_config { warmup_num_steps: 9 }", None),
    ],
)
def test_num_steps_is_read_where_it_cannot_be_mistaken(tmp_path: Path, text: str, steps: int):
    (tmp_path / "p").write_text(text)
    assert num_steps(read_pipeline(tmp_path / "p")) == steps
    assert num_steps(read_pipeline(tmp_path / "none")) is None


# -- classes that the model has no place for


@pytest.mark.parametrize(
    ("classes", "label_map", "told"),
    [
        ("num_classes: 2", "item { id: 1 }\nitem { id: 2 }\nitem {\n  id: 3\n}", "id 3"),
        ("num_classes: 3", "item { id: 1 }\nitem { id: 2 }\nitem {\n  id: 3\n}", None),
        ("num_classes: 2", "item { id: 1 } item { id: 3 }", "id 3"),
        ("num_classes: 2", "item { id: 1 keypoints { id: 3 } }\nitem { id: 2 }", None),
        ("num_classes: 2", "item { id: 2 }\n# item { id: 9 }", None),
        ("num_classes: 2\nnum_classes: 1", "item { id: 9 }", None),  # which counts is not known
    ],
)
def test_classes_that_the_model_has_no_place_for_are_told_before_it_is_trained(
    launch: Launch, classes: str, label_map: str, told: str | None
):
    labels = launch.folder / "labels.pbtxt"
    labels.write_text(label_map)
    config = f"model {{ ssd {{\n{classes}\n}} }}\nlabel_map_path: '{labels}'\nnum_steps: 100\n"
    launch.pipeline.write_text(config)
    assert launch.run(trainer=od_trainer(launch, 2, "--checkpoint_every_n=100")) == 0
    if told is None:
        assert launch.said() == ""
        return
    assert launch.said().splitlines() == [
        f"label map ({labels}) has {told}, and the model's num_classes is 2: it never detects what"
        " is above: set num_classes to 3"
    ]


# -- mistyped flags


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--model_dri=/x"], ["--model_dir=/x"]),
        (["--model-dir", "/x"], ["--model_dir /x"]),
        (["–model_dir=/x"], ["--model_dir=/x"]),  # noqa: RUF001, as a text editor makes it
        (["model_dir=/x"], ["--model_dir=/x"]),
        (["--num_train_step=5", "--checkpoint_every=9"], ["--num_train_steps=5", None]),
        (["--model_dir", "model_dir=x", "-use_tpu", "--nouse_tpu", "--alsologtostderr"], []),
        (["--log_dir", "model_dir=x", "--v=1", "--", "--model_dri=/x"], []),
        (["--pipeline_config=p"], ["--pipeline_config_path=p"]),
    ],
)
def test_what_is_nearly_a_flag_is_told_and_what_is_right_never(words: list[str], meant: list):
    found = [one.meant for one in mistyped(words)]
    assert len(found) == len(meant)
    assert all(said in (None, one) for said, one in zip(meant, found, strict=True))


def test_a_flag_without_which_it_cannot_train_is_missed_unless_a_file_may_have_it():
    wrong = mistyped(words := ["--model_dri=/x", "--pipeline_config_path=p"])
    assert missing(words, wrong) == wrong[0]
    assert missing([*words, "--flagfile=f"], wrong) is None
    assert missing([*words, "--model_dir=/y"], wrong) is None


def test_a_mistyped_model_dir_starts_nothing_and_takes_none_from_elsewhere(launch: Launch):
    (launch.folder / "checkpoint-watcher.toml").write_text(f'model_dir = "{launch.model_dir}"\n')
    command = od_trainer(launch, 1)
    command[3] = "--model_dri"
    ended = cli("train", "--", *command, cwd=launch.folder)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "error: the trainer's command has --model_dri, which model_main_tf2 does not know,"
        " and no --model_dir",
        f"hint: did you mean --model_dir {launch.model_dir}?",
    ]
    assert not launch.model_dir.exists()


@pytest.mark.parametrize("flags", [["--watch"], []])
@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (
            ["CUDA_VISIBLE_DEVICES=0", "python", "-m", "x", "--model_dir", "m"],
            "put CUDA_VISIBLE_DEVICES=0 before checkpoint-watcher, where the trainer gets it too,"
            " or after env: `-- env CUDA_VISIBLE_DEVICES=0 python ...`",
        ),
        (
            ["python -m x --model_dir m"],
            "the whole command is one word: leave out the quotes around it, as in"
            " `-- python -m x --model_dir m`",
        ),
    ],
)
def test_what_a_shell_alone_would_understand_is_refused_with_what_to_type(
    flags: list[str], command: list[str], hint: str, tmp_path: Path
):
    ended = cli("train", *flags, "--", *command, cwd=tmp_path)
    error = f"error: cannot start {command[0]}: there is no such program"
    assert (ended.returncode, ended.stderr.splitlines()) == (1, [error, f"hint: {hint}"])


def test_another_mistyped_flag_is_told_and_the_training_starts(launch: Launch):
    assert launch.run(trainer=od_trainer(launch, 2, "--num_train_step=1000")) == 0
    assert launch.said().splitlines()[0] == (
        "--num_train_step is no flag of model_main_tf2, which passes over it:"
        " --num_train_steps=1000?"
    )


def test_a_command_without_a_model_dir_is_told_which_one_is_watched(launch: Launch):
    command = od_trainer(launch, 2, "--num_train_steps=1000")
    del command[3:5]
    assert launch.run(trainer=command) == 0
    told = f"model_dir is set to {launch.model_dir}, and COMMAND has no --model_dir"
    assert launch.said().splitlines()[0] == told


# -- the interpreter


def test_init_after_a_training_names_the_interpreter_that_path_led_to(launch: Launch):
    base, venv = launch.folder / "python3.11", launch.folder / "venv" / "bin" / "python"
    saving = f"{sys.executable} {FAKE_TRAINER} {launch.model_dir} --saves 2 --interval 0"
    cases = f'*/worker.py) exec {STUB} "$@";; model_main_tf2.py) exec {saving};;'
    base.write_text(f'#!/bin/sh\ncase "$1" in {cases} *) exit 1;; esac\n')
    base.chmod(0o755)
    venv.parent.mkdir(parents=True)
    venv.symlink_to(base)
    path = f"{venv.parent}:{os.environ['PATH']}"
    flags = ["--model_dir", launch.model_dir, "--pipeline_config_path", launch.pipeline]
    trainer = ["python", "model_main_tf2.py", *map(str, flags)]
    assert launch.run("--watch", trainer=trainer, PATH=path) == 0
    assert "to export it: python -m" in launch.said()
    # Elsewhere, and where another python comes first.
    written = cli("init", launch.model_dir, "-o", "-", cwd=Path("/")).stdout
    assert f'\npython = "{venv}"\n' in written


def test_an_interpreter_is_found_as_it_was_given_and_links_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    venv = tmp_path / "venv" / "bin" / "python"
    venv.parent.mkdir(parents=True)
    venv.symlink_to(sys.executable)
    there = {"PATH": str(venv.parent)}
    assert found_interpreter(["nice", "python", "t.py"], there) == str(venv)
    assert found_interpreter(["env", f"PATH={venv.parent}", "python", "t.py"], {}) == str(venv)
    assert found_interpreter(["venv/bin/python", "t.py"], {}) == str(venv)
    assert found_interpreter(["python9", "t.py"], there) == "python9"
    assert found_interpreter(["./train.sh"], there) is None
    assert as_found("python", there) == as_found("venv/bin/python", {}) == str(venv)
