"""Service: how the systemd units of a run stand. No systemd is nothing to complain of."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from watcher.config import read_toml
from watcher.doctor.finding import Finding
from watcher.errors import ConfigError
from watcher.systemd.units import CONFIG_FOLDER

_TIMEOUT_SECONDS = 5
_PROPERTIES = "Id,LoadState,ActiveState,SubState,Result,NRestarts,UnitFileState"


def units(model_dir: Path, config_folder: Path = CONFIG_FOLDER) -> list[Finding]:
    """Ask systemctl about the units of this MODEL_DIR, as `install-units` names them."""
    program = shutil.which("systemctl")
    if program is None:
        return [Finding("systemd", "ok", "there is no systemctl here")]
    name = _run_of(model_dir, config_folder)
    if name is None:
        text = "no unit was installed for this MODEL_DIR (`install-units` writes some)"
        return [Finding("systemd", "ok", text)]
    names = [f"checkpoint-watcher@{name}.service", f"od-train@{name}.service"]
    try:
        ran = subprocess.run(
            [program, "show", f"--property={_PROPERTIES}", *names],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        text = f"systemctl did not answer within {_TIMEOUT_SECONDS} s"
        return [Finding("systemd", "warning", text, "see `systemctl is-system-running`")]
    except OSError as error:
        return [Finding("systemd", "warning", f"systemctl cannot be run: {error.strerror}")]
    if ran.returncode:
        said = (ran.stderr.strip().splitlines() or ["it says nothing"])[-1]
        return [Finding("systemd", "note", f"systemctl cannot tell: {said}")]
    return judge(read(ran.stdout))


def read(output: str) -> list[dict[str, str]]:
    """Read what `systemctl show` prints: a paragraph of NAME=value for each unit. Pure."""
    return [
        dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line)
        for block in output.split("\n\n")
        if block.strip()
    ]


def judge(shown: Sequence[dict[str, str]]) -> list[Finding]:
    """Judge the units' states. Pure."""
    found = []
    for unit in shown:
        name, state = unit.get("Id", "?"), unit.get("ActiveState", "?")
        if unit.get("LoadState") != "loaded":
            continue
        restarts = unit.get("NRestarts", "0")
        if state == "failed":
            text = f"{name} failed ({unit.get('Result')})"
            found.append(Finding("systemd", "error", text, f"journalctl --unit {name}"))
        elif restarts not in ("0", ""):
            text = f"{name} is {state}, and was started again {restarts} times"
            found.append(Finding("systemd", "warning", text, f"journalctl --unit {name}"))
        elif unit.get("UnitFileState") == "disabled":
            text = f"{name} is {state}, and not enabled: after a reboot it does not start"
            found.append(Finding("systemd", "note", text, f"systemctl enable {name}"))
        else:
            found.append(Finding("systemd", "ok", f"{name} is {state} ({unit.get('SubState')})"))
    text = "systemd does not know the units of this run"
    return found or [Finding("systemd", "warning", text, "systemctl daemon-reload")]


def _run_of(model_dir: Path, folder: Path) -> str | None:
    """Return the name of the run that was installed for this MODEL_DIR."""
    try:
        files = sorted(folder.glob("*.toml"))
    except OSError:
        return None
    for file in files:
        try:
            theirs = read_toml(file).get("model_dir")
        except ConfigError:
            continue
        if isinstance(theirs, str) and Path(theirs).absolute() == model_dir:
            return file.stem
    return None
