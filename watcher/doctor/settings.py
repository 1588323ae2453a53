"""Settings: whether they can be meant so, and who may read the file they come from."""

from __future__ import annotations

import stat
from pathlib import Path

from watcher.config import SECRET, Settings, doubts, read_toml
from watcher.doctor.finding import Finding


def doubtful(settings: Settings) -> list[Finding]:
    """Tell of settings that do nothing, or hardly what was meant."""
    return [Finding("settings", "warning", one.message, one.hint) for one in doubts(settings)]


def open_to_all(file: Path) -> list[Finding]:
    """Warn of a settings file that everyone may read and that holds what may be a password."""
    held = [name for name in SECRET if read_toml(file).get(name)]
    if not held or not file.stat().st_mode & stat.S_IROTH:
        return []
    message = f"{file} can be read by everyone, and {' and '.join(held)} in it may hold passwords"
    return [Finding("settings", "warning", message, f"chmod o= {file}")]
