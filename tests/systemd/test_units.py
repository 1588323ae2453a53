"""The systemd units: valid, hardened, and written with the paths of one run."""

from __future__ import annotations

import grp
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from watching import ROOT, STUB, cli

from watcher.systemd import units

pytestmark = pytest.mark.slow

TEMPLATES = ROOT / "systemd"
# The exposure, of 10, that `systemd-analyze security` may find in the watcher's unit.
EXPOSURE = 2.0
THRESHOLD = f"--threshold={EXPOSURE * 10:.0f}"


def need_systemd_analyze() -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze: apt install systemd")


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    need_systemd_analyze()
    command = ["systemd-analyze", "--no-pager", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def run_files(tmp_path: Path) -> dict[str, Path]:
    """A model_dir and a pipeline.config, outside of any folder that a unit would hide."""
    folders = {"root": tmp_path / "root", "model_dir": tmp_path / "model_dir"}
    for folder in folders.values():
        folder.mkdir()
    config = tmp_path / "pipeline.config"
    config.write_text("")
    return {**folders, "config": config}


def install(files: dict[str, Path], *flags: object, model_dir: object = None, name: str = "cats"):
    settings = ["--pipeline-config", files["config"], "--python", STUB]
    return cli(
        *("install-units", model_dir or files["model_dir"], "--run", name),
        *("--root", files["root"], *settings, *flags),
    )


def installed(files: dict[str, Path], path: str) -> str:
    return (files["root"] / path).read_text()


def drop_in(files: dict[str, Path], unit: str) -> str:
    return installed(files, f"etc/systemd/system/{unit}.d/10-run.conf")


def test_the_watchers_unit_is_exposed_to_little():
    unit = TEMPLATES / "checkpoint-watcher@.service"
    found = analyze("security", "--offline=true", THRESHOLD, unit)
    assert found.returncode == 0, found.stdout
    assert re.search(r"Overall exposure level.*: [01]\.\d", found.stdout)


def test_every_hardening_that_is_left_out_has_its_reason_in_the_unit():
    unit = TEMPLATES / "checkpoint-watcher@.service"
    found = analyze("security", "--offline=true", unit).stdout
    left_out = re.findall(r"^✗ (\w+)=", found, re.MULTILINE)
    text = unit.read_text()
    reasons = text.split("# Left out, and why:")[1]
    for directive in left_out:
        # What is set, and could be stricter, has its reason where it is set.
        assert f"{directive}=" in reasons or f"\n{directive}=" in text, directive


def test_every_unit_is_valid_as_it_is():
    found = analyze("verify", *TEMPLATES.glob("*@.*"))
    said = [line for line in found.stderr.splitlines() if "is not executable" not in line]
    assert said == []


def test_a_run_gets_its_own_paths_user_and_settings(run_files: dict[str, Path]):
    flags = ("--top-k", "5", "--patience", "10", "--device", "gpu:1", "--user", "you:crew")
    done = install(run_files, *flags, "--working-directory", "/srv")
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(installed(run_files, "etc/checkpoint-watcher/cats.toml")) == {
        "run_name": "cats",
        "model_dir": str(run_files["model_dir"]),
        "pipeline_config": str(run_files["config"]),
        "python": str(STUB),
        "top_k": 5,
        "patience": 10,
        "device": "gpu:1",
        "working_directory": "/srv",
    }
    written = drop_in(run_files, "checkpoint-watcher@cats.service")
    assert f"\nReadWritePaths={run_files['model_dir']}\n" in written
    assert "\nUser=you\nGroup=crew\nWorkingDirectory=/srv\n" in written
    assert "PrivateDevices" not in written
    assert "systemctl enable --now od-train@cats" in done.stdout
    unit = installed(run_files, "etc/systemd/system/checkpoint-watcher@.service")
    program = re.search(r"ExecStart=(\S+) run ", unit)[1]
    assert Path(program).is_file() and program.endswith("/bin/checkpoint-watcher")


def test_what_is_written_is_valid_and_as_hardened_as_the_template(run_files: dict[str, Path]):
    assert install(run_files, "--user", "you").returncode == 0
    folder = run_files["root"] / "etc" / "systemd" / "system"
    unit = "checkpoint-watcher@cats.service"
    root = f"--root={run_files['root']}"
    found = analyze("security", "--offline=true", THRESHOLD, root, unit)
    assert found.returncode == 0, found.stdout + found.stderr
    assert (folder / f"{unit}.d" / "10-run.conf").is_file()


def test_a_run_on_the_cpu_sees_no_devices_and_one_in_a_home_folder_sees_that(
    run_files: dict[str, Path],
):
    home = Path("/home/you/runs/cats")
    done = install(run_files, "--user", "you", "--device", "cpu", model_dir=home)
    assert done.returncode == 0, done.stderr
    written = drop_in(run_files, "checkpoint-watcher@cats.service")
    assert "\nPrivateDevices=yes\n" in written
    assert f"# {home} lies in a home folder.\nProtectHome=read-only\n" in written
    folders = installed(run_files, "etc/tmpfiles.d/checkpoint-watcher-cats.conf")
    assert f"d {home} 0755 you you\n" in folders


def test_what_other_settings_need_is_in_the_drop_in(run_files: dict[str, Path]):
    flags = ["--group", "0", "--notify", "json://127.0.0.1", "--device-lock-dir", "/srv/locks"]
    elsewhere = run_files["config"].parent / "state"
    flags += ["--eval-dir", "/srv/eval"]
    done = install(run_files, *flags, "--state-dir", elsewhere, "--user", "you")
    assert done.returncode == 0, done.stderr
    written = drop_in(run_files, "checkpoint-watcher@cats.service")
    paths = f"{run_files['model_dir']} {elsewhere} /srv/eval /srv/locks"
    assert f"\nReadWritePaths={paths}\n" in written
    assert "\nSupplementaryGroups=0\nRestrictSUIDSGID=no\nSystemCallFilter=@chown\n" in written
    assert "\nIPAddressAllow=any\n" in written
    folders = installed(run_files, "etc/tmpfiles.d/checkpoint-watcher-cats.conf")
    assert f"d {elsewhere} 0755 you you\n" in folders
    assert str(run_files["model_dir"]) not in folders, "what is there already is not made"


def test_a_plain_trainer_is_stopped_by_a_unit_that_waits_for_the_sentinel(
    run_files: dict[str, Path],
):
    done = install(run_files, "--trainer", "plain", "--trainer-flags", "--num_train_steps=9 --x")
    assert done.returncode == 0, done.stderr
    sentinel = run_files["model_dir"] / "EARLY_STOP"
    assert f"PathExists=\nPathExists={sentinel}\n" in drop_in(run_files, "od-train-stop@cats.path")
    trainer = drop_in(run_files, "od-train@cats.service")
    assert f"\nConditionPathExists=!{sentinel}\n" in trainer
    assert "ExecStart=\nExecStart=/usr/bin/env ${PYTHON} -m object_detection." in trainer
    environment = installed(run_files, "etc/checkpoint-watcher/cats.env")
    assert 'TRAINER_FLAGS="--num_train_steps=9 --x"' in environment
    assert "systemctl enable od-train-stop@cats.path" in done.stdout


@pytest.mark.parametrize("trainer", ["launcher", "plain"])
def test_the_trainer_of_a_run_of_model_garden_is_model_gardens(
    run_files: dict[str, Path], trainer: str
):
    config = run_files["config"].parent / "my retinanet.yaml"
    config.write_text("")
    done = cli(
        *("install-units", run_files["model_dir"], "--run", "cats", "--trainer", trainer),
        *(
            "--root",
            run_files["root"],
            "--python",
            STUB,
            "--experiment",
            "retinanet_resnetfpn_coco",
        ),
        *("--config-file", config, "--trainer-flags=--enable_async_checkpointing=false"),
    )
    assert done.returncode == 0, done.stderr
    settings = tomllib.loads(installed(run_files, "etc/checkpoint-watcher/cats.toml"))
    assert settings["config_file"] == [str(config)] and settings["wait_for_model_dir"] is True
    environment = installed(run_files, "etc/checkpoint-watcher/cats.env")
    assert 'EXPERIMENT="retinanet_resnetfpn_coco"' in environment
    assert "PIPELINE_CONFIG" not in environment and "async_checkpointing=false" in environment
    command = drop_in(run_files, "od-train@cats.service").partition("ExecStart=\nExecStart=")[2]
    front = "/usr/bin/env " if trainer == "plain" else "cats.toml --only-given -- "
    assert front.replace("cats", "%i") in command
    assert "${PYTHON} -m official.vision.train --experiment=${EXPERIMENT} --mode=train" in command
    assert f'--model_dir=${{MODEL_DIR}} "--config_file={config}" $TRAINER_FLAGS\n' in command
    found = analyze("verify", f"--root={run_files['root']}", "od-train@cats.service")
    expected = ("is not executable", "sysinit.target not found")  # in a folder that has no system
    wrong = [line for line in found.stderr.splitlines() if not any(map(line.count, expected))]
    assert wrong == []


def test_units_without_a_trainer_hold_none(run_files: dict[str, Path]):
    assert install(run_files, "--trainer", "none").returncode == 0
    names = {path.name for path in (run_files["root"] / "etc").rglob("*")}
    assert not any(name.startswith("od-train") for name in names)


def test_a_dry_run_prints_every_file_and_writes_none(run_files: dict[str, Path]):
    done = install(run_files, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert list(run_files["root"].iterdir()) == []
    real = install(run_files).stdout
    for path in re.findall(r"^wrote +(\S+)", real, re.MULTILINE):
        name = Path("/") / Path(path).relative_to(run_files["root"])
        assert f"# {name}\n{Path(path).read_text()}" in done.stdout


def test_units_are_written_anew_for_settings_that_are_there_and_what_was_edited_stays(
    run_files: dict[str, Path],
):
    install(run_files, "--top-k", "5")
    settings = run_files["root"] / "etc/checkpoint-watcher/cats.toml"
    settings.write_text(settings.read_text().replace("top_k = 5", "top_k = 7 # more"))
    environment = settings.with_suffix(".env")
    environment.write_text(environment.read_text() + "CUDA_VISIBLE_DEVICES=0\n")
    unit = run_files["root"] / "etc/systemd/system/checkpoint-watcher@.service"
    unit.write_text("")
    again = cli("install-units", "--run", "cats", "--root", run_files["root"])
    assert again.returncode == 0, again.stderr
    assert "top_k = 7 # more" in settings.read_text()
    assert "CUDA_VISIBLE_DEVICES=0" in environment.read_text()
    assert "[Service]" in unit.read_text()
    refused = install(run_files, "--top-k", "5")
    assert refused.returncode == 1
    assert "is there already, with other settings" in refused.stderr


def test_what_the_units_could_not_work_with_here_is_a_warning(run_files: dict[str, Path]):
    model_dir, root = run_files["model_dir"], run_files["root"]
    words = ["install-units", model_dir, "--run", "cats", "--root", root]
    done = cli(*words, "--pipeline-config", "nope", cwd=model_dir)
    assert done.returncode == 0
    pipeline, python = done.stderr.splitlines()
    nope = model_dir / "nope"
    assert pipeline.startswith(f"warning: pipeline_config ({nope}) does not exist or is not a file")
    has_not = f"python ({sys.executable}) has no tensorflow and object_detection"
    assert python.startswith(f"warning: {has_not}: give the interpreter of the environment that")
    again = cli("install-units", "--run", "cats", "--root", root)
    assert again.stderr == done.stderr, "an upgrade says it, too"
    (root / nope.relative_to("/")).parent.mkdir(parents=True)
    (root / nope.relative_to("/")).touch()
    assert cli("install-units", "--run", "cats", "--root", root).stderr == f"{python}\n"


def test_nothing_is_missed_that_comes_with_the_trainer_or_is_on_another_host(
    run_files: dict[str, Path],
):
    assert install(run_files).stderr == ""
    words = ["--root", run_files["root"], "--experiment", "retinanet_resnetfpn_coco"]
    garden = cli("install-units", run_files["model_dir"], "--run", "g", *words, "--python", STUB)
    assert (garden.returncode, garden.stderr) == (0, "")
    far = ["--pipeline-config", run_files["config"], "--device", "box/cpu", "--trainer", "none"]
    there = cli("install-units", run_files["model_dir"], "--run", "f", *words[:2], *far)
    assert (there.returncode, there.stderr) == (0, "")


FLAGS = "--checkpoint_every_n=1000"


def again(files: dict[str, Path], *flags: str) -> str:
    """Write the units of an installed run anew, and return what is said of its environment."""
    done = cli("install-units", "--run", "cats", "--root", files["root"], *flags)
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stdout.splitlines() if "cats.env" in line)


def test_an_upgrade_keeps_the_trainer_s_flags_and_says_of_nothing_that_it_was_changed(
    run_files: dict[str, Path],
):
    install(run_files, f"--trainer-flags={FLAGS}")
    before = installed(run_files, "etc/checkpoint-watcher/cats.env")
    environment = run_files["root"] / "etc/checkpoint-watcher/cats.env"
    assert again(run_files) == f"as it was  {environment}"
    assert environment.read_text() == before and f'TRAINER_FLAGS="{FLAGS}"' in before
    environment.write_text(before.replace("=1000", "=500") + "# mine\n")
    assert again(run_files) == f"as it was  {environment}"
    assert "=500" in environment.read_text() and "# mine" in environment.read_text()
    dry = cli("install-units", "--run", "cats", "--root", run_files["root"], "--dry-run")
    assert 'TRAINER_FLAGS="--checkpoint_every_n=500"' in dry.stdout


def test_other_flags_of_the_trainer_are_written_where_nothing_else_was_changed(
    run_files: dict[str, Path],
):
    install(run_files, f"--trainer-flags={FLAGS}")
    assert again(run_files, "--trainer-flags=--x").startswith("wrote")
    assert 'TRAINER_FLAGS="--x"' in installed(run_files, "etc/checkpoint-watcher/cats.env")
    assert again(run_files, "--trainer-flags=").startswith("wrote")
    assert 'TRAINER_FLAGS=""' in installed(run_files, "etc/checkpoint-watcher/cats.env")


def test_what_would_go_with_a_changed_environment_is_named_before_it_is_removed(
    run_files: dict[str, Path],
):
    install(run_files, f"--trainer-flags={FLAGS}")
    environment = run_files["root"] / "etc/checkpoint-watcher/cats.env"
    written = environment.read_text()
    environment.write_text(written + "CUDA_VISIBLE_DEVICES=0\n")
    assert again(run_files) == (
        f"kept       {environment}, which has another CUDA_VISIBLE_DEVICES than would be written"
        " now: remove it to have it written anew; that loses its TRAINER_FLAGS and"
        " CUDA_VISIBLE_DEVICES (give --trainer-flags again)"
    )
    # What a file can hold and we do not write is no reason to refuse the upgrade.
    environment.write_text(written.replace(FLAGS, "--x=$HOME"))
    assert "has another TRAINER_FLAGS than would be written now" in again(run_files)
    assert "--x=$HOME" in environment.read_text()


PASSWORD = "mailto://user:secret@example.org"


def test_what_may_hold_passwords_is_root_s_and_the_run_s_group_s_to_read(
    run_files: dict[str, Path],
):
    group = grp.getgrgid(os.getgid()).gr_name  # one that this user may give files to
    done = install(run_files, "--notify", PASSWORD, "--user", f"you:{group}")
    assert done.returncode == 0, done.stderr
    assert "secret" not in done.stdout + done.stderr
    folder = run_files["root"] / "etc/checkpoint-watcher"
    for file in (folder / "cats.toml", folder / "cats.env"):
        status = file.stat()
        found = (status.st_mode & 0o777, status.st_uid, status.st_gid)
        assert found == (0o640, os.geteuid(), os.getgid()), file
    everywhere = [path for path in run_files["root"].rglob("*") if path.is_file()]
    assert [path.name for path in everywhere if "secret" in path.read_text()] == ["cats.toml"]
    # However the files come there, and whatever an editor makes of them, the next boot sees to it.
    tmpfiles = installed(run_files, "etc/tmpfiles.d/checkpoint-watcher-cats.conf")
    for name in ("cats.toml", "cats.env"):
        assert f"\nz /etc/checkpoint-watcher/{name} 0640 root {group}\n" in tmpfiles


def test_a_group_that_is_yet_to_be_made_gets_them_from_systemd_tmpfiles(
    run_files: dict[str, Path],
):
    done = install(run_files, "--notify", PASSWORD, "--user", "you:no-such-group")
    assert done.returncode == 0, done.stderr
    settings = run_files["root"] / "etc/checkpoint-watcher/cats.toml"
    assert settings.stat().st_mode & 0o777 == 0o600
    said = " ".join(done.stdout.split())
    assert (
        f"closed {settings} to all but its owner until `systemd-tmpfiles --create` gives it" in said
    )
    assert "group no-such-group (there is no such group yet)" in said


def test_settings_that_an_earlier_version_left_open_are_closed(run_files: dict[str, Path]):
    group = grp.getgrgid(os.getgid()).gr_name
    install(run_files, "--notify", PASSWORD, "--user", f"you:{group}")
    settings = run_files["root"] / "etc/checkpoint-watcher/cats.toml"
    settings.chmod(0o644)
    again = ("install-units", "--run", "cats", "--user", f"you:{group}")
    assert f"closed     {settings}" in cli(*again, "--root", run_files["root"]).stdout
    assert settings.stat().st_mode & 0o777 == 0o640
    assert "closed" not in cli(*again, "--root", run_files["root"]).stdout


@pytest.mark.parametrize(
    ("flags", "model_dir", "said"),
    [
        (["--top-k", "few"], None, "top_k (few)"),
        (["--python", "/no/python"], None, "python (/no/python)"),
        ([], '/srv/a"b', "a quote"),
        (["--run", "../x"], None, "run (../x)"),
    ],
)
def test_what_cannot_work_is_refused(
    run_files: dict[str, Path], flags: list[str], model_dir: str | None, said: str
):
    done = install(run_files, *flags, model_dir=model_dir)
    assert done.returncode == 1
    error, hint = done.stderr.strip().splitlines()
    assert said in error and hint.startswith("hint: ")
    assert list(run_files["root"].iterdir()) == []


def test_paths_with_spaces_and_percent_signs_are_written_as_systemd_reads_them(
    run_files: dict[str, Path],
):
    odd = run_files["model_dir"] / "my run 50%"
    odd.mkdir()
    assert install(run_files, "--trainer", "plain", model_dir=odd).returncode == 0
    written = drop_in(run_files, "checkpoint-watcher@cats.service")
    assert f'ReadWritePaths="{odd}%"\n' in written
    assert f"PathExists={odd}%/EARLY_STOP\n" in drop_in(run_files, "od-train-stop@cats.path")


def test_names_are_such_that_systemd_takes_them_as_they_are():
    assert units.check_name("ssd_640-v2.1") == "ssd_640-v2.1"
