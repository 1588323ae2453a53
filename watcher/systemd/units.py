"""Units: the files by which systemd runs one training run, as text. Writes nothing.

The templates are in `systemd/` of the repository and in `watcher/systemd/templates/` of the wheel,
valid as they are. What differs from run to run goes into drop-ins, so that a template serves every
run.
"""

from __future__ import annotations

import grp
import json
import pwd
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from watcher.config import Settings
from watcher.config.evaluator import ModelGardenSettings
from watcher.config.garden_params import params_file
from watcher.errors import ConfigError

Trainer = Literal["launcher", "plain", "none"]

DEFAULT_USER = "checkpoint-watcher"
CONFIG_FOLDER = Path("/etc/checkpoint-watcher")
# Of what lies there: root's, and for the run's group to read.
PRIVATE_MODE = 0o640
# The variable of the trainer's environment file that holds them.
FLAGS = "TRAINER_FLAGS"
_NOT_PLAIN = re.compile(r"[\"'\\$\x00-\x1f\x7f]")
_PROGRAM_IN_TEMPLATES = "/opt/checkpoint-watcher/bin/checkpoint-watcher"
_UNIT_FOLDER = Path("/etc/systemd/system")
_WRITTEN = (
    "# Written by `checkpoint-watcher install-units`, and anew by the next one: put changes of"
)
_HEADER = f"{_WRITTEN}\n# your own into another file in this folder.\n"
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))
# Names from the trainer's environment.
_OD_TRAINER = (
    "${PYTHON} -m object_detection.model_main_tf2 --model_dir=${MODEL_DIR}"
    " --pipeline_config_path=${PIPELINE_CONFIG} $TRAINER_FLAGS"
)
_GARDEN_TRAINER = (
    "${PYTHON} -m official.vision.train --experiment=${EXPERIMENT} --mode=train"
    " --model_dir=${MODEL_DIR}"
)


class Installation(msgspec.Struct, frozen=True):
    """One run, and how systemd is to run it.

    Attributes:
        name: The instance: `checkpoint-watcher@NAME`.
        settings: Those of the run, with absolute paths.
        interpreter: Absolute path of the training environment's.
        program: Absolute path of `checkpoint-watcher`.
        user: Who trainer and watcher run as.
        group: Their group.
        missing: Folders of the run that systemd-tmpfiles has to make.
        working_directory: Where the trainer is started, None for the root folder.
        trainer: Which trainer units to write.
        trainer_flags: More flags of the trainer.
    """

    name: str
    settings: Settings
    interpreter: Path
    program: Path
    user: str = DEFAULT_USER
    group: str = DEFAULT_USER
    missing: tuple[Path, ...] = ()
    working_directory: Path | None = None
    trainer: Trainer = "launcher"
    trainer_flags: tuple[str, ...] = ()


def check_name(name: str) -> str:
    """Return the name of a run if systemd and a file system take it as it is, else raise."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", name):
        raise ConfigError(
            f"run ({name}) must be 1 to 64 letters, digits, '_', '.' or '-', and begin with neither"
            " of the last two",
            hint="it is the NAME of checkpoint-watcher@NAME.service",
        )
    return name


def owner_of(folder: Path) -> tuple[str, str]:
    """Return the names of a folder's user and group, numbers where they have none."""
    status = folder.stat()
    try:
        user = pwd.getpwuid(status.st_uid).pw_name
    except KeyError:
        user = str(status.st_uid)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    return user, group


def files(installation: Installation) -> dict[Path, str]:
    """Return every unit, drop-in and folder description of a run, by absolute path.

    Raises:
        ConfigError: a path has a character that unit files cannot hold.
    """
    trains = installation.trainer != "none"
    templates = {"checkpoint-watcher@.service": True, "od-train@.service": trains}
    plain = installation.trainer == "plain"
    templates |= {"od-train-stop@.path": plain, "od-train-stop@.service": plain}
    program = shlex.quote(str(installation.program))
    written = {
        _UNIT_FOLDER / name: template(name).replace(_PROGRAM_IN_TEMPLATES, program)
        for name, wanted in templates.items()
        if wanted
    }
    written[Path("/etc/sysusers.d/checkpoint-watcher.conf")] = template("sysusers.conf")
    written[Path("/etc/tmpfiles.d/checkpoint-watcher.conf")] = template("tmpfiles.conf")
    own_tmpfiles = Path(f"/etc/tmpfiles.d/checkpoint-watcher-{installation.name}.conf")
    written[own_tmpfiles] = _HEADER + _tmpfiles_lines(installation)
    written[_drop_in(installation, "checkpoint-watcher", "service")] = _watcher_drop_in(
        installation
    )
    if trains:
        written[environment_file(installation.name)] = _trainer_environment(installation)
        written[_drop_in(installation, "od-train", "service")] = _trainer_drop_in(installation)
    if plain:
        sentinel = _plain(installation.settings.run.sentinel_path)
        written[_drop_in(installation, "od-train-stop", "path")] = (
            f"{_HEADER}[Path]\nPathExists=\nPathExists={sentinel}\n"
        )
        written[_drop_in(installation, "od-train-stop", "service")] = (
            f"{_HEADER}[Service]\nUser={installation.user}\nGroup={installation.group}\n"
            f"ExecStart=\nExecStart=-/bin/cat {_word(installation.settings.run.sentinel_path)}\n"
        )
    return written


def environment_file(name: str) -> Path:
    """Return where a run's trainer finds its environment."""
    return CONFIG_FOLDER / f"{name}.env"


def environment_values(text: str) -> dict[str, str]:
    """Return what a trainer's environment file sets, without its quotes."""
    pairs = (line.strip().partition("=") for line in text.splitlines())
    return {
        name.strip(): _unquoted(value)
        for name, equals, value in pairs
        if equals and not name.startswith(("#", ";"))
    }


def trainer_flags(text: str) -> tuple[str, ...] | None:
    """Return the trainer's flags in its environment file; None where we could not write them."""
    flags = environment_values(text).get(FLAGS, "")
    return None if _NOT_PLAIN.search(flags) else tuple(flags.split())


def _unquoted(value: str) -> str:
    try:
        return " ".join(shlex.split(value))
    except ValueError:  # a quote that is not closed
        return value


def template(name: str) -> str:
    """Return a template's text, from the wheel or from a working copy."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "templates", here.parents[2] / "systemd"):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise ConfigError(
        f"the template {name} is not in this installation", hint="install the package again"
    )


def settings_file(values: Mapping[str, Any]) -> str:
    """Return settings as TOML; values are text, numbers, truth values and lists of those."""
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join(
        ["# Settings of the run; `checkpoint-watcher run --help` lists all.", *lines, ""]
    )


def writable_folders(settings: Settings) -> list[Path]:
    """Return the folders that the watcher writes into, those inside of another left out."""
    run = settings.run
    every = [run.model_path, run.state_path, run.best_path, run.kept_path, run.sentinel_path.parent]
    if settings.exports.tensorboard:
        every.append(settings.run.eval_path)
    if settings.carrier.device_lock_dir:
        every.append(Path(settings.carrier.device_lock_dir).absolute())
    unique = list(dict.fromkeys(every))
    return [
        path
        for path in unique
        if not any(path != other and path.is_relative_to(other) for other in unique)
    ]


# -- the files of one run


def _drop_in(installation: Installation, unit: str, kind: str) -> Path:
    return _UNIT_FOLDER / f"{unit}@{installation.name}.{kind}.d" / "10-run.conf"


def _watcher_drop_in(installation: Installation) -> str:
    settings = installation.settings
    writable = writable_folders(settings)
    paths = " ".join(_word(path) for path in writable)
    lines = ["[Unit]", f"RequiresMountsFor={paths}", "[Service]", *_identity(installation)]
    lines.append(f"ReadWritePaths={paths}")
    run = settings.run
    inputs = [Path(one.path) for one in settings.evaluator.inputs(run.model_path)]
    programs = [installation.interpreter, installation.program]
    used = [*writable, *inputs, *programs]
    used += [installation.working_directory or Path("/")]
    used += [path.resolve() for path in used]  # an environment's python is a link
    if at_home := _first_in(used, _HOMES):
        lines += [f"# {at_home} lies in a home folder.", "ProtectHome=read-only"]
    if in_tmp := _first_in(used, _TEMPORARY):
        lines += [f"# {in_tmp} would be hidden.", "PrivateTmp=no"]
    if settings.run.group:
        lines += [
            "# Its files are given to a group, with the setgid bit.",
            f"SupplementaryGroups={settings.run.group}",
            "RestrictSUIDSGID=no",
            "SystemCallFilter=@chown",
        ]
    if settings.service.notify:
        lines += ["# Notifications go out.", "IPAddressAllow=any"]
    if settings.carrier.devices.there:
        lines += ["# It evaluates on other hosts.", "IPAddressAllow=any"]
    if settings.carrier.device_here == "cpu":
        lines += ["# It evaluates on the CPU.", "PrivateDevices=yes"]
    return _HEADER + "\n".join(lines) + "\n"


def _first_in(paths: list[Path], folders: tuple[Path, ...]) -> Path | None:
    return next((path for path in paths if any(map(path.is_relative_to, folders))), None)


def _trainer_drop_in(installation: Installation) -> str:
    settings = installation.settings
    lines = ["[Unit]", f"RequiresMountsFor={_word(settings.run.model_path)}"]
    plain = installation.trainer == "plain"
    if plain:
        lines += [
            "# After a reboot too: what was told to stop is not begun again.",
            f"ConditionPathExists=!{_plain(settings.run.sentinel_path)}",
        ]
    lines += ["[Service]", *_identity(installation)]
    garden = isinstance(settings.evaluator, ModelGardenSettings)
    if plain or garden:  # or else it is as the template has it
        command = _garden_trainer(settings) if garden else _OD_TRAINER
        front = "/usr/bin/env"
        if not plain:
            program = shlex.quote(str(installation.program))
            front = f"{program} train --config {CONFIG_FOLDER}/%i.toml --only-given --"
        lines += ["ExecStart=", f"ExecStart={front} {command}"]
    return _HEADER + "\n".join(lines) + "\n"


def _garden_trainer(settings: Settings) -> str:
    """Return Model Garden's command line; without a file of its own it goes on as it began."""
    files = [Path(one) for one in settings.value("config_file") or ()]
    if not files and (written := params_file(settings.run.model_path)).is_file():
        files = [written]
    words = [_word(Path(f"--config_file={file}")) for file in files]
    return " ".join([_GARDEN_TRAINER, *words, "$TRAINER_FLAGS"])


def _identity(installation: Installation) -> list[str]:
    lines = [f"User={installation.user}", f"Group={installation.group}"]
    if installation.working_directory:
        lines.append(f"WorkingDirectory={_plain(installation.working_directory)}")
    return lines


def _trainer_environment(installation: Installation) -> str:
    values = {
        "PYTHON": str(installation.interpreter),
        "MODEL_DIR": str(installation.settings.run.origin),
        **_measured(installation.settings),
        FLAGS: " ".join(installation.trainer_flags),
    }
    for value in values.values():
        _require_plain(value)
    return (
        "# The trainer's environment. The watcher's GPU is `device` in the .toml beside this.\n"
        "# CUDA_VISIBLE_DEVICES=0\n"
    ) + "".join(f'{name}="{value}"\n' for name, value in values.items())


def _measured(settings: Settings) -> dict[str, str]:
    if isinstance(settings.evaluator, ModelGardenSettings):
        return {"EXPERIMENT": settings.evaluator.experiment}
    return {"PIPELINE_CONFIG": settings.value("pipeline_config") or ""}


def _tmpfiles_lines(installation: Installation) -> str:
    folders = "".join(
        f"d {_word(path)} 0755 {installation.user} {installation.group}\n"
        for path in installation.missing
    )
    # The group may be made after the files are, by systemd-sysusers.
    private = "".join(
        f"z {CONFIG_FOLDER / installation.name}{suffix} {PRIVATE_MODE:04o} root"
        f" {installation.group}\n"
        for suffix in (".toml", ".env")
    )
    return f"{folders}# They may hold passwords.\n{private}"


def _require_plain(text: str) -> None:
    if _NOT_PLAIN.search(text):
        raise ConfigError(
            f"{text!r} has a quote, a backslash, a dollar or a control character, which unit files"
            " cannot hold",
            hint="give a path without it, such as a link",
        )


def _plain(path: Path) -> str:
    """Return a path as a line of its own takes it: there `%` begins a specifier."""
    _require_plain(str(path))
    return str(path).replace("%", "%%")


def _word(path: Path) -> str:
    """Return a path as one word of a line of several."""
    text = _plain(path)
    return f'"{text}"' if re.search(r"\s", text) else text
