"""Which part of the code is handed which settings."""

from __future__ import annotations

import ast
from pathlib import Path

WATCHER = Path(__file__).parents[2] / "watcher"
# They read and show settings, or put all the others together.
ASSEMBLY = ("config", "cli", "setup", "runtime/app.py", "runtime/loop.py", "doctor/examine.py")
# All settings are their subject: compared, told or recorded as a whole.
ABOUT_ALL = {
    "control/copied.py",
    "doctor/settings.py",
    "doctor/state.py",
    "evaluation/preflight.py",
    "launch/processes.py",
    "runtime/acceptance.py",
}
# Of four sections and more.
OF_MANY = {
    "control/offline.py",
    "doctor/hosts.py",
    "doctor/noise.py",
    "evaluation/workers.py",
    "launch/ending.py",
    "launch/launcher.py",
    "promotion/projection.py",
    "runtime/waiting.py",
    "service/__init__.py",
    "service/endpoints.py",
    "systemd/units.py",
}


def test_only_what_puts_others_together_or_needs_many_sections_is_handed_all_settings():
    found = set()
    for path in WATCHER.rglob("*.py"):
        name = path.relative_to(WATCHER).as_posix()
        if name.startswith(ASSEMBLY):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            inside = getattr(node, "annotation", None) or ast.Pass()
            names = {getattr(one, "id", "") for one in ast.walk(inside)}
            if names & {"Settings", "LaunchSettings"}:
                found.add(name)
    assert found == ABOUT_ALL | OF_MANY
