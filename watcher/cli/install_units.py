"""`checkpoint-watcher install-units`: the files by which systemd runs a training run."""

from __future__ import annotations

import contextlib
import grp
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from watcher.cli.completing import folders
from watcher.cli.options import settings_options
from watcher.cli.settings_help import SettingsCommand, examples
from watcher.config import Settings, load_settings, read_toml
from watcher.config.evaluator import MODEL_GARDEN, is_file
from watcher.config.settings import absolute
from watcher.config.wording import together
from watcher.errors import ConfigError
from watcher.evaluation.packages import lacking
from watcher.files.atomic_io import replace_file
from watcher.launch.kinds import evaluated_by
from watcher.systemd import units

# Once it was a matter of the units alone, and given anew each time.
_BESIDE_THE_FILE = {"working_directory"}


@click.command(
    name="install-units",
    cls=SettingsCommand,
    epilog=examples(
        "checkpoint-watcher install-units models/ssd --run ssd \\",
        "    --pipeline-config ssd.config --dry-run",
    ),
)
@click.argument("model_dir", required=False, shell_complete=folders)
@click.option("--run", "name", required=True, metavar="NAME", help="The NAME of the units.")
@click.option(
    "--trainer",
    type=click.Choice(["launcher", "plain", "none"]),
    default="launcher",
    show_default=True,
    help="The trainer's units: through `train`, the trainer alone and a unit that stops it, none.",
)
@click.option(
    "--trainer-flags",
    default="",
    metavar="FLAGS",
    help="More flags of the trainer, as one text: --trainer-flags='--checkpoint_every_n=500'."
    " Default: those of the NAME.env that is there.",
)
@click.option(
    "--user",
    metavar="USER[:GROUP]",
    help="Who trainer and watcher run as. Default: the owner of MODEL_DIR.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/"),
    metavar="FOLDER",
    help="Write into a system that lies in this folder. Default: this system.",
)
@click.option("--dry-run", is_flag=True, help="Print the files, write nothing.")
@settings_options
def install_units(
    model_dir: str | None,
    name: str,
    trainer: units.Trainer,
    trainer_flags: str,
    user: str | None,
    root: Path,
    dry_run: bool,
    **flags: Any,
) -> None:
    """Write the systemd units of one run: checkpoint-watcher@NAME, od-train@NAME.

    The trainer is model_main_tf2, or Model Garden's official.vision.train where there is an
    --experiment, with each --config-file.

    MODEL_DIR and the settings, which are those of `run`, go into /etc/checkpoint-watcher/NAME.toml,
    which root and the run's group alone may read. Where that file is there already, give no
    settings: the units are written anew for what it says. Nothing is started; what to do next is
    printed.
    """
    file = units.CONFIG_FOLDER / f"{units.check_name(name)}.toml"
    text, settings = _settings(name, {**flags, "model_dir": model_dir}, _under(root, file))
    account, group = _account(user, settings)
    present = _present(_under(root, units.environment_file(name)))
    found = units.trainer_flags(present or "")
    installation = units.Installation(
        name=name,
        settings=settings,
        interpreter=Path(settings.carrier.interpreter()),
        program=Path(sys.prefix, "bin", "checkpoint-watcher"),
        user=account,
        group=group,
        missing=tuple(path for path in units.writable_folders(settings) if not path.is_dir()),
        working_directory=settings.carrier.working_path
        if settings.carrier.working_directory
        else None,
        trainer=trainer,
        trainer_flags=tuple(trainer_flags.split()) if _is_given("trainer_flags") else found or (),
    )
    written = {file: text, **units.files(installation)}
    for doubt in _doubts(installation, root):
        click.echo(f"warning: {doubt}", err=True)
    for path, content in written.items():
        if dry_run:
            click.echo(f"# {path}\n{content}")
            continue
        target = _under(root, path)
        if path.parent == units.CONFIG_FOLDER:
            if path == file or not present or _only_flags_differ(present, content):
                _write(target, content, private=True)
            else:
                _keep(target, present, content)
            _give(target, group)
        else:
            _write(target, content)
    if not dry_run:
        click.echo(_next_steps(installation))


def _settings(name: str, flags: Mapping[str, Any], file: Path) -> tuple[str, Settings]:
    """Return the settings file's text, and what it says."""
    given = {key: value for key, value in flags.items() if value is not None}
    if file.exists() and not given.keys() - _BESIDE_THE_FILE:
        settings = load_settings(given, {}, file)
        values = read_toml(file)
        if absolute(values) != values:
            raise ConfigError(
                f"{file} has a path that is not absolute",
                hint="a service is started in another folder; write the whole path",
            )
        return file.read_text(encoding="utf-8"), settings
    settings = load_settings({"run_name": name, **given}, {}, None)
    if settings.run.evaluator == MODEL_GARDEN:  # which writes its configuration when it starts
        given.setdefault("wait_for_model_dir", True)
        settings = load_settings({"run_name": name, **given}, {}, None)
    # As they were understood: 3 and not "3".
    values = {key: settings.value(key) for key in ("model_dir", "run_name", *given)}
    values = absolute({**values, "python": settings.carrier.interpreter()})
    text = units.settings_file(values)
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{file} is there already, with other settings",
            hint="edit it and give no settings here, or remove it first",
        )
    return text, load_settings(values, {}, None)


def _doubts(installation: units.Installation, root: Path) -> Iterator[str]:
    """Yield what the units could not work with, if they are for this system as it is now."""
    settings = installation.settings
    for one in settings.evaluator.inputs(settings.run.model_path):
        # Without a file of its own, the trainer of Model Garden writes it.
        given = one.required and settings.value(one.setting)
        if given and not any(is_file(str(at)) for at in (one.path, _under(root, Path(one.path)))):
            yield (
                f"{one.setting} ({one.path}) does not exist or is not a file: it has to be there"
                " when the units start"
            )
    if installation.trainer == "none" and not settings.carrier.devices.here:
        return
    packages = evaluated_by(settings.run.evaluator).evaluates_with
    if missing := lacking(installation.interpreter, packages):
        yield (
            f"python ({installation.interpreter}) has no {together(missing)}: give the interpreter"
            " of the environment that trains"
        )


def _account(user: str | None, settings: Settings) -> tuple[str, str]:
    if user:
        name, _, group = user.partition(":")
        return name, group or name
    if settings.run.model_path.is_dir():
        return units.owner_of(settings.run.model_path)
    return units.DEFAULT_USER, units.DEFAULT_USER


def _under(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _present(path: Path) -> str | None:
    """Return the text of the file that an earlier call wrote, None where there is none."""
    with _explained(path, "read"):
        return path.read_text(encoding="utf-8") if path.exists() else None


def _is_given(option: str) -> bool:
    """Tell whether an option was given, be it as an empty text."""
    source = click.get_current_context().get_parameter_source(option)
    return source is not click.core.ParameterSource.DEFAULT


def _only_flags_differ(present: str, content: str) -> bool:
    """Tell whether an environment file is as it is to be written, but for the trainer's flags."""
    before, after = (
        [line for line in text.splitlines() if not line.startswith(f"{units.FLAGS}=")]
        for text in (present, content)
    )
    # What cannot be written was not taken over.
    return before == after and units.trainer_flags(present) is not None


def _keep(path: Path, present: str, content: str) -> None:
    """Leave an environment file, and say in what it differs and what would go with it."""
    before, after = map(units.environment_values, (present, content))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not names:
        click.echo(f"as it was  {path}")
        return
    lost = [name for name in before if name in names or (name == units.FLAGS and before[name])]
    again = " (give --trainer-flags again)" if units.FLAGS in lost else ""
    told = f"; that loses its {together(lost)}{again}" if lost else ""
    click.echo(
        f"kept       {path}, which has another {together(names)} than would be written now: remove"
        f" it to have it written anew{told}"
    )


def _write(path: Path, content: str, *, private: bool = False) -> None:
    with _explained(path):
        if path.exists() and path.read_text(encoding="utf-8") == content:
            click.echo(f"as it was  {path}")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if private:
            replace_file(path, content.encode(), mode=0o600)
        else:
            path.write_text(content, encoding="utf-8")
        click.echo(f"wrote      {path}")


def _give(path: Path, group: str) -> None:
    """Let the owner and the group alone read a file, which may hold passwords."""
    with _explained(path):
        status = path.stat()
        try:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
            os.chown(path, -1, gid)
            mode, readers = units.PRIVATE_MODE, f"its owner and group {group}"
        except (KeyError, OSError) as error:
            mode = 0o600
            why = error.strerror if isinstance(error, OSError) else "there is no such group yet"
            readers = (
                f"its owner until `systemd-tmpfiles --create` gives it to group {group} ({why})"
            )
        if stat.S_IMODE(status.st_mode) != mode:
            path.chmod(mode)
        if mode == 0o600 or status.st_mode & 0o007:
            click.echo(f"closed     {path} to all but {readers}")


@contextlib.contextmanager
def _explained(path: Path, doing: str = "write") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot {doing} {path}: {error.strerror}",
            hint="run it as root, or look at the files with --dry-run",
        ) from error


def _next_steps(installation: units.Installation) -> str:
    name = installation.name
    unit = "checkpoint-watcher" if installation.trainer == "none" else "od-train"
    lines = [
        *("", "next:"),
        "  systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload",
    ]
    if unit == "od-train":
        lines.append(f"  systemctl enable checkpoint-watcher@{name}")
    if installation.trainer == "plain":
        lines.append(f"  systemctl enable od-train-stop@{name}.path")
    lines.append(f"  systemctl enable --now {unit}@{name}")
    lines.append(f"  systemctl status checkpoint-watcher@{name}")
    return "\n".join(lines)
