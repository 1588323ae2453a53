"""Settings: one table from which the flags, the environment variables and the TOML keys come.

A flag overrides the environment (`CHECKPOINT_WATCHER_TOP_K`), which overrides the file, which
overrides what the last start was given. Every value passes the same validation, and an error names
the field, the value, where it came from and the rule.
"""

from watcher.config.contradictions import Doubt, doubts, launch_doubts
from watcher.config.describe import Setting, describe
from watcher.config.last_start import LastStart, differences, shown
from watcher.config.launching import LaunchSettings
from watcher.config.load import (
    FILE_ONLY,
    Loaded,
    list_settings,
    load,
    load_as,
    load_settings,
    make_settings,
    read_toml,
)
from watcher.config.ranking import DEFAULT_METRIC
from watcher.config.rules import ENVIRONMENT_PREFIX
from watcher.config.run import state_path
from watcher.config.service import SECRET
from watcher.config.settings import Settings, names

__all__ = [
    "DEFAULT_METRIC",
    "ENVIRONMENT_PREFIX",
    "FILE_ONLY",
    "SECRET",
    "Doubt",
    "LastStart",
    "LaunchSettings",
    "Loaded",
    "Setting",
    "Settings",
    "describe",
    "differences",
    "doubts",
    "launch_doubts",
    "list_settings",
    "load",
    "load_as",
    "load_settings",
    "make_settings",
    "names",
    "read_toml",
    "shown",
    "state_path",
]
